package main

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/cmd/internal/statedir"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

// A host from the first start to the stop: no config, a config, peers that come
// and go.
func TestLoopLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.start()
		defer h.stop()

		noConfig := `no network config yet: waiting for key /coreos.com/network/config at http://192.0.2.10:2379; ` +
			`put one with: etcdctl --endpoints=http://192.0.2.10:2379 put /coreos.com/network/config '{"Network":"10.5.0.0/16"}'`
		h.eventually(soon, "waits for a config", func() bool {
			return h.problem(status.ComponentConfig).Message == noConfig && h.board.Snapshot().State == status.StateWaiting
		})
		time.Sleep(time.Hour)
		synctest.Wait()
		if s := h.board.Snapshot(); s.State != status.StateWaiting || s.Ready || len(s.Problems) != 1 {
			t.Errorf("after an hour without a config: %s, ready %t", s.Line(), s.Ready)
		}
		if n := h.log.count("no network config yet"); n != 1 {
			t.Errorf("the missing config was logged %d times, want once", n)
		}

		h.data.OverwriteConfig(networkConfig)
		h.ready()
		s := h.board.Snapshot()
		if s.State != status.StateDegraded || len(s.Problems) != 1 || s.Problems[0].Component != status.ComponentFirewall {
			t.Errorf("state %s, problems %v; want degraded by the firewall alone", s.State, s.Problems)
		}
		own, err := netip.ParsePrefix(s.Lease.Subnet)
		if err != nil || !netip.MustParsePrefix("10.5.0.0/16").Contains(own.Addr()) || own.Bits() != 24 || s.Lease.State != "valid" {
			t.Fatalf("lease %+v", s.Lease)
		}
		bip := daemonconfig.HostAddr(own).String()
		env := "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=" + bip + "\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n"
		if diff := cmp.Diff(env, h.file("run/subnet.env")); diff != "" {
			t.Errorf("subnet.env (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff("{\n  \"bip\": \""+bip+"\",\n  \"mtu\": 1500\n}\n", h.file("docker/daemon.json")); diff != "" {
			t.Errorf("daemon.json (-want +got):\n%s", diff)
		}
		if v, err := h.kernel.Sysctl("net/ipv4/ip_forward"); err != nil || v != "1" {
			t.Errorf("ip_forward %q, %v", v, err)
		}
		saved, err := statedir.Dir(h.opts.stateDir).LoadHost()
		if err != nil || saved.BackendType != "host-gw" || saved.SubnetFile != h.opts.subnetFile || len(saved.Sysctls) != 1 {
			t.Errorf("host.json %+v, %v", saved, err)
		}
		w, err := h.data.Load(t.Context())
		if err != nil || len(w.Leases) != 1 || w.Leases[0].Attrs.Owner != "me" || w.Leases[0].Attrs.PublicIP[0].String() != "198.18.0.1" {
			t.Errorf("store %+v, %v", w.Leases, err)
		}

		h.peer("10.5.200.0-24", "198.18.0.2")
		h.eventually(soon, "a route to the peer", func() bool {
			return cmp.Equal(h.routes(), []string{"10.5.200.0/24 via 198.18.0.2"})
		})
		if diff := cmp.Diff([]status.Peer{{Subnet: "10.5.200.0/24", PublicIP: "198.18.0.2"}}, h.board.Snapshot().Peers); diff != "" {
			t.Errorf("peers (-want +got):\n%s", diff)
		}
		h.data.DeleteKey("10.5.200.0-24")
		h.eventually(2*soon+time.Second, "no route to the peer that is gone", func() bool { return len(h.routes()) == 0 })
	})
}

