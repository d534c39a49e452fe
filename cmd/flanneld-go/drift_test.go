package main

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// watchedTools are a firewall that others change.
type watchedTools struct {
	noTools
	changes chan struct{}
}

func (w watchedTools) Changes(ctx context.Context) (<-chan struct{}, error) {
	context.AfterFunc(ctx, func() { close(w.changes) })
	return w.changes, nil
}

// What others do to the firewall is looked at at once, and not at the resync.
func TestFirewallDriftMakesARound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		tools := watchedTools{changes: make(chan struct{})}
		h.tools = tools
		h.data.OverwriteConfig(networkConfig)
		h.start()
		defer h.stop()
		h.ready()
		time.Sleep(time.Minute) // what failed is tried every 5 s by now
		runs := func() uint64 {
			synctest.Wait()
			return h.board.Snapshot().Sync.Runs
		}
		before := runs()
		h.eventually(time.Minute, "the next round", func() bool { return runs() > before })
		for range 3 {
			before = runs()
			tools.changes <- struct{}{}
			if got := runs(); got != before+1 {
				t.Errorf("a change makes %d rounds at once, want 1", got-before)
			}
			time.Sleep(time.Second)
			if got := runs(); got != before+1 {
				t.Errorf("%d rounds in the second after a change, want 1", got-before)
			}
		}
	})
}
