package main

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend/firewall"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/subnet"
)

const (
	vxlanConfig = `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`
	// promise is what docs/operations.md says of a host that uses what etcd
	// gives to another.
	promise = 5 * time.Second
)

// lose gives this host's subnet to another owner.
func (h *testHost) lose() (prefix, key string) {
	h.t.Helper()
	prefix, key = h.subnet()
	h.data.DeleteKey(key)
	h.owned(key, "198.18.0.9", "other")
	return prefix, key
}

// uses says by what in kernel and files this host uses a subnet.
func (h *testHost) uses(prefix string) []string {
	h.t.Helper()
	p := netip.MustParsePrefix(prefix)
	var by []string
	for _, a := range h.addrs("flannel.1") {
		if p.Contains(netip.MustParsePrefix(a).Addr()) {
			by = append(by, "address "+a)
		}
	}
	for _, name := range []string{"run/subnet.env", "docker/daemon.json", "run/docker"} {
		if strings.Contains(h.file(name), daemonconfig.HostAddr(p).String()) {
			by = append(by, name)
		}
	}
	return by
}

// Policy renumber: kernel and files follow to another subnet, and one line says
// all that an operator must know.
func TestRenumber(t *testing.T) {
	tests := []struct {
		name, docker string
		opts         func(*testHost)
	}{
		{
			name: "daemon.json", docker: `docker="must be restarted, its containers have the former addresses until then: systemctl restart docker"`,
			opts: func(*testHost) {},
		},
		{
			name: "options file", docker: `docker="must be restarted, its containers have the former addresses until then: systemctl restart docker"`,
			opts: func(h *testHost) { h.opts.dockerConfig, h.opts.dockerOptions = "", h.path("run/docker") },
		},
		{
			name: "no docker", docker: `docker="is not configured by us: restart what reads the subnet file"`,
			opts: func(h *testHost) { h.opts.dockerConfig = "" },
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				tt.opts(h)
				h.data.OverwriteConfig(vxlanConfig)
				h.start()
				defer h.stop()
				h.ready()
				if by := h.uses(h.board.Snapshot().Lease.Subnet); len(by) == 0 {
					t.Fatal("nothing uses the subnet")
				}
				former, _ := h.lose()
				h.eventually(promise, "another subnet in use", func() bool {
					now, _ := h.subnet()
					return now != former && h.board.Snapshot().Ready && len(h.uses(former)) == 0 && len(h.uses(now)) > 1
				})
				now, _ := h.subnet()
				line := h.line("msg=renumbered")
				for _, part := range []string{"former=" + former, "subnet=" + now, `owner_of_former="node other at 198.18.0.9"`, tt.docker} {
					if !strings.Contains(line, part) {
						t.Errorf("%s not in %s", part, line)
					}
				}
			})
		})
	}
}

// Another subnet is one that overlaps nothing which this host has by then.
func TestRenumberBesideNewRoutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(vxlanConfig)
		h.start()
		defer h.stop()
		h.ready()
		former, _ := h.subnet()
		next := netip.MustParsePrefix(former).Addr().As4()
		next[2]++
		vpn := netip.PrefixFrom(netip.AddrFrom4(next), 24)
		h.kernel.Plug(kernel.Link{Name: "wg0", MTU: 1420}, daemonconfig.HostAddr(vpn))
		h.lose()
		h.eventually(promise, "another subnet", func() bool {
			now, _ := h.subnet()
			return now != former && h.board.Snapshot().Ready
		})
		if now, _ := h.subnet(); now == vpn.String() {
			t.Errorf("leased %s, which wg0 has", now)
		}
	})
}

