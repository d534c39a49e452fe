package netns_test

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// A host is killed before it wrote its peers into the cache, and starts while etcd
// is down: its kernel knows them, and no packet is lost. Once etcd is back a peer
// that is gone loses its path, and one that is not keeps it.
func TestKernelKnowsWhatTheCacheLacks(t *testing.T) {
	for _, backend := range []string{"vxlan", "host-gw"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			l := newNetwork(t, 3, configs[backend])
			startContainers(t, l)
			h, alive, gone := l.Hosts[0], l.Hosts[1], l.Hosts[2]
			pings := map[way]*lab.Pinging{}
			for _, w := range []way{{h, alive}, {alive, h}, {h, gone}, {gone, h}} {
				pings[w] = startPing(t, w.from.Container, w.to.Container)
			}
			if err := h.Daemon.Kill(); err != nil {
				t.Fatal(err)
			}
			forgetPeers(t, h)
			if err := gone.Daemon.Kill(); err != nil {
				t.Fatal(err)
			}
			if _, err := l.Client().Delete(within(t, time.Minute), subnetKey(standingOf(t, gone).subnet)); err != nil {
				t.Fatal(err)
			}
			if err := l.Cluster().Stop(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			if err := h.RelaunchDaemon(); err != nil {
				t.Fatal(err)
			}
			st, err := h.WaitReady(within(t, time.Minute), 2)
			if err != nil {
				t.Fatal(err)
			}
			if got := names(st.Problems); !slices.Equal(got, []string{"etcd", "lease"}) {
				t.Errorf("problems with %v, want etcd and lease", got)
			}
			pause(t, 2*hold)
			for w, p := range pings {
				if r := p.Stop(); r.Lost() > 0 || r.Received == 0 {
					t.Errorf("%s: %s", w, r)
				}
			}
			if err := l.Cluster().Start(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			back := time.Now()
			_, err = h.WaitStatus(within(t, time.Minute), "all to be well with one peer", func(s lab.Status) bool {
				return s.Ready && len(s.Peers) == 1 && len(s.Problems) == 0
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("all is well %s after etcd was back", time.Since(back))
			waitNextHost(t, h, gone.Container.Addr(), netip.Addr{}, follow)
			waitNextHost(t, h, alive.Container.Addr(), alive.Addrs[0].Addr(), 0)
		})
	}
}

// forgetPeers takes all peers out of the cache of a host whose daemon has ended.
func forgetPeers(t *testing.T, h *lab.Host) {
	t.Helper()
	path := filepath.Join(h.StateDir(), "cache.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var cache map[string]json.RawMessage
	if err := json.Unmarshal(text, &cache); err != nil {
		t.Fatalf("read %s: %v", path, err)
	}
	cache["peers"] = json.RawMessage("[]")
	if text, err = json.Marshal(cache); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}
