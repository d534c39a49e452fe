package robustness

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// faultStarved is none of ours: the machine gave etcd no time, for so long that
	// nobody may have been able to renew his lease.
	faultStarved FaultKind = "starved"
	// askEvery is between two questions to etcd, and askAgain after one that no member
	// could answer.
	askEvery = 500 * time.Millisecond
	askAgain = 50 * time.Millisecond
	// electedWithin is how long members may take to be of use again after a fault.
	electedWithin = 2 * time.Second
)

// patient asks etcd again and again from where no fault of a run cuts anybody off, and
// knows when an answer took too long.
type patient struct {
	// ask returns nil when any member has answered.
	ask func(context.Context) error
	now func() time.Duration
	// tooLong is what a renewal cannot wait for.
	tooLong time.Duration
	// slow are the times without an answer.
	slow []stretch
}

// run asks until ctx ends.
func (p *patient) run(ctx context.Context) {
	for pause := time.Duration(0); after(ctx, pause); pause = askEvery {
		from := p.now()
		for p.ask(ctx) != nil && after(ctx, askAgain) {
		}
		if until := p.now(); until-from >= p.tooLong {
			p.slow = append(p.slow, stretch{from, until})
		}
	}
}

// askMembers reads what only a member with a quorum can tell, of all of them at once.
// The first answer counts.
func (t *trial) askMembers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healWithin)
	defer cancel()
	answers := make(chan error)
	var g errgroup.Group
	for _, m := range t.cluster.Members {
		g.Go(func() error {
			_, err := m.Client().Get(ctx, configKey)
			select {
			case answers <- err:
			case <-ctx.Done():
			}
			return nil
		})
	}
	var err error
	for range t.cluster.Members {
		if err = <-answers; err == nil {
			break
		}
	}
	cancel()
	_ = g.Wait() // They have said what they know.
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