// Until Docker is restarted, docker0 has the former subnet and keeps the path to who
// has it now from being made: that is said, with what to do.
func TestRenumberedBesideDocker(t *testing.T) {
	tests := []struct {
		name string
		ours bool
		hint string
	}{
		{"configured by us", true, "systemctl restart docker"},
		{"by somebody else", false, "give Docker the subnet in SUBNETFILE, then systemctl restart docker"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				if !tt.ours {
					h.opts.dockerConfig = ""
				}
				h.data.OverwriteConfig(networkConfig)
				h.start()
				h.ready()
				hostAddr := func() (string, netip.Prefix) {
					own, _ := h.subnet()
					return own, daemonconfig.HostAddr(netip.MustParsePrefix(own))
				}
				former, address := hostAddr()
				h.stop()
				docker0 := h.kernel.Plug(kernel.Link{Name: dockerBridge, Type: "bridge", MTU: 1500}, address)
				h.lose()
				h.start()
				defer h.stop()
				h.ready()
				now, next := hostAddr()
				want := "1 of 1 peers have no path: peer " + former + " at 198.18.0.9: address " + address.String() +
					" of docker0 is in the way until Docker is restarted with this host's subnet, " + now
				h.eventually(soon, "docker0 is in the way", func() bool {
					p := h.problem(status.ComponentPeers)
					return p.Message == want && p.Hint == strings.Replace(tt.hint, "SUBNETFILE", h.opts.subnetFile, 1)
				})
				addrs := h.kernel.Addrs(docker0.Index)
				had, has := []kernel.Addr{{Link: docker0.Index, Prefix: address}}, []kernel.Addr{{Link: docker0.Index, Prefix: next}}
				if err := errors.Join(addrs.Delete(t.Context(), had), addrs.Put(t.Context(), has)); err != nil {
					t.Fatal(err)
				}
				h.eventually(resync, "a path", func() bool { return len(h.routes()) == 1 && h.problem(status.ComponentPeers) == status.Problem{} })
			})
		})
	}
}

// While kernel and files are still those of the former subnet, nobody is told
// that the host is ready with the new one.
func TestRenumberIsNotReadyBetween(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(vxlanConfig)
		h.start()
		defer h.stop()
		h.ready()
		former, _ := h.subnet()
		var ready []string
		h.kernel.OnOp(func(op kerneltest.Op) error {
			if s := h.board.Snapshot(); op.Verb != "list" && s.Ready && s.Lease.Subnet != former {
				ready = append(ready, op.String())
			}
			return nil
		})
		h.lose()
		h.eventually(promise, "another subnet", func() bool {
			now, _ := h.subnet()
			return now != former && h.board.Snapshot().Ready
		})
		h.kernel.OnOp(nil)
		if len(ready) > 0 {
			t.Errorf("ready at %s", ready)
		}
	})
}

// Policy renumber with no other subnet to be had: the host lets go of what is
// another's all the same, and takes the first subnet that becomes free.
func TestRenumberWithoutRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(`{"Network":"10.5.0.0/16","SubnetMin":"10.5.16.0","SubnetMax":"10.5.17.0","Backend":{"Type":"vxlan"}}`)
		h.start()
		defer h.stop()
		h.ready()
		former, key := h.subnet()
		free := map[string]string{"10.5.16.0-24": "10.5.17.0-24", "10.5.17.0-24": "10.5.16.0-24"}[key]
		h.owned(free, "198.18.0.2", "second")
		h.lose()
		time.Sleep(renumberGrace + 500*time.Millisecond)
		synctest.Wait()
		if by := h.uses(former); len(by) > 0 {
			t.Errorf("still in use: %v", by)
		}
		s := h.board.Snapshot()
		if s.Ready || s.State != status.StateWaiting || s.Lease.State != "conflict" {
			t.Errorf("%s, ready %t, lease %s; want waiting, not ready, conflict", s.Line(), s.Ready, s.Lease.State)
		}
		if p := h.problem(status.ComponentLease); !p.Blocking || !strings.HasPrefix(p.Message, "lease of "+former+" is in conflict, data path and files are withdrawn: ") {
			t.Errorf("problem %+v", p)
		}
		h.data.DeleteKey(free)
		h.eventually(time.Minute, "the free one", func() bool {
			now, _ := h.subnet()
			return now == strings.Replace(free, "-", "/", 1) && h.board.Snapshot().Ready && len(h.uses(now)) == 3
		})
	})
}

