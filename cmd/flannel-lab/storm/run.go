package storm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// MostRequests is what a host may ask of etcd on average when it boots together with
// all others, until it knows every one of them: the promise of docs/scale.md.
const MostRequests = 6

// Options describe a run. What is zero is left out.
type Options struct {
	// Hosts is the size of the crowd.
	Hosts int
	// Quiet is how long each steady state is watched.
	Quiet time.Duration
	// ShortTTL is that of a second, smaller crowd.
	ShortTTL time.Duration
	// Rate is how many joins, changes and leaves there are in a second, all
	// added, for as long as Churn.
	Rate  float64
	Churn time.Duration
	// Down is how long etcd is away.
	Down time.Duration
	// Progress is told of every phase.
	Progress io.Writer
}

// shortHosts is the size of the crowd with the small TTL.
const shortHosts = 200

// Phase is what etcd had to do for so many hosts.
type Phase struct {
	Title string        `json:"title"`
	Hosts int           `json:"hosts"`
	Took  time.Duration `json:"took_ns"`
	// Counts are those of all hosts.
	Counts Counts `json:"counts"`
	// Start is how many requests a host needed until it knew all others, where
	// they started together: what it asked for while it waited for those that
	// were slower is not among them.
	Start float64 `json:"start_requests,omitempty"`
	// Subnets is how many different ones they had after that.
	Subnets int `json:"subnets,omitempty"`
	// Retries is how often etcd had no time for a request of theirs.
	Retries int `json:"retries,omitempty"`
	// Peak is the most requests there were in a second.
	Peak float64 `json:"peak_requests_per_second"`
	// Changes were made by others meanwhile; P50 and P99 are how long after one
	// was committed a host's view had it.
	Changes int           `json:"changes,omitempty"`
	P50     time.Duration `json:"p50_ns,omitempty"`
	P99     time.Duration `json:"p99_ns,omitempty"`
	// Steady: the phase is one of a duration that was chosen, and its counts
	// make a rate.
	Steady bool `json:"steady,omitempty"`
}

// run is a crowd on its way through all phases.
type run struct {
	Options
	server Server
	crowd  *crowd
	phases []Phase
}

// RunCrowd takes a crowd through all phases, on an etcd that is a process of self,
// which is flannel-lab. It also returns the most memory that etcd had.
func RunCrowd(ctx context.Context, self string, o Options) (phases []Phase, memory int64, err error) {
	dir, err := os.MkdirTemp("", "flannel-storm-")
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	server, err := startServer(ctx, self, dir)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	phases, err = Crowd(ctx, server, o)
	return phases, server.memory, err
}

// Crowd takes a crowd through all phases, on a server without any data.
func Crowd(ctx context.Context, server Server, o Options) (phases []Phase, err error) {
	if err := putConfig(ctx, server.Endpoint(), crowdConfig); err != nil {
		return nil, err
	}
	r := &run{Options: o, server: server}
	if r.crowd, err = newCrowd(server.Endpoint(), 1, o.Hosts, subnet.DefaultTTL); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.crowd.leave()) }()
	for _, phase := range []func(context.Context) error{r.boot, r.quiet, r.churn, r.outage, r.compaction, r.shortTTL} {
		if err := phase(ctx); err != nil {
			return r.phases, err
		}
	}
	return r.phases, nil
}

// record runs f as a phase and counts what it costs.
func (r *run) record(ctx context.Context, p Phase, f func(*Phase) error) error {
	before, err := r.crowd.counts(ctx)
	if err != nil {
		return err
	}
	sampling := startSampler(ctx, r.crowd.counts)
	begin := time.Now()
	err = f(&p)
	p.Took, p.Peak = cmp.Or(p.Took, time.Since(begin)), sampling.finish()
	if err != nil {
		return fmt.Errorf("%s: %w", p.Title, err)
	}
	after, err := r.crowd.counts(ctx)
	if err != nil {
		return err
	}
	p.Counts = after.since(before)
	r.phases = append(r.phases, p)
	fmt.Fprintf(r.Progress, "%s: %d hosts, %.1f s, %.1f requests each\n", p.Title, p.Hosts, p.Took.Seconds(), p.Counts.All()/float64(p.Hosts))
	return nil
}

// boot is everybody at once, until everybody knows everybody.
func (r *run) boot(ctx context.Context) error {
	n := len(r.crowd.hosts)
	var late uint64
	err := r.record(ctx, Phase{Title: "all boot at once", Hosts: n}, func(*Phase) error {
		if err := r.crowd.join(ctx); err != nil {
			return err
		}
		err := r.crowd.meet(ctx, n)
		late = r.crowd.late()
		return err
	})
	if err != nil {
		return err
	}
	p := &r.phases[len(r.phases)-1]
	p.Start, p.Subnets, p.Retries = (p.Counts.All()-float64(late))/float64(n), r.crowd.subnets(), r.crowd.retries()
	fmt.Fprintf(r.Progress, "%s: %.2f requests of each until it knew all others, %d got no answer in time\n", p.Title, p.Start, p.Retries)
	return nil
}

