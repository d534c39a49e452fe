package main

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// leaseNo is peer n's, as it was at its i-th address.
func leaseNo(t *testing.T, n, i int) subnet.Lease {
	t.Helper()
	s, err := subnet.ParseSubnet(fmt.Sprintf("10.5.%d.0-24", n))
	if err != nil {
		t.Fatal(err)
	}
	return subnet.Lease{Subnet: s, Attrs: subnet.Attrs{Instance: fmt.Sprint("address ", i)}}
}

// Whoever moves within a second of each other, from whenever on, ceases to count in one
// or two goes: none too early, and none a second late.
func TestFormerPeersExpireTogether(t *testing.T) {
	for name, began := range map[string]time.Duration{"on the second": time.Hour, "between seconds": time.Hour + 300*time.Millisecond, "just before": time.Hour - 1} {
		t.Run(name, func(t *testing.T) {
			var f formerPeers
			const moving = 50
			left := map[subnet.Subnet]time.Duration{}
			for n := range moving {
				now := began + time.Duration(n)*time.Second/moving
				l := leaseNo(t, n, 0)
				left[l.Subnet] = now
				f.take([]subnet.Lease{l}, now)
			}
			goes := 0
			for ; len(f) > 0; goes++ {
				now := f.next(1 << 62)
				if got := expire(&f, now-1); len(got) > 0 {
					t.Fatalf("%d cease to count before their time", len(got))
				}
				for _, l := range expire(&f, now) {
					if late := now - left[l.Subnet] - moveLinger; late < 0 || late >= togetherIn {
						t.Errorf("%s ceases to count %s late", l.Subnet, late)
					}
				}
			}
			if goes > 2 {
				t.Errorf("%d peers cease to count in %d goes", moving, goes)
			}
		})
	}
}

// Of one subnet no more than MostFormer count, the oldest the least.
func TestFormerPeersOfOneSubnet(t *testing.T) {
	var f formerPeers
	const now = time.Hour
	for i := range backend.MostFormer + 2 {
		f.take([]subnet.Lease{leaseNo(t, 1, i), leaseNo(t, 2, i)}, now+time.Duration(i))
	}
	f.take([]subnet.Lease{leaseNo(t, 3, 0)}, now+time.Minute/100)
	var got []string
	for _, l := range f.leases(now + time.Second) {
		got = append(got, l.Subnet.String()+" "+l.Attrs.Instance)
	}
	slices.Sort(got)
	var want []string
	for _, s := range []string{"10.5.1.0/24", "10.5.2.0/24"} {
		for i := range backend.MostFormer {
			want = append(want, fmt.Sprintf("%s address %d", s, i+2))
		}
	}
	if diff := cmp.Diff(append(want, "10.5.3.0/24 address 0"), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// While many peers move, letting go of where they were is not as much work as their moves:
// once a second it is done for all of them, without a round.
func TestManyAreLetGoTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := &followingTable{}
		h := newHost(t)
		h.table, h.tools = table, noVariants{}
		h.opts.iptablesResync = 5 * time.Minute
		h.data.OverwriteConfig(networkConfig)
		h.start()
		defer h.stop()
		h.ready()
		const moving = 20
		move := func(n, addr int) { h.owned(fmt.Sprintf("10.5.%d.0-24", 150+n), fmt.Sprintf("198.18.0.%d", addr), "x") }
		for n := range moving {
			move(n, 50+n)
		}
		time.Sleep(12 * time.Second) // long before the next full check
		synctest.Wait()
		for n := range moving {
			move(n, 100+n)
			time.Sleep(time.Second / moving)
		}
		time.Sleep(moveLinger - time.Second - time.Millisecond)
		synctest.Wait()
		told := func() (followed int, list []string) {
			table.mu.Lock()
			defer table.mu.Unlock()
			return table.followed, slices.Clone(table.gone)
		}
		before, had := told()
		runs := h.board.Snapshot().Sync.Runs
		time.Sleep(2*togetherIn + time.Millisecond)
		synctest.Wait()
		followed, list := told()
		if got := followed - before; got < 1 || got > 2 {
			t.Errorf("the firewall was told %d times of %d who had moved", got, moving)
		}
		for n := range moving {
			if was := fmt.Sprintf("10.5.%d.0/24 198.18.0.%d", 150+n, 50+n); !slices.Contains(list[len(had):], was) {
				t.Errorf("%s is not let go", was)
			}
		}
		if got := h.board.Snapshot().Sync.Runs; got != runs {
			t.Errorf("%d rounds before, %d after", runs, got)
		}
	})
}