// Policy fence: nothing of a subnet that another host holds is left, and all of
// it comes back by itself.
func TestFence(t *testing.T) {
	for name, opts := range map[string]func(*testHost){
		"daemon.json":  func(*testHost) {},
		"options file": func(h *testHost) { h.opts.dockerConfig, h.opts.dockerOptions = "", h.path("run/docker") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				opts(h)
				h.opts.onConflict = subnet.Fence
				h.data.OverwriteConfig(vxlanConfig)
				h.peer("10.5.200.0-24", "198.18.0.2")
				h.writeFile("docker/daemon.json", "{\n  \"debug\": true\n}\n")
				h.start()
				defer h.stop()
				h.ready()
				files := func() [3]string {
					return [3]string{h.file("run/subnet.env"), h.file("docker/daemon.json"), h.file("run/docker")}
				}
				before := files()
				paths := []status.DataPath{h.board.Snapshot().Backend.DataPath}
				former, key := h.lose()
				h.eventually(promise, "all of it is withdrawn", func() bool {
					_, err := h.kernel.LinkByName(t.Context(), "flannel.1")
					return errors.Is(err, kernel.ErrNotFound) && len(h.routes()) == 0 && h.problem(status.ComponentLease).Blocking
				})
				if diff := cmp.Diff([3]string{"", "{\n  \"debug\": true\n}\n", ""}, files()); diff != "" {
					t.Errorf("files (-want +got):\n%s", diff)
				}
				s := h.board.Snapshot()
				if s.Ready || s.State != status.StateWaiting || !strings.HasPrefix(h.problem(status.ComponentLease).Message, "lease of "+former+" is in conflict, data path and files are withdrawn: node other at 198.18.0.9") {
					t.Errorf("%s, ready %t", s.Line(), s.Ready)
				}
				paths = append(paths, s.Backend.DataPath)
				if got, want := h.problem(status.ComponentLease).Hint, "systemctl restart flanneld-go takes another subnet; flannelctl release "+former+" --yes gives this one back, if its holder is gone"; got != want {
					t.Errorf("try: %s\nwant %s", got, want)
				}
				for _, f := range s.Files {
					if f.State != fileWithdrawn {
						t.Errorf("file %+v, want it withdrawn", f)
					}
				}
				h.kernel.ResetOps()
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				if ops := h.kernel.Ops(); len(ops) > 0 {
					t.Errorf("fenced, and touches the kernel: %v", ops)
				}
				h.data.DeleteKey(key)
				h.eventually(promise, "all of it is back", func() bool {
					now, _ := h.subnet()
					return now == former && h.board.Snapshot().Ready && len(h.addrs("flannel.1")) == 1
				})
				if diff := cmp.Diff(before, files()); diff != "" {
					t.Errorf("files (-before +after):\n%s", diff)
				}
				paths = append(paths, h.board.Snapshot().Backend.DataPath)
				if diff := cmp.Diff([]status.DataPath{status.PathApplied, status.PathWithdrawn, status.PathApplied}, paths); diff != "" {
					t.Errorf("how the data path is said to stand (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// A fenced host that is started again without etcd remembers that the subnet was
// another's, and starts nothing on it.
func TestFencedStartWithoutEtcd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.opts.onConflict = subnet.Fence
		h.data.OverwriteConfig(vxlanConfig)
		h.start()
		h.ready()
		former, key := h.lose()
		h.eventually(promise, "withdrawn", func() bool { return len(h.uses(former)) == 0 })
		h.stop()
		h.store.SetUnavailable(errors.New("etcd is down"))
		h.start()
		defer h.stop()
		h.eventually(cacheAfter+soon, "waits for etcd", func() bool {
			return strings.HasPrefix(h.problem(status.ComponentLease).Message, "waiting for etcd: this host's former subnet "+former+" is not its own any more: lease of "+former+" is in conflict")
		})
		time.Sleep(time.Minute)
		if by := h.uses(former); len(by) > 0 {
			t.Errorf("in use: %v", by)
		}
		if path := h.board.Snapshot().Backend.DataPath; path != status.PathPending {
			t.Errorf("data path %s, want %s", path, status.PathPending)
		}
		h.data.DeleteKey(key)
		h.store.SetUnavailable(nil)
		h.eventually(time.Minute, "its former subnet", func() bool {
			now, _ := h.subnet()
			return now == former && h.board.Snapshot().Ready
		})
	})
}

// Policy keep: everything stays, the files too, and it is said once.
func TestKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.opts.onConflict = subnet.Keep
		h.data.OverwriteConfig(vxlanConfig)
		h.start()
		defer h.stop()
		h.ready()
		used := h.uses(h.board.Snapshot().Lease.Subnet)
		former, key := h.lose()
		h.eventually(promise, "the conflict is a problem", func() bool {
			p := h.problem(status.ComponentLease)
			return p.Blocking && strings.HasPrefix(p.Message, "lease of "+former+" is in conflict: node other at 198.18.0.9")
		})
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if diff := cmp.Diff(used, h.uses(former)); diff != "" || len(used) != 3 {
			t.Errorf("in use (-before +after):\n%s", diff)
		}
		if s := h.board.Snapshot(); s.Ready || s.Lease.State != "conflict" || !s.Lease.Expires.IsZero() {
			t.Errorf("ready %t, lease %+v; want not ready, conflict, no end of another's lease", s.Ready, s.Lease)
		}
		// The key was gone for a moment, which may have been seen, too.
		h.line(`component=lease error="lease of ` + former + " is in conflict")
		h.data.DeleteKey(key)
		h.eventually(promise, "ready again", func() bool { return h.board.Snapshot().Ready })
	})
}

