package main

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// A host that starts among many, in an etcd that has little time for each, is ready at
// once and learns of the others a little later, all at a time. One that starts alone, or
// in an etcd that is quick, does so from the first moment.
func TestStartInACrowd(t *testing.T) {
	for name, tc := range map[string]struct {
		others int
		takes  time.Duration
		waits  bool
	}{
		"alone in a slow etcd":     {1, 2 * time.Second, false},
		"among many in a slow one": {20, 2 * time.Second, true},
		"among many in a fast one": {20, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				h.data.OverwriteConfig(networkConfig)
				h.creating = func() {
					h.creating = nil
					for n := range tc.others {
						h.peer(fmt.Sprintf("10.5.%d.0-24", 100+n), fmt.Sprintf("198.18.0.%d", 100+n))
					}
					time.Sleep(tc.takes)
				}
				h.start()
				defer h.stop()
				h.ready()
				time.Sleep(tc.takes / 2)
				synctest.Wait()
				if learned := len(h.routes()) == tc.others; learned == tc.waits {
					t.Errorf("%d of %d others are known right after the start", len(h.routes()), tc.others)
				}
				h.eventually(10*time.Second, "all others", func() bool { return len(h.routes()) == tc.others })
			})
		})
	}
}
