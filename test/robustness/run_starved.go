package robustness

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	// faultStarved is none of ours: the machine gave etcd no time, for so long that
	// nobody may have been able to renew his lease.
	faultStarved FaultKind = "starved"
	// faultKernel is none of ours: the machine's kernel told nobody of his links. All
	// namespaces share one lock, and whoever waits for it hears no signal, SIGKILL
	// included.
	faultKernel FaultKind = "kernel"
	// kernelTooLong is what bounds of validators feel: less shows in none.
	kernelTooLong = time.Second
	// askEvery is between two questions to etcd, and askAgain after one that no member
	// could answer.
	askEvery = 500 * time.Millisecond
	askAgain = 50 * time.Millisecond
	// electedWithin is how long members may take to be of use again after a fault.
	electedWithin = 2 * time.Second
)

// patient asks again and again from where no fault of a run cuts anybody off, and
// knows when an answer took too long.
type patient struct {
	// ask returns nil when there was an answer, of etcd's by any member.
	ask func(context.Context) error
	now func() time.Duration
	// tooLong is what those who are judged cannot wait for.
	tooLong time.Duration

	mu sync.Mutex
	// What follows is guarded by mu: slow are the times without an answer, asked is
	// when the question was put that has none yet, if asking.
	slow   []stretch
	asking bool
	asked  time.Duration
}

// run asks until ctx ends.
func (p *patient) run(ctx context.Context) {
	for pause := time.Duration(0); after(ctx, pause); pause = askEvery {
		from := p.now()
		p.mu.Lock()
		p.asking, p.asked = true, from
		p.mu.Unlock()
		for p.ask(ctx) != nil && after(ctx, askAgain) {
		}
		p.mu.Lock()
		p.asking = false
		if until := p.now(); until-from >= p.tooLong {
			p.slow = append(p.slow, stretch{from, until})
		}
		p.mu.Unlock()
	}
}

// waited is for how long of a time there was no answer.
func (p *patient) waited(in stretch) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	slow := slices.Clone(p.slow)
	if now := p.now(); p.asking && now-p.asked >= p.tooLong {
		slow = append(slow, stretch{p.asked, now})
	}
	var sum time.Duration
	for _, s := range both(slow, []stretch{in}) {
		sum += s.until - s.from
	}
	return sum
}

// askKernel reads the links of the switch, which no host has a hand in.
func (t *trial) askKernel(context.Context) error {
	_, err := t.lab.Switch.Links().LinkList()
	return err
}

// mute are the times in which the kernel gave no answers, as faults that kept all hosts
// from what they need it for.
func mute(slow []stretch, hosts []string) []Fault {
	var out []Fault
	for _, s := range slow {
		out = append(out, Fault{
			Kind: faultKernel, From: s.from, Until: s.until, Unreachable: hosts,
			Detail: fmt.Sprintf("the kernel did not answer the run itself for %s", (s.until - s.from).Round(time.Millisecond)),
		})
	}
	return out
}

// askMembers reads what only a member with a quorum can tell, of all of them at once.
func (t *trial) askMembers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healWithin)
	defer cancel()
	var asks []func(context.Context) error
	for _, m := range t.cluster.Members {
		asks = append(asks, func(ctx context.Context) error {
			_, err := m.Client().Get(ctx, configKey)
			return err
		})
	}
	return askAny(ctx, asks)
}

// askAny puts all the questions at once. The first answer counts and cancels the others;
// without one it returns the last error. Nothing of it runs on afterwards.
func askAny(ctx context.Context, asks []func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	// Each has room for its answer, for nobody reads those after the first.
	answers := make(chan error, len(asks))
	for _, ask := range asks {
		asking.Go(func() { answers <- ask(ctx) })
	}
	var err error
	for range asks {
		if err = <-answers; err == nil {
			break
		}
	}
	return err
}

// starved are the times in which etcd was slow through no deed of the run, as deeds
// that kept all hosts from it.
func starved(slow []stretch, deeds []deed, hosts []string, tooLong time.Duration) []deed {
	var ours []stretch
	for _, d := range deeds {
		switch d.Kind {
		case FaultMajority, FaultDown, FaultOffline, FaultRestore, FaultWipe, FaultDefragment:
		case FaultMemberKill, FaultMemberPause:
			if d.variant == variantFollower {
				continue // The others answer.
			}
		default:
			continue
		}
		ours = append(ours, stretch{d.From, d.Until + electedWithin})
	}
	var out []deed
	for _, s := range without(slow, ours) {
		if took := s.until - s.from; took >= tooLong {
			out = append(out, deed{Fault: Fault{
				Kind: faultStarved, From: s.from, Until: s.until, Unreachable: hosts,
				Detail: fmt.Sprintf("etcd did not answer the run itself for %s", took.Round(time.Millisecond)),
			}})
		}
	}
	return out
}