// What a stopped daemon left is for a subnet that another host leased meanwhile,
// and no other is free: a start that can lease nothing takes it away.
func TestStartWithoutRoomWithdrawsWhatWasLeft(t *testing.T) {
	for _, policy := range []subnet.OnConflict{subnet.Renumber, subnet.Fence, subnet.Keep} {
		t.Run(policy.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				h.opts.onConflict = policy
				h.data.OverwriteConfig(`{"Network":"10.5.0.0/16","SubnetMin":"10.5.16.0","SubnetMax":"10.5.16.0","Backend":{"Type":"vxlan"}}`)
				h.start()
				h.ready()
				h.stop()
				former, key := h.lose()
				h.start()
				defer h.stop()
				time.Sleep(promise)
				synctest.Wait()
				if by := h.uses(former); (len(by) > 0) != (policy == subnet.Keep) {
					t.Errorf("in use: %v", by)
				}
				p := h.problem(status.ComponentLease)
				said := strings.Contains(p.Message, "the former subnet is node other at 198.18.0.9's, what was left of it is withdrawn")
				if !p.Blocking || said == (policy == subnet.Keep) {
					t.Errorf("problem %+v", p)
				}
				h.data.DeleteKey(key)
				h.eventually(time.Minute, "its former subnet", func() bool { return h.board.Snapshot().Ready && len(h.uses(former)) == 3 })
			})
		})
	}
}

// stuckTools are a firewall whose lock somebody else holds.
type stuckTools struct {
	noTools
	stuck chan struct{}
}

func (s stuckTools) Variants(ctx context.Context, _ subnet.Family) ([]firewall.Variant, error) {
	select {
	case <-s.stuck:
		<-ctx.Done()
		return nil, ctx.Err()
	default:
		return nil, firewall.ErrNoTools
	}
}

// A round that hangs in the firewall's tools does not keep a host on another's
// subnet.
func TestConflictEndsAHangingRound(t *testing.T) {
	for _, policy := range []subnet.OnConflict{subnet.Fence, subnet.Renumber} {
		t.Run(policy.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				h.opts.onConflict = policy
				tools := stuckTools{stuck: make(chan struct{})}
				h.tools = tools
				h.data.OverwriteConfig(vxlanConfig)
				h.start()
				defer h.stop()
				h.ready()
				close(tools.stuck)
				time.Sleep(resync)
				runs := h.board.Snapshot().Sync.Runs
				time.Sleep(resync)
				if again := h.board.Snapshot().Sync.Runs; again != runs {
					t.Fatalf("%d rounds since the firewall hangs", again-runs)
				}
				former, _ := h.lose()
				h.eventually(promise, "not in use", func() bool { return len(h.uses(former)) == 0 })
			})
		})
	}
}

