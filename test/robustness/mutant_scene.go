package robustness

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// scene is a short directed run: one in which a certain mutant, and not the
// sound daemon, does what must not be done.
type scene struct {
	hosts []hostPlan
	ttl   time.Duration
	spare int
	// inTurn is the option of the trial's.
	inTurn bool
	play   func(context.Context, *trial) error
}

// sceneHosts are enough to have others beside those to whom something is done.
const sceneHosts = 4

// plain is a scene of hosts like any other.
func plain(ttl time.Duration, play func(context.Context, *trial) error) scene {
	return scene{hosts: make([]hostPlan, sceneHosts), ttl: ttl, spare: 4, play: play}
}

// steps is a play that is a schedule.
func steps(all ...Step) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error { return t.performAll(ctx, all) }
}

// overwritten: another owner writes over a host's key. A host that renews
// blindly writes back.
func overwritten() scene {
	return plain(3*time.Second, steps(
		Step{Kind: FaultOverwrite, Variant: variantForeign, Hosts: []int{1}, At: time.Second, For: 4 * time.Second},
	))
}

// rushed: several hosts, which all begin to look at the same place, need another
// subnet at once, over links so slow that each reads before any has written.
func rushed() scene {
	s := plain(8*time.Second, func(ctx context.Context, t *trial) error {
		const delay = 200 * time.Millisecond
		for _, h := range t.hosts {
			h.proxy.SetDelay(delay, delay)
		}
		var all []Step
		for n := range t.hosts {
			all = append(all, Step{Kind: FaultOverwrite, Variant: variantForeign, Hosts: []int{n + 1}, At: time.Second, For: 7 * time.Second})
		}
		err := t.performAll(ctx, all)
		return errors.Join(err, each(t.hosts, func(h *host) error { return h.proxy.Heal() }))
	})
	// At the start they must not do what is to be seen later.
	s.inTurn = true
	for i, id := range neighbours(networkFor(sceneHosts+s.spare), sceneHosts) {
		s.hosts[i].NodeID = id
	}
	return s
}

// neighbour begins the node ids of neighbours.
const neighbour = "node-"

// neighbours are node ids that begin to look for a subnet at one place.
func neighbours(n network, count int) []string {
	var ids []string
	cfg, err := subnet.ParseConfig(n.config())
	if err != nil {
		return nil
	}
	for i := 0; len(ids) < count; i++ {
		if id := fmt.Sprintf("%s%d", neighbour, i); cfg.Pool().Start(subnet.NodeID(id)) == 0 {
			ids = append(ids, id)
		}
	}
	return ids
}

// undisturbed: nothing is done to hosts that have long been able to renew, for
// more than a TTL.
func undisturbed() scene {
	return plain(4*time.Second, func(ctx context.Context, _ *trial) error {
		after(ctx, 16*time.Second)
		return nil
	})
}

// illegible: a peer's key cannot be read, and a host must load everything anew. Since
// it was without etcd it may hold what it does not find for a TTL.
func illegible() scene {
	return plain(5*time.Second, steps(
		Step{Kind: FaultOverwrite, Variant: variantGarbage, Hosts: []int{2}, At: 4 * time.Second, For: 16 * time.Second},
		Step{Kind: FaultCut, Hosts: []int{1}, At: 5 * time.Second, For: 1500 * time.Millisecond},
		Step{Kind: FaultDelete, Hosts: []int{3}, At: 5500 * time.Millisecond},
		Step{Kind: FaultCompact, At: 6 * time.Second},
	))
}

// bare: a subnet is reserved for a host before it starts, and it starts twice.
func bare() scene {
	s := plain(3*time.Second, steps(
		Step{Kind: FaultKill, Hosts: []int{1}, At: time.Second, For: 500 * time.Millisecond},
	))
	s.hosts[0].Reserved = true
	return s
}

// compacted: a peer moves to another subnet while a host is cut off, and the
// history of that is forgotten before the host is back.
func compacted() scene {
	return plain(5*time.Second, steps(
		Step{Kind: FaultCut, Hosts: []int{1}, At: time.Second, For: 2500 * time.Millisecond},
		Step{Kind: FaultOverwrite, Variant: variantForeign, Hosts: []int{2}, At: 1500 * time.Millisecond, For: 14 * time.Second},
		Step{Kind: FaultCompact, At: 3 * time.Second},
	))
}

// replaced: etcd is emptied while one host is cut off and another is down. When
// the first one is back the store has come farther than it was, all that stands in
// it was written since, and the other's key is not there: only its identity says
// that it is another.
func replaced() scene {
	return plain(24*time.Second, func(ctx context.Context, t *trial) error {
		wipe := Step{Kind: FaultWipe, At: 10500 * time.Millisecond, For: 4 * time.Second}
		all := []Step{
			wipe,
			{Kind: FaultKill, Hosts: []int{2}, At: 10 * time.Second, For: 16 * time.Second},
			{Kind: FaultCut, Hosts: []int{1}, At: 10 * time.Second, For: 7 * time.Second},
		}
		bumped := make(chan struct{})
		go func() {
			defer close(bumped)
			if after(ctx, t.begun+wipe.At-t.rec.now()) {
				t.bump(ctx, wipe.For)
			}
		}()
		defer func() { <-bumped }()
		return t.performAll(ctx, all)
	})
}

// bump lets the revision of an etcd that was emptied run ahead of all that there
// was, before there is a config again. Too late for that, it does nothing.
func (t *trial) bump(ctx context.Context, within time.Duration) {
	const far = 100
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	_ = poll(ctx, func() bool {
		resp, err := t.cluster.Client().Get(ctx, configKey)
		if err != nil || len(resp.Kvs) > 0 {
			return false
		}
		for range far {
			if _, err := t.cluster.Client().Put(ctx, "/bump", ""); err != nil {
				return false
			}
		}
		return true
	})
}
