package robustness

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// recorderOptions say what to record. Hosts is needed, in the order of the lab's.
type recorderOptions struct {
	Seed  uint64
	TTL   time.Duration
	Hosts []Host
	// SampleEvery is how often each host is read; 250 ms when zero.
	SampleEvery time.Duration
	// PingEvery is between two requests of a pair; 20 ms when zero.
	PingEvery time.Duration
}

// recorder writes down what happens in a lab. What it is told by the run (began,
// killed, retarget, operator, addFault, the epochs) may come from any goroutine;
// start comes first and stop last.
//
//	etcd's members --streams--> history -\
//	hosts' kernels, files, sockets --> samplers --> Record
//	containers --> pings --------------/
//	processes --> watched: runs and load
//
// Its clock is the machine's boot-time clock. Packets are timed by Go's
// monotonic clock and converted, which is the same unless the machine sleeps.
type recorder struct {
	opts    recorderOptions
	lab     *lab.Lab
	clock   subnet.SystemClock
	origin  time.Duration
	history *history
	hosts   []*watched
	pings   *pings

	samplers *errgroup.Group
	cancel   context.CancelFunc

	mu sync.Mutex
	// The fields below are guarded by mu.

	faults  []Fault
	samples []Sample
	final   Final
}

// newRecorder returns a recorder whose clock is at 0.
func newRecorder(l *lab.Lab, c *lab.Cluster, o recorderOptions) *recorder {
	o.SampleEvery = cmp.Or(o.SampleEvery, 250*time.Millisecond)
	o.PingEvery = cmp.Or(o.PingEvery, 20*time.Millisecond)
	r := &recorder{opts: o, lab: l}
	r.origin = r.clock.Uptime()
	var members []*clientv3.Client
	for _, m := range c.Members {
		members = append(members, m.Client())
	}
	r.history = newHistory(r.now, lab.Prefix, members)
	for i, h := range l.Hosts {
		r.hosts = append(r.hosts, &watched{Host: o.Hosts[i], host: h, now: r.now, over: make(chan struct{})})
	}
	r.pings = newPings(r.hosts, o, r.at)
	return r
}

// now is the time since the recorder was made.
func (r *recorder) now() time.Duration { return r.clock.Uptime() - r.origin }

// at converts a recent moment.
func (r *recorder) at(t time.Time) time.Duration { return r.now() - time.Since(t) }

// start begins the first epoch and the samples. Pings begin with retarget, once
// there are containers.
func (r *recorder) start(ctx context.Context) error {
	if err := r.history.begin(ctx, whyStart); err != nil {
		return fmt.Errorf("start recorder: %w", err)
	}
	ctx, r.cancel = context.WithCancel(context.WithoutCancel(ctx))
	// What one host cannot be read for is told at the end; the others go on.
	r.samplers = new(errgroup.Group)
	slots := make(chan struct{}, samplers)
	for i, w := range r.hosts {
		s := &sampler{watched: w, now: r.now, keep: r.keep}
		delay := r.opts.SampleEvery * time.Duration(i) / time.Duration(len(r.hosts))
		r.samplers.Go(func() error { return s.run(ctx, r.opts.SampleEvery, delay, slots) })
	}
	return nil
}

func (r *recorder) keep(s Sample) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.samples = append(r.samples, s)
}

// endEpoch is called before etcd's data is lost or replaced. It returns when
// everything that was written until the call is recorded; what is written
// between it and the members' end is, as far as they tell it.
func (r *recorder) endEpoch(ctx context.Context) error { return r.history.end(ctx) }

// beginEpoch is called when etcd serves again, with "wipe" or "restore". What
// was written since it does is recorded too.
func (r *recorder) beginEpoch(ctx context.Context, why string) error {
	return r.history.begin(ctx, why)
}

// operator marks a revision of the present epoch as the run's own doing.
func (r *recorder) operator(revision int64) { r.history.byOperator(revision) }

// addFault notes what was done. The order of calls is of no matter.
func (r *recorder) addFault(f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, f)
}

// began notes a process of a host's daemon; its end is noticed.
func (r *recorder) began(h *lab.Host, p *lab.Process) { r.of(h).began(p) }

// killed notes that the host's daemon is about to be ended by a signal.
func (r *recorder) killed(h *lab.Host, s syscall.Signal) { r.of(h).killed(s) }

// retarget starts the pairs of a host over, with its container as it is now. It
// is called when a container was made, made anew, or removed.
func (r *recorder) retarget(ctx context.Context, h *lab.Host) error {
	return r.pings.retarget(ctx, r.of(h))
}

func (r *recorder) of(h *lab.Host) *watched { return r.hosts[h.Number-1] }

// stop ends the recording. The record is returned with an error too: for a look,
// not to be trusted.
func (r *recorder) stop(ctx context.Context) (*Record, error) {
	errs := []error{r.history.end(ctx)}
	pairs, err := r.pings.stop()
	r.cancel()
	errs = append(errs, err, r.samplers.Wait())
	epochs, err := r.history.close()
	errs = append(errs, err)
	record := &Record{
		Seed: r.opts.Seed, TTL: r.opts.TTL, Duration: r.now(), Hosts: r.opts.Hosts,
		Epochs: epochs, Pairs: pairs,
	}
	for _, w := range r.hosts {
		runs, load, err := w.result()
		record.Runs = append(record.Runs, runs...)
		record.Load = append(record.Load, load)
		errs = append(errs, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	record.Faults, record.Samples, record.Final = r.faults, r.samples, r.final
	slices.SortStableFunc(record.Faults, func(a, b Fault) int { return cmp.Compare(a.From, b.From) })
	slices.SortStableFunc(record.Samples, func(a, b Sample) int { return cmp.Compare(a.From, b.From) })
	slices.SortStableFunc(record.Runs, func(a, b Run) int { return cmp.Compare(a.From, b.From) })
	if err := errors.Join(errs...); err != nil {
		return record, fmt.Errorf("the record is not complete: %w", err)
	}
	return record, nil
}
