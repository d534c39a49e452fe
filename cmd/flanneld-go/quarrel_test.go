package main

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestQuarrel(t *testing.T) {
	var q quarrel
	now := time.Hour
	repair := func(after time.Duration) bool {
		now += after
		return q.repaired(now)
	}
	// One a second is no quarrel, however long it lasts.
	for range 100 {
		if repair(time.Second) || q.settle(now) != settle {
			t.Fatal("a repair each second is a quarrel")
		}
	}
	began := 0
	for i := range 12 {
		if repair(20 * time.Millisecond) {
			began = i
		}
	}
	if began != quarrelBurst-1 {
		t.Errorf("it begins with repair %d, want %d", began, quarrelBurst-1)
	}
	var waits []time.Duration
	for range 4 {
		repair(q.settle(now))
		waits = append(waits, q.settle(now))
	}
	if diff := cmp.Diff([]time.Duration{5 * time.Second, 5 * time.Second, 5 * time.Second, 5 * time.Second}, waits); diff != "" {
		t.Errorf("waits (-want +got):\n%s", diff)
	}
	for after, want := range map[time.Duration]time.Duration{time.Second: quarrelMax - time.Second, quarrelMax - settle: settle, quarrelMax: settle, quarrelOver - 1: settle} {
		if got := q.settle(now + after); got != want {
			t.Errorf("%s after a repair the next waits %s, want %s", after, got, want)
		}
	}
	if q.ended(now + quarrelOver - 1) {
		t.Error("it ends too early")
	}
	if !q.ended(now+quarrelOver) || q.settle(now+quarrelOver) != settle || q.ended(now+quarrelOver) {
		t.Errorf("it does not end once: %+v", q)
	}
}

// Somebody deletes a route as often as it is put back: it is not for ever put back at
// once, nor is all of it logged. Peers that come meanwhile do not wait for it.
func TestQuarrelIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(networkConfig)
		h.start()
		defer h.stop()
		h.ready()
		h.peer("10.5.200.0-24", "198.18.0.2")
		has := func(want ...string) func() bool {
			return func() bool { return cmp.Equal(h.routes(), want) }
		}
		first, second := "10.5.200.0/24 via 198.18.0.2", "10.5.201.0/24 via 198.18.0.3"
		h.eventually(soon, "a route", has(first))
		time.Sleep(time.Minute)
		const lasts = 2 * time.Minute
		deleted := 0
		for began := time.Now(); time.Since(began) < lasts; deleted++ {
			synctest.Wait()
			h.deleteRoutes()
			h.eventually(2*quarrelMax, "the route again", has(first))
		}
		if least, most := int(lasts/quarrelMax), int(lasts/quarrelMax)+20; deleted < least || deleted > most {
			t.Errorf("%d repairs in %s, want %d to %d", deleted, lasts, least, most)
		}
		if n := h.log.count(`repaired what somebody else changed in the kernel" put=1 deleted=0 events=route`); n != quarrelBurst {
			t.Errorf("%d repairs logged, want %d:\n%s", n, quarrelBurst, h.log.buf.String())
		}
		const slow, quick = "repairs are slowed down", "repairs are made at once again"
		if n := h.log.count(slow); n != 1 {
			t.Errorf("said %d times that %s", n, slow)
		}
		h.deleteRoutes()
		synctest.Wait()
		h.peer("10.5.201.0-24", "198.18.0.3")
		h.eventually(100*time.Millisecond, "a peer amid the quarrel", has(first, second))
		time.Sleep(quarrelMax + time.Second)
		h.deleteRoutes()
		h.eventually(100*time.Millisecond, "the first repair for a while", has(first, second))
		h.deleteRoutes()
		time.Sleep(quarrelMax / 2)
		synctest.Wait()
		if len(h.routes()) != 0 {
			t.Error("the next repair is made at once")
		}
		h.eventually(2*quarrelOver, "peace", func() bool { return h.log.count(quick) == 1 })
		if line := h.line(quick); !strings.Contains(line, "repairs=") {
			t.Error(line)
		}
		h.deleteRoutes()
		h.eventually(100*time.Millisecond, "the routes at once", has(first, second))
	})
}

// driftTools tell of changes of the firewall.
type driftTools struct {
	noTools
	changes chan struct{}
}

func (d driftTools) Changes(ctx context.Context) (<-chan struct{}, error) {
	context.AfterFunc(ctx, func() { close(d.changes) })
	return d.changes, nil
}

// A quarrel over routes does not hold up the firewall.
func TestQuarrelLeavesTheFirewallAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, tools := newHost(t), driftTools{changes: make(chan struct{})}
		h.tools = tools
		h.data.OverwriteConfig(networkConfig)
		h.peer("10.5.200.0-24", "198.18.0.2")
		h.start()
		defer h.stop()
		h.ready()
		has := func() bool { return len(h.routes()) == 1 }
		for h.log.count("repairs are slowed down") == 0 {
			h.deleteRoutes()
			h.eventually(2*quarrelMax, "the route again", has)
		}
		for range 3 { // until they are as slow as can be
			h.deleteRoutes()
			h.eventually(2*quarrelMax, "the route again", has)
		}
		h.deleteRoutes()
		synctest.Wait()
		if has() {
			t.Fatal("repaired at once")
		}
		tools.changes <- struct{}{}
		h.eventually(100*time.Millisecond, "a round for the firewall", has)
	})
}

// deleteRoutes is somebody else.
func (h *testHost) deleteRoutes() {
	h.t.Helper()
	table := h.kernel.Routes()
	routes, err := table.List(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	if err := table.Delete(h.t.Context(), routes); err != nil {
		h.t.Fatal(err)
	}
}
