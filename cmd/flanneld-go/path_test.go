package main

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// forwarder is a backend with a data path in user space.
type forwarder struct {
	backend.Backend
	running chan struct{} // holds a token while it runs
	cleaned func(running bool)
}

func (f *forwarder) Run(ctx context.Context) error {
	f.running <- struct{}{}
	<-ctx.Done()
	<-f.running
	return nil
}

func (f *forwarder) Cleanup(context.Context) error {
	f.cleaned(len(f.running) > 0)
	return nil
}

// A data path that fails has closed what it had open. The next Apply opens that, and does
// not wait for its time, nor for a change of peers that waits for its own.
func TestDataPathFailureIsApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.opts.iptablesResync = time.Hour
		h.data.OverwriteConfig(networkConfig)
		h.start()
		defer h.stop()
		h.ready()
		time.Sleep(time.Minute + resyncEvery/2)
		synctest.Wait()
		runs := h.board.Snapshot().Sync.Runs
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go h.loop.runDataPath(ctx, &flaky{})
		synctest.Wait()
		if now := h.board.Snapshot().Sync.Runs; now != runs+1 || h.board.Snapshot().Ready {
			t.Errorf("%d rounds at once, want 1", now-runs)
		}
	})
	l, _ := heirLoop(t)
	l.snap = &subnet.Snapshot{}
	l.path.follow.snap = l.snap
	l.path.down <- struct{}{}
	if l.idle(t.Context(), &wakes{}, time.Hour); l.path.follow.snap != nil {
		t.Error("what is in the kernel is taken for known")
	}
}

// Somebody who keeps undoing what this host does in the kernel holds up no failed data path.
func TestQuarrelDoesNotHoldUpTheDataPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := heirLoop(t)
		l.snap = &subnet.Snapshot{}
		l.quarrel.last, l.quarrel.wait = l.clock.Uptime(), quarrelMax
		l.path.down <- struct{}{}
		began := time.Now()
		if l.drain(t.Context(), &wakes{}); time.Since(began) > 0 {
			t.Errorf("it waited for %s", time.Since(began))
		}
	})
}

// A data path in user space is ended before its device is deleted, which it
// would otherwise report as a failure, and can be started again. It outlives all else.
func TestTakeDownEndsTheDataPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(networkConfig)
		h.start()
		h.ready()
		h.stop()
		l := h.loop
		ctx, cancel := context.WithCancel(t.Context())
		cleanups := 0
		f := &forwarder{Backend: l.backend, running: make(chan struct{}, 1), cleaned: func(running bool) {
			cleanups++
			if running {
				t.Error("cleaned up while it runs")
			}
		}}
		l.backend = f
		for range 2 {
			l.startDataPath(ctx, l.backend)
			l.startDataPath(ctx, l.backend)
			synctest.Wait()
			if len(f.running) != 1 {
				t.Fatal("does not run")
			}
			if err := l.takeDown(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if cleanups != 2 {
			t.Errorf("%d cleanups, want 2", cleanups)
		}
		l.startDataPath(ctx, l.backend)
		cancel()
		if err := l.group.Wait(); err != nil && !errors.Is(err, io.EOF) {
			t.Error(err)
		}
		synctest.Wait()
		if len(f.running) != 1 {
			t.Error("ended with its context: what the process does then costs packets")
		}
		l.endDataPath()
		if len(f.running) != 0 || l.path.stop != nil {
			t.Error("runs after its end")
		}
	})
}

// Of what is taken down nothing is believed to be in place.
func TestTakeDownForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.table, h.tools = &followingTable{}, noVariants{}
		h.data.OverwriteConfig(networkConfig)
		h.start()
		h.ready()
		h.stop()
		l := h.loop
		if p := &l.path; !p.applied || !p.steady || !p.follow.filtered.is(l) {
			t.Fatalf("before: applied %t, steady %t, filtered %t", p.applied, p.steady, p.follow.filtered.is(l))
		}
		if err := l.takeDown(t.Context()); err != nil {
			t.Fatal(err)
		}
		if p := &l.path; p.applied || p.steady || p.follow.filtered.is(l) {
			t.Errorf("after: applied %t, steady %t, filtered %t", p.applied, p.steady, p.follow.filtered.is(l))
		}
	})
}
