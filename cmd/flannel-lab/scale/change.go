package scale

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page"
)

const (
	newRoute     = unix.RTM_NEWROUTE
	newNeighbour = unix.RTM_NEWNEIGH

	// changeWithin bounds the wait for a change.
	changeWithin = 10 * time.Second
	// singleEvery leaves the daemon alone between single changes: each finds it
	// idle.
	singleEvery = 50 * time.Millisecond
	// leaveAfter is how long a peer that joined stays, in changes: a lease that is
	// deleted stays in effect for 2 s on purpose, and is no latency.
	leaveAfter = 30
)

// kind is what happens to a peer.
type kind uint8

const (
	// join: a new key, and so a new route.
	join kind = iota
	// move: another address in the value, and so another FDB entry.
	move
	// leave: the key is deleted.
	leave
	kinds
)

// change is one write to etcd.
type change struct {
	kind kind
	peer peer
	// committed is when etcd answered.
	committed time.Time
}

// churn makes changes, of each kind in turn.
type churn struct {
	p *population
	// next is the number of the peer that joins next, made how many changes
	// were.
	next, made int
	// guests are the peers that joined and have not left.
	guests []peer
	// taken is the daemon's own subnet.
	taken func(peer) bool
}

// step makes the next change of a kind.
func (c *churn) step(ctx context.Context, k kind) (change, error) {
	if k == leave && len(c.guests) <= leaveAfter {
		k = join
	}
	var err error
	ch := change{kind: k}
	switch k {
	case leave:
		ch.peer, c.guests = c.guests[0], c.guests[1:]
		err = c.p.remove(ctx, ch.peer)
	case move:
		// All over the network, and each peer again only after all others.
		const stride = 7919 // a prime
		ch.peer = peer{number: c.made * stride % c.p.count, moved: 1 + c.made/c.p.count}
		err = c.p.put(ctx, ch.peer)
	default:
		ch.peer = peer{number: c.next}
		if c.taken(ch.peer) {
			ch.peer.number++
		}
		c.next = ch.peer.number + 1
		c.guests = append(c.guests, ch.peer)
		err = c.p.put(ctx, ch.peer)
	}
	c.made++
	ch.committed = time.Now()
	return ch, err
}

// measureChanges measures single changes of an idle daemon, and then changes at a
// rate.
func measureChanges(ctx context.Context, r *running, p *population, o Options) (Sample, error) {
	m, err := newMonitor(r.host.Node)
	if err != nil {
		return nil, err
	}
	defer m.close()
	env, err := r.host.ReadSubnet()
	if err != nil {
		return nil, err
	}
	c := &churn{p: p, next: p.count, taken: func(who peer) bool { return env.Subnets[0].Masked() == who.subnet() }}
	s := Sample{}
	if err := singles(ctx, m, c, o.Singles, s); err != nil {
		return nil, fmt.Errorf("single changes: %w", err)
	}
	if err := atRate(ctx, r, m, c, o, s); err != nil {
		return nil, fmt.Errorf("%d changes a second: %w", o.Rate, err)
	}
	return s, nil
}

// singles makes changes one at a time, of peers that join and peers that move.
func singles(ctx context.Context, m *monitor, c *churn, count int, s Sample) error {
	var took []time.Duration
	for n := range count {
		ch, err := c.step(ctx, kind(n%2)) //nolint:gosec // join or move
		if err != nil {
			return err
		}
		one, err := m.await(ctx, []change{ch})
		if err != nil {
			return err
		}
		took = append(took, one...)
		if err := lab.Wait(ctx, singleEvery); err != nil {
			return err
		}
	}
	slices.Sort(took)
	s[keySingle], s[keySingle99] = millis(page.Percentile(took, 50)), millis(page.Percentile(took, 99))
	return nil
}

// atRate makes changes at a rate and reads what they cost the daemon.
func atRate(ctx context.Context, r *running, m *monitor, c *churn, o Options, s Sample) error {
	pid := r.host.Daemon.PID()
	before, err := machine.ProcessSpent(pid)
	if err != nil {
		return err
	}
	begin := time.Now()
	tick := time.NewTicker(time.Second / time.Duration(o.Rate))
	defer tick.Stop()
	var changes []change
	for n := 0; time.Since(begin) < o.Churn; n++ {
		ch, err := c.step(ctx, kind(n%int(kinds))) //nolint:gosec // below kinds
		if err != nil {
			return err
		}
		if ch.kind != leave {
			changes = append(changes, ch)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	took, err := m.await(ctx, changes)
	if err != nil {
		return err
	}
	lasted := time.Since(begin)
	after, err := machine.ProcessSpent(pid)
	if err != nil {
		return err
	}
	slices.Sort(took)
	s[keyChurn], s[keyChurn99] = millis(page.Percentile(took, 50)), millis(page.Percentile(took, 99))
	s[keyChurnCPU] = 100 * (after - before).Seconds() / lasted.Seconds()
	s[keyChurnRate] = float64(len(changes)) / lasted.Seconds() * float64(kinds) / float64(kinds-1)
	return nil
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
