package storm

import (
	"context"
	"slices"
	"time"
)

const (
	// sampleEvery is how often requests are counted for their rate.
	sampleEvery = 250 * time.Millisecond
	// rateOver is what a rate is the mean of.
	rateOver = time.Second
)

// sample is a count and when it was taken.
type sample struct {
	at     time.Time
	counts Counts
}

// sampler counts again and again, to find how many requests there were in the
// worst second.
type sampler struct {
	stop    context.CancelFunc
	done    chan struct{}
	samples []sample
}

// startSampler counts by ask until finish is called. While etcd is down there is
// nothing to count.
func startSampler(ctx context.Context, ask func(context.Context) (Counts, error)) *sampler {
	ctx, stop := context.WithCancel(ctx)
	s := &sampler{stop: stop, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		tick := time.NewTicker(sampleEvery)
		defer tick.Stop()
		for {
			if c, err := ask(ctx); err == nil {
				s.samples = append(s.samples, sample{time.Now(), c})
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return s
}

// finish ends the sampling and returns the highest rate, in requests per second.
func (s *sampler) finish() float64 {
	s.stop()
	<-s.done
	return peak(s.samples)
}

// peak is the highest rate of requests between two samples that are as far apart
// as a rate is taken over, or of all of them if they are not. Samples that are much
// farther apart had a gap between them, or an etcd that started anew.
func peak(samples []sample) float64 {
	highest := 0.0
	for i, from := range samples {
		j := slices.IndexFunc(samples[i:], func(to sample) bool { return to.at.Sub(from.at) >= rateOver })
		if j < 0 {
			j = len(samples) - 1 - i
		}
		to := samples[i+j]
		apart := to.at.Sub(from.at)
		if apart > 0 && apart <= 2*rateOver && to.counts.started == from.counts.started {
			highest = max(highest, (to.counts.All()-from.counts.All())/apart.Seconds())
		}
	}
	return highest
}