// A change that a running host cannot follow is refused, said, and forgotten
// when it is taken back; one that it can is followed.
func TestLoopConfigChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		first := h.data.OverwriteConfig(networkConfig)
		h.start()
		defer h.stop()
		h.ready()
		before := h.board.Snapshot().Lease.Subnet
		if h.board.Snapshot().Config.Revision != int64(first) {
			t.Errorf("config revision %d, want %d", h.board.Snapshot().Config.Revision, first)
		}

		h.data.OverwriteConfig(`{"Network":"10.6.0.0/16","SubnetLen":25,"Backend":{"Type":"vxlan"}}`)
		h.eventually(soon, "the change is refused", func() bool {
			p := h.problem(status.ComponentConfig)
			return strings.Contains(p.Message, "changes Network and SubnetLen and Backend: this host keeps that of revision") && !p.Blocking &&
				p.Hint == "systemctl restart flanneld-go"
		})
		h.data.OverwriteConfig(`{"Network":"10.5.0.0/33"}`)
		h.eventually(soon, "the bad config is refused", func() bool {
			p := h.problem(status.ComponentConfig)
			return strings.Contains(p.Message, "is invalid, keeping that of revision") && p.Hint == "flannelctl config set '"+networkConfig+"' puts the former one back"
		})
		h.data.DeleteConfig()
		h.eventually(soon, "the missing config is said", func() bool {
			return strings.Contains(h.problem(status.ComponentConfig).Message, "the network config is gone from /coreos.com/network/config")
		})
		time.Sleep(resync)
		synctest.Wait()
		if s := h.board.Snapshot(); !s.Ready || s.Lease.Subnet != before || s.Config.Revision != int64(first) {
			t.Errorf("%s, ready %t, config revision %d; want %s, ready, %d", s.Line(), s.Ready, s.Config.Revision, before, first)
		}
		last := h.data.OverwriteConfig(`{"Network":"10.5.0.0/16","SubnetMin":"10.5.16.0","Backend":{"Type":"host-gw"}}`)
		h.eventually(soon, "the change is followed", func() bool {
			return h.problem(status.ComponentConfig) == status.Problem{} && h.board.Snapshot().Config.Revision == int64(last)
		})
	})
}

// What others take away comes back.
func TestLoopRepairs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(networkConfig)
		h.peer("10.5.200.0-24", "198.18.0.2")
		h.start()
		defer h.stop()
		h.ready()
		env := h.file("run/subnet.env")

		if err := os.Remove(h.opts.subnetFile); err != nil {
			t.Fatal(err)
		}
		h.eventually(resync, "subnet.env is written again", func() bool { return h.file("run/subnet.env") == env })

		list, err := h.kernel.Routes().List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list {
			if r.Protocol == kernel.Protocol {
				if err := h.kernel.Routes().Delete(t.Context(), []kernel.Route{r}); err != nil {
					t.Fatal(err)
				}
			}
		}
		h.eventually(soon, "the route is back", func() bool { return len(h.routes()) == 1 })
		if err := h.kernel.SetSysctl("net/ipv4/ip_forward", "0"); err != nil {
			t.Fatal(err)
		}
		h.eventually(resync, "forwarding is on again", func() bool {
			v, err := h.kernel.Sysctl("net/ipv4/ip_forward")
			return err == nil && v == "1"
		})
	})
}

// A subnet.env that cannot be written is visible, keeps the host from being
// ready, and is written as soon as it can be. Traffic passes meanwhile.
func TestLoopUnwritableSubnetFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(networkConfig)
		h.peer("10.5.200.0-24", "198.18.0.2")
		h.writeFile("run", "in the way")
		h.start()
		defer h.stop()
		h.eventually(soon, "the file is a problem", func() bool { return h.problem(status.ComponentFiles).Blocking })
		s := h.board.Snapshot()
		if s.Ready || s.State != status.StateDegraded || len(h.routes()) != 1 {
			t.Errorf("%s, ready %t, routes %v; want degraded, not ready, with the peer's route", s.Line(), s.Ready, h.routes())
		}
		if p := h.problem(status.ComponentFiles); !strings.Contains(p.Message, h.path("run")) {
			t.Errorf("problem %q does not name the path", p.Message)
		}
		var failed []string
		for _, f := range s.Files {
			if f.State == "failed" {
				failed = append(failed, f.Path)
			}
		}
		if !cmp.Equal(failed, []string{h.opts.subnetFile}) {
			t.Errorf("failed files %v", failed)
		}
		if h.file("docker/daemon.json") == "" {
			t.Error("daemon.json was not written because subnet.env was not")
		}
		if err := os.Remove(h.path("run")); err != nil {
			t.Fatal(err)
		}
		h.eventually(resync, "ready", func() bool { return h.board.Snapshot().Ready })
		if h.file("run/subnet.env") == "" || h.problem(status.ComponentFiles) != (status.Problem{}) {
			t.Error("ready without the file, or with its problem")
		}
		if h.log.count("msg=problem component=files") != 1 || h.log.count("msg=recovered component=files") != 1 {
			t.Error("the problem was not logged once when it came and once when it went")
		}
	})
}