// quiet is nothing that happens.
func (r *run) quiet(ctx context.Context) error {
	if r.Quiet == 0 {
		return nil
	}
	return r.record(ctx, Phase{Title: "nothing happens", Hosts: len(r.crowd.hosts), Steady: true}, func(*Phase) error {
		return lab.Wait(ctx, r.Quiet)
	})
}

// witnesses are how many hosts tell when they see a change.
const witnesses = 10

// churn is hosts that come, change and go while everybody watches.
func (r *run) churn(ctx context.Context) error {
	if r.Churn == 0 {
		return nil
	}
	s, err := newStrangers(ctx, r.server.Endpoint())
	if err != nil {
		return err
	}
	defer s.store.Close()
	p := Phase{Title: fmt.Sprintf("%g joins, changes and leaves per second", r.Rate), Hosts: len(r.crowd.hosts), Steady: true}
	return r.record(ctx, p, func(p *Phase) error {
		watching, stop := context.WithCancel(ctx)
		var all []*witness
		var tasks sync.WaitGroup
		defer func() { stop(); tasks.Wait() }()
		for _, i := range rand.Perm(len(r.crowd.hosts))[:min(witnesses, len(r.crowd.hosts))] {
			w := new(witness)
			all = append(all, w)
			tasks.Go(func() { w.watch(watching, r.crowd.hosts[i]) })
		}
		commits, err := s.churn(ctx, r.Rate, r.Churn)
		if err != nil {
			return err
		}
		p.Changes = int(r.Rate * r.Churn.Seconds())
		if err := r.crowd.catchUp(ctx, commits[len(commits)-1].revision); err != nil {
			return err
		}
		var delays []time.Duration
		for _, w := range all {
			delays = append(delays, w.delays(commits)...)
		}
		slices.Sort(delays)
		p.P50, p.P99 = page.Percentile(delays, 50), page.Percentile(delays, 99)
		return nil
	})
}

// settled is over how long the loads are spread that follow an outage: see
// subnet's View.
func (r *run) settled() time.Duration {
	return time.Duration(len(r.crowd.hosts)) * 5 * time.Millisecond
}

// outage is an etcd that was away, and everybody who comes back.
func (r *run) outage(ctx context.Context) error {
	if err := r.away(ctx, "etcd is back", func(context.Context) error { return nil }); err != nil || r.Down == 0 {
		return err
	}
	p := Phase{Title: "the full loads that follow", Hosts: len(r.crowd.hosts)}
	return r.record(ctx, p, func(*Phase) error { return lab.Wait(ctx, r.settled()) })
}

// compaction is the same, and nobody can go on with his watch.
func (r *run) compaction(ctx context.Context) error {
	return r.away(ctx, "etcd is back and has compacted its log", func(ctx context.Context) error {
		return compact(ctx, r.server.Endpoint())
	})
}

func (r *run) away(ctx context.Context, title string, then func(context.Context) error) error {
	if r.Down == 0 {
		return nil
	}
	return r.record(ctx, Phase{Title: title, Hosts: len(r.crowd.hosts)}, func(p *Phase) error {
		if err := r.server.Stop(); err != nil {
			return err
		}
		if err := lab.Wait(ctx, r.Down); err != nil {
			return err
		}
		if err := r.server.Restart(ctx); err != nil {
			return err
		}
		began := time.Now()
		if err := then(ctx); err != nil {
			return err
		}
		defer func() { p.Took = time.Since(began) }()
		// A view does not say at once that its watch has ended.
		if err := r.crowd.watched(ctx); err != nil {
			return err
		}
		return r.crowd.catchUp(ctx, 0)
	})
}

// compact makes etcd forget all that any watch could go on from.
func compact(ctx context.Context, endpoint string) (err error) {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	if err != nil {
		return fmt.Errorf("compact etcd: %w", err)
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	// Nobody watches this key, and nobody's revision is as high.
	put, err := client.Put(ctx, "/flannel-lab/storm", "")
	if err != nil {
		return fmt.Errorf("compact etcd: %w", err)
	}
	if _, err := client.Compact(ctx, put.Header.Revision); err != nil {
		return fmt.Errorf("compact etcd: %w", err)
	}
	return nil
}

// shortTTL is another crowd that renews often, while nothing happens.
func (r *run) shortTTL(ctx context.Context) error {
	if r.ShortTTL == 0 || r.Quiet == 0 {
		return nil
	}
	all := len(r.crowd.hosts)
	if err := r.crowd.leave(); err != nil {
		return err
	}
	var err error
	if r.crowd, err = newCrowd(r.server.Endpoint(), all+1, shortHosts, r.ShortTTL); err != nil {
		return err
	}
	if err := r.crowd.join(ctx); err != nil {
		return err
	}
	if err := r.crowd.catchUp(ctx, 0); err != nil {
		return err
	}
	p := Phase{Title: fmt.Sprintf("nothing happens, with a TTL of %s", r.ShortTTL), Hosts: shortHosts, Steady: true}
	return r.record(ctx, p, func(*Phase) error { return lab.Wait(ctx, r.Quiet) })
}