// A withdrawal that fails in part says so, and is tried until it is whole, with
// pauses.
func TestWithdrawalIsTriedAgain(t *testing.T) {
	for _, policy := range []subnet.OnConflict{subnet.Fence, subnet.Renumber} {
		t.Run(policy.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				h.opts.onConflict = policy
				h.data.OverwriteConfig(`{"Network":"10.5.0.0/16","SubnetMin":"10.5.16.0","SubnetMax":"10.5.16.0","Backend":{"Type":"vxlan"}}`)
				h.start()
				defer h.stop()
				h.ready()
				memory := h.file("state/docker.json")
				h.writeFile("state/docker.json", "{")
				former, _ := h.lose()
				h.eventually(promise, "the failure is said", func() bool {
					return strings.Contains(h.problem(status.ComponentLease).Message, h.path("state/docker.json"))
				})
				if diff := cmp.Diff([]string{"docker/daemon.json"}, h.uses(former)); diff != "" {
					t.Errorf("in use (-want +got):\n%s", diff)
				}
				runs := h.board.Snapshot().Sync.Runs
				time.Sleep(time.Minute)
				if n := h.board.Snapshot().Sync.Runs - runs; n > 60 {
					t.Errorf("%d rounds in a minute, want pauses", n)
				}
				h.writeFile("state/docker.json", memory)
				h.eventually(resync, "not in use", func() bool { return len(h.uses(former)) == 0 })
				if strings.Contains(h.problem(status.ComponentLease).Message, "docker.json") {
					t.Errorf("problem %+v", h.problem(status.ComponentLease))
				}
			})
		})
	}
}

// A lease that nobody keeps any more changes nothing on the host: what the end of
// its keeper means is decided when the process departs.
func TestRoundAfterTheKeeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(vxlanConfig)
		h.start()
		h.ready()
		h.stop()
		h.loop.lease.withdrawn = true
		if err := h.loop.takeLease(t.Context()); err == nil || weigh(vital, err) != vital || !strings.Contains(err.Error(), " is no longer kept: ") {
			t.Errorf("error %v; want one that ends the round", err)
		}
		if !h.loop.lease.withdrawn {
			t.Error("what was withdrawn would come back")
		}
	})
}

// No pause outlasts the grace, and none is cut short behind it.
func TestInGrace(t *testing.T) {
	tests := []struct {
		name      string
		policy    subnet.OnConflict
		since     time.Duration // of the conflict; 0: there is none
		withdrawn bool
		want      time.Duration
	}{
		{name: "no conflict", want: retryMax},
		{name: "it begins", since: time.Millisecond, want: renumberGrace - time.Millisecond},
		{name: "nearly over", since: renumberGrace - time.Millisecond, want: time.Millisecond},
		{name: "over, and the withdrawal failed", since: renumberGrace, want: retryMax},
		{name: "withdrawn", since: time.Millisecond, withdrawn: true, want: retryMax},
		{name: "fence waits for nothing", policy: subnet.Fence, since: time.Millisecond, want: retryMax},
		{name: "keep waits for nothing", policy: subnet.Keep, since: time.Millisecond, want: retryMax},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, _ := judging(t)
				l.opts.onConflict, l.lease.withdrawn = tt.policy, tt.withdrawn
				if tt.since > 0 {
					l.lease.conflictAt = l.clock.Uptime()
					time.Sleep(tt.since)
				}
				if got := l.inGrace(retryMax); got != tt.want {
					t.Errorf("pause %s, want %s", got, tt.want)
				}
			})
		})
	}
}