// What is not JSON is somebody's work: it is named, and left as it is.
func TestLoopBrokenDockerConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(networkConfig)
		const broken = "{\n  \"mtu\": 1400,\n}\n"
		h.writeFile("docker/daemon.json", broken)
		h.start()
		defer h.stop()
		h.ready()
		h.eventually(soon, "the file is a problem", func() bool {
			p := h.problem(status.ComponentDocker)
			return strings.Contains(p.Message, h.path("docker/daemon.json")) && !p.Blocking
		})
		time.Sleep(time.Minute)
		if got := h.file("docker/daemon.json"); got != broken {
			t.Errorf("daemon.json is now %q", got)
		}
		h.writeFile("docker/daemon.json", "{\"debug\": true}\n")
		h.eventually(resync, "daemon.json has our keys", func() bool {
			return strings.Contains(h.file("docker/daemon.json"), `"bip"`) && h.problem(status.ComponentDocker) == status.Problem{}
		})
		if !strings.Contains(h.file("docker/daemon.json"), `"debug": true`) {
			t.Errorf("daemon.json lost a key of others: %s", h.file("docker/daemon.json"))
		}
	})
}

// A docker0 that has another subnet is said until Docker was restarted.
func TestLoopDockerBridgeDiffers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(networkConfig)
		bridge := h.kernel.Plug(kernel.Link{Name: "docker0", MTU: 1500}, netip.MustParsePrefix("172.17.0.1/16"))
		h.start()
		defer h.stop()
		h.ready()
		own := daemonconfig.HostAddr(netip.MustParsePrefix(h.board.Snapshot().Lease.Subnet))
		want := "docker0 has not " + own.String() + ", this host's subnet: Docker must be restarted for its containers to be reached"
		h.eventually(soon, "docker0 is a problem", func() bool {
			p := h.problem(status.ComponentDocker)
			return p.Message == want && p.Hint == "systemctl restart docker" && !p.Blocking
		})
		if err := h.kernel.Addrs(bridge.Index).Put(t.Context(), []kernel.Addr{{Link: bridge.Index, Prefix: own}}); err != nil {
			t.Fatal(err)
		}
		h.eventually(soon, "no problem any more", func() bool { return h.problem(status.ComponentDocker) == status.Problem{} })
	})
}

// Without etcd a host starts from its cache, says so, and follows etcd again
// when that is back.
func TestLoopStartsFromCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(networkConfig)
		h.peer("10.5.200.0-24", "198.18.0.2")
		h.start()
		h.ready()
		h.eventually(resync, "the peer is reached", func() bool { return len(h.routes()) == 1 })
		subnet := h.board.Snapshot().Lease.Subnet
		h.stop()
		if len(h.routes()) != 1 {
			t.Error("the stop took the route away")
		}

		h.store = h.data.Open(memstore.Options{})
		h.store.SetUnavailable(errors.New("etcd is down"))
		h.kernel.ResetOps()
		h.start()
		defer h.stop()
		h.eventually(cacheAfter+soon, "the host runs from its cache", func() bool {
			s := h.board.Snapshot()
			return s.Lease.Subnet == subnet && s.Ready && len(s.Peers) == 1
		})
		s := h.board.Snapshot()
		if s.Etcd.Connected || !strings.Contains(h.problem(status.ComponentEtcd).Message, "etcd is down") {
			t.Errorf("etcd connected %t, problem %+v", s.Etcd.Connected, h.problem(status.ComponentEtcd))
		}
		if p := h.problem(status.ComponentLease); !strings.HasPrefix(p.Message, "lease of "+subnet) || !strings.Contains(p.Message, " unproven: ") || p.Blocking {
			t.Errorf("lease %+v, want unproven", p)
		}
		for _, op := range h.kernel.Ops() {
			if op.Kind == "route" {
				t.Errorf("the restart touched a route: %s", op)
			}
		}
		h.store.SetUnavailable(nil)
		h.eventually(time.Minute, "etcd is followed again", func() bool {
			s := h.board.Snapshot()
			return s.Etcd.Connected && s.Lease.State == "valid" && len(s.Problems) == 1
		})
		if got := h.board.Snapshot().Lease.Subnet; got != subnet {
			t.Errorf("subnet %s, want the former %s", got, subnet)
		}
	})
}

// Without etcd and without a cache there is nothing to do but to wait.
func TestLoopWaitsForEtcd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(networkConfig)
		h.store.SetUnavailable(errors.New("etcd is down"))
		h.start()
		defer h.stop()
		h.eventually(cacheAfter+soon, "waits", func() bool {
			return h.problem(status.ComponentConfig).Message == "waiting for etcd: there is no config yet" &&
				h.problem(status.ComponentEtcd).Hint == "etcdctl --endpoints=http://192.0.2.10:2379 endpoint health"
		})
		h.store.SetUnavailable(nil)
		h.eventually(time.Minute, "ready", func() bool { return h.board.Snapshot().Ready })
	})
}

// A backend that the config no longer names is removed at the next start.
func TestLoopChangeOfBackend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(`{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`)
		h.start()
		h.ready()
		if diff := cmp.Diff([]string{"flannel.1"}, h.board.Snapshot().Backend.Devices); diff != "" {
			t.Errorf("devices (-want +got):\n%s", diff)
		}
		if _, err := h.kernel.LinkByName(t.Context(), "flannel.1"); err != nil {
			t.Error(err)
		}
		h.stop()
		h.data.OverwriteConfig(networkConfig)
		h.start()
		defer h.stop()
		h.ready()
		if _, err := h.kernel.LinkByName(t.Context(), "flannel.1"); !errors.Is(err, kernel.ErrNotFound) {
			t.Errorf("the former backend's device: %v, want ErrNotFound", err)
		}
	})
}

// A peer whose route the kernel refuses is named, and costs nobody else
// anything.
func TestLoopPeerWithoutPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(networkConfig)
		h.peer("10.5.200.0-24", "198.18.0.2")
		h.peer("10.5.201.0-24", "203.0.113.7")
		h.start()
		defer h.stop()
		h.ready()
		h.eventually(soon, "the peer is a problem", func() bool {
			p := h.problem(status.ComponentPeers)
			return strings.HasPrefix(p.Message, "1 of 2 peers have no path: peer 10.5.201.0/24 at 203.0.113.7: ") && p.Hint == "" && !p.Blocking
		})
		if diff := cmp.Diff([]string{"10.5.200.0/24 via 198.18.0.2"}, h.routes()); diff != "" {
			t.Errorf("routes (-want +got):\n%s", diff)
		}
		h.data.DeleteKey("10.5.201.0-24")
		h.eventually(3*soon, "no problem any more", func() bool { return h.problem(status.ComponentPeers) == status.Problem{} })
	})
}

// The heartbeat stands still with the loop: whoever asks must not be told that
// all is well.
func TestLoopHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(networkConfig)
		h.start()
		defer h.stop()
		h.ready()
		health := health{h.board, h.loop.beat.last, h.loop.clock.Uptime}
		time.Sleep(10 * time.Minute)
		if err := health.alive(); err != nil {
			t.Errorf("a loop at rest: %v", err)
		}
		release := make(chan struct{})
		h.kernel.OnOp(func(kerneltest.Op) error {
			<-release
			return nil
		})
		time.Sleep(aliveFor + resync)
		err := health.alive()
		close(release)
		if err == nil || !strings.HasPrefix(err.Error(), "the loop has not finished a round for 1m") {
			t.Errorf("a loop that hangs: %v", err)
		}
		h.eventually(soon, "alive again", func() bool { return health.alive() == nil })
	})
}

// A repair is said; what follows from news is not.
func TestLoopSaysWhatItRepairs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(networkConfig)
		h.start()
		defer h.stop()
		h.ready()
		h.peer("10.5.77.0-24", "198.18.0.7")
		h.eventually(soon, "a route", func() bool { return len(h.routes()) == 1 })
		if n := h.log.count("repaired"); n != 0 {
			t.Errorf("a peer's arrival is called a repair")
		}
		route := kernel.Route{Dst: netip.MustParsePrefix("10.5.77.0/24"), Gateway: netip.MustParseAddr("198.18.0.7"), Link: h.eth0.Index, Protocol: kernel.Protocol}
		if err := h.kernel.Routes().Delete(t.Context(), []kernel.Route{route}); err != nil {
			t.Fatal(err)
		}
		h.eventually(soon, "the route again", func() bool { return len(h.routes()) == 1 })
		if n := h.log.count("repaired"); n != 1 {
			t.Errorf("%d repairs in the log, want 1", n)
		}
	})
}

// A round that failed is tried again ever later, but never later than the
// firewall is to be checked.
func TestPause(t *testing.T) {
	l := newLoop(&daemon{clock: bubbleClock{time.Now()}, opts: options{iptablesResync: 5 * time.Second}}, nil, nil)
	var got []time.Duration
	for range 7 {
		got = append(got, l.pause(false))
	}
	want := []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second}
	if !slices.Equal(got, want) {
		t.Errorf("pauses %v, want %v", got, want)
	}
	if complete := l.pause(true); complete != 5*time.Second {
		t.Errorf("pause %s after a complete round, want 5s", complete)
	}
	if again := l.pause(false); again != retryMin {
		t.Errorf("pause %s after the first failure since, want %s", again, retryMin)
	}
}
