package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/daemonconfig/dockerd"
	"github.com/flanneld-go/flanneld-go/daemonconfig/dockerd/dockerdtest"
	"github.com/flanneld-go/flanneld-go/systemd"
)

// fakeUnits is a service manager with docker.service.
type fakeUnits struct {
	mu     sync.Mutex
	active bool
	unit   dockerd.Unit
	// restart and start are what a job does, and how it ends; nil: nothing,
	// well.
	restart, start func() error
	jobs           []string
	// hangs: a restart does not end, and state is how Docker stands meanwhile.
	hangs bool
	// state and result are systemd's words; empty: as the jobs left it.
	state, result string
	// failed: the last start did; starts counts them.
	failed bool
	starts int
	// unknown: systemd does not answer for it.
	unknown bool
}

func (u *fakeUnits) Active(context.Context) (bool, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.active, nil
}

func (u *fakeUnits) job(name string, f func() error) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.jobs = append(u.jobs, name)
	var err error
	if f != nil {
		err = f()
	}
	if name != "stop" {
		u.starts++
		u.failed = isFailure(err)
	}
	return err
}

func (u *fakeUnits) Restart(ctx context.Context) error {
	err := u.job("restart", u.restart)
	if u.hangs {
		<-ctx.Done()
		return fmt.Errorf("restart docker.service: wait for the job: %w", context.Cause(ctx))
	}
	return err
}

func (u *fakeUnits) Start(context.Context) error { return u.job("start", u.start) }
func (u *fakeUnits) Stop(context.Context) error  { return u.job("stop", nil) }

func (u *fakeUnits) Outcome(context.Context) (systemd.Service, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.unknown {
		return systemd.Service{}, systemd.ErrNoSystemd
	}
	s := systemd.Service{Loaded: true, State: u.state, Result: u.result, Invocation: fmt.Sprintf("start %d", u.starts)}
	switch {
	case u.state != "":
	case u.failed:
		s.State = "failed"
	case u.active:
		s.State = "active"
	default:
		s.State = "inactive"
	}
	return s, nil
}

func (u *fakeUnits) Unit(context.Context) (dockerd.Unit, error) { return u.unit, nil }

// done are the jobs so far.
func (u *fakeUnits) done() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return strings.Join(u.jobs, " ")
}

// dockerHost is a host with a Docker that reads its file when it is restarted.
type dockerHost struct {
	*testHost
	engine *dockerdtest.Engine
	units  *fakeUnits
}

// inDockerBubble plays a story on such a host. The engine is outside of the
// bubble: what waits for the network would keep its time from passing.
func inDockerBubble(t *testing.T, version string, play func(h *dockerHost)) {
	t.Helper()
	engine := dockerdtest.New(t)
	engine.Version = version
	synctest.Test(t, func(t *testing.T) {
		h := &dockerHost{testHost: newHost(t), engine: engine, units: &fakeUnits{active: true}}
		h.testHost.units = h.units
		h.opts.dockerSocket, h.opts.dockerRestart = engine.Socket(), "on-change"
		h.data.OverwriteConfig(networkConfig)
		h.units.restart = h.obey
		h.kernel.Plug(kernel.Link{Name: dockerBridge, Type: "bridge", MTU: 1500}, netip.MustParsePrefix("172.17.0.1/16"))
		play(h)
	})
}

// A Docker that systemd would start for whoever connects to its socket is not asked: the
// answer would take as long as its start, which at a boot comes after ours.
func TestDockerThatSleepsIsLeftAlone(t *testing.T) {
	for _, tt := range []struct {
		name  string
		units *fakeUnits
		asked bool
	}{
		{"it has not been started", &fakeUnits{}, false},
		{"it has failed", &fakeUnits{failed: true}, false},
		{"it is being started", &fakeUnits{state: "activating"}, false},
		{"it runs", &fakeUnits{active: true}, true},
		{"it reads its settings again", &fakeUnits{state: "reloading"}, true},
		{"nobody knows", &fakeUnits{unknown: true}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			engine := dockerdtest.New(t)
			l := newLoop(&daemon{clock: bubbleClock{time.Now()}, opts: options{dockerSocket: engine.Socket()}, log: slog.New(slog.DiscardHandler), units: tt.units}, nil, nil)
			l.lookAtDocker(t.Context())
			// The engine answers whoever asks.
			if l.docker.seen.up != tt.asked {
				t.Errorf("asked: %t, want %t", l.docker.seen.up, tt.asked)
			}
		})
	}
}

// obey is a dockerd that starts by its file.
func (h *dockerHost) obey() error {
	var keys struct {
		BIP    string `json:"bip"`
		MTU    int    `json:"mtu"`
		IPMasq *bool  `json:"ip-masq"`
	}
	if text, err := os.ReadFile(h.opts.dockerConfig); err == nil {
		if err := json.Unmarshal(text, &keys); err != nil {
			return err
		}
	}
	if keys.BIP == "" {
		keys.BIP = "172.17.0.1/16"
	}
	if keys.MTU == 0 {
		keys.MTU = 1500
	}
	h.setBridge(keys.BIP, keys.MTU, keys.IPMasq == nil || *keys.IPMasq)
	return nil
}

// setBridge gives docker0 what it has in the kernel, and in Docker's words.
func (h *dockerHost) setBridge(addr string, mtu int, masquerade bool) {
	h.engine.SetBridge(addr, mtu, masquerade)
	ctx := context.Background()
	link, err := h.kernel.LinkByName(ctx, dockerBridge)
	if err != nil {
		h.t.Fatal(err)
	}
	table := h.kernel.Addrs(link.Index)
	had, err := table.List(ctx)
	if err == nil {
		err = table.Delete(ctx, had)
	}
	if err == nil {
		err = table.Put(ctx, []kernel.Addr{{Link: link.Index, Prefix: netip.MustParsePrefix(addr)}})
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// own is docker0's address as it should be.
func (h *dockerHost) own() string {
	return daemonconfig.HostAddr(netip.MustParsePrefix(h.board.Snapshot().Lease.Subnet)).String()
}

// settled waits until Docker is no problem, and for some rounds more.
func (h *dockerHost) settled() {
	h.t.Helper()
	h.eventually(resync, "docker settled", func() bool {
		return h.board.Snapshot().Ready && h.problem(status.ComponentDocker) == status.Problem{} && h.file("docker/daemon.json") != ""
	})
	time.Sleep(3 * resyncEvery)
	synctest.Wait()
}

// A first start: one restart, and then Docker has all of it. More starts of ours
// and of Docker's: none.
func TestDockerIsRestartedOnce(t *testing.T) {
	inDockerBubble(t, "28.5.2", func(h *dockerHost) {
		h.opts.ipMasq = true
		h.start()
		h.settled()
		want := "{\n  \"bip\": \"" + h.own() + "\",\n  \"mtu\": 1500,\n  \"ip-masq\": false,\n" +
			"  \"default-network-opts\": {\"bridge\": {\"com.docker.network.driver.mtu\": \"1500\"}}\n}\n"
		if diff := cmp.Diff(want, h.file("docker/daemon.json")); diff != "" {
			t.Errorf("daemon.json (-want +got):\n%s", diff)
		}
		if got := h.units.done(); got != "restart" {
			t.Errorf("jobs %q, want one restart", got)
		}
		d := h.board.Snapshot().Docker
		wantStatus := &status.Docker{Version: "28.5.2", Running: true, Firewall: "iptables", Bridge: "docker0", Addresses: []string{h.own()}, MTU: 1500}
		if diff := cmp.Diff(wantStatus, d); diff != "" {
			t.Errorf("status (-want +got):\n%s", diff)
		}
		h.stop()
		for range 3 {
			h.start()
			h.settled()
			h.stop()
		}
		if got := h.units.done(); got != "restart" {
			t.Errorf("jobs %q after more starts of ours, want no more", got)
		}
	})
}

// What the running Docker has decides, whatever happened to the file.
func TestDockerIsAskedBeforeARestart(t *testing.T) {
	tests := []struct {
		name string
		// between is what happens while our daemon is down, after all was well.
		between func(h *dockerHost)
		want    string
	}{
		{"nothing", func(*dockerHost) {}, "restart"},
		{"file gone, Docker as it was", func(h *dockerHost) { h.writeFile("docker/daemon.json", "{}") }, "restart"},
		{"another mtu", func(h *dockerHost) { h.engine.SetBridge(h.own(), 1300, true) }, "restart restart"},
		{"another address", func(h *dockerHost) { h.setBridge("172.17.0.1/16", 1500, true) }, "restart restart"},
		{"written and killed before the restart", func(h *dockerHost) { h.setBridge("10.5.99.1/24", 1500, true) }, "restart restart"},
		{"masquerade that is none of ours", func(h *dockerHost) { h.engine.SetBridge(h.own(), 1500, false) }, "restart"},
		{"two who masquerade", func(h *dockerHost) { h.opts.ipMasq = true }, "restart restart"},
		{"Docker is down", func(h *dockerHost) {
			h.units.active, h.opts.dockerSocket = false, h.path("none.sock")
			h.setBridge("172.17.0.1/16", 1500, true)
		}, "restart"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inDockerBubble(t, "26.1.5+dfsg1", func(h *dockerHost) {
				h.start()
				h.settled()
				h.stop()
				tt.between(h)
				h.start()
				time.Sleep(3 * resyncEvery)
				synctest.Wait()
				h.stop()
				if got := h.units.done(); got != tt.want {
					t.Errorf("jobs %q, want %q", got, tt.want)
				}
			})
		})
	}
}

// While containers of live-restore run, a restart is of no use.
func TestLiveRestoreIsSaid(t *testing.T) {
	engine := `{"LiveRestoreEnabled": true, "ContainersRunning": 2}`
	inDockerBubble(t, "28.5.2", func(h *dockerHost) {
		h.engine.Info = engine
		h.writeFile("docker/daemon.json", "{\"live-restore\": true}\n")
		h.start()
		h.eventually(resync, "said", func() bool {
			p := h.problem(status.ComponentDocker)
			return strings.Contains(p.Message, "docker0 has not "+h.own()) && strings.Contains(p.Message, "\"live-restore\" is on, and docker0 keeps its address as long as any of the 2 containers runs") &&
				p.Hint == "docker stop $(docker ps -q), then systemctl restart docker"
		})
		time.Sleep(3 * resyncEvery)
		synctest.Wait()
		if got := h.units.done(); got != "" {
			t.Errorf("jobs %q, want none", got)
		}
		if h.log.count("live-restore") == 0 || h.log.count("docker config needs a look") != 1 {
			t.Errorf("the log does not say once what live-restore means:\n%s", h.log.buf.String())
		}
		mux := health{h.board, atRest, atRest}.mux()
		if code, body := get(t, mux, "/readyz"); code != http.StatusOK || body != "ok\ndocker: docker0 has not "+h.own()+", this host's subnet\n" {
			t.Errorf("readiness %d %q", code, body)
		}
		h.stop()
	})
}

// A key that the unit's command line has is not written, and the flag is named
// with its file.
func TestKeyGivenTwice(t *testing.T) {
	inDockerBubble(t, "28.5.2", func(h *dockerHost) {
		h.writeFile("docker.env", "DOCKER_OPTS=\"--mtu=1400\"\n")
		h.units.unit = dockerd.Unit{Argv: []string{"/usr/sbin/dockerd", "-H", "fd://", "$DOCKER_OPTS"}, EnvironmentFiles: []string{h.path("docker.env")}}
		h.opts.dockerSocket = h.path("none.sock")
		h.start()
		h.eventually(resync, "said", func() bool {
			p := h.problem(status.ComponentDocker)
			return strings.HasPrefix(p.Message, "dockerd is given --mtu=1400 in "+h.path("docker.env")+": ") && strings.HasPrefix(p.Hint, "remove the flag")
		})
		if got := h.file("docker/daemon.json"); got != "" || h.units.done() != "" {
			t.Errorf("wrote %s, jobs %q", got, h.units.done())
		}
		h.stop()
	})
}

// A dockerd that refuses the new file keeps it from being written; one that
// refuses any file does not.
func TestJudgedByDockerd(t *testing.T) {
	tests := []struct{ name, says, problem string }{
		{"our keys", `case $(cat "$3") in *bip*) echo "file $3: no bip today"; exit 1;; esac`, "dockerd refuses it: no bip today"},
		{"any file", `echo "file $3: invalid userland-proxy-path"; exit 1`, ""},
		{"no answer", `kill -9 $$`, ""},
		{"none", `[ "$1 $2" = "--validate --config-file" ]`, ""},
	}
	for _, old := range []string{"", "{\"debug\": true}\n"} {
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%s of %q", tt.name, old), func(t *testing.T) {
				bin := t.TempDir()
				if err := os.WriteFile(filepath.Join(bin, "dockerd"), []byte("#!/bin/sh\n"+tt.says+"\n"), 0o755); err != nil {
					t.Fatal(err)
				}
				t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
				inDockerBubble(t, "28.5.2", func(h *dockerHost) {
					if old != "" {
						h.writeFile("docker/daemon.json", old)
					}
					h.start()
					if tt.problem != "" {
						h.eventually(resync, "said", func() bool {
							return strings.HasSuffix(h.problem(status.ComponentDocker).Message, tt.problem)
						})
						if got := h.file("docker/daemon.json"); got != old || h.units.done() != "" {
							t.Errorf("wrote %s, jobs %q", got, h.units.done())
						}
					} else {
						h.settled()
					}
					h.stop()
				})
			})
		}
	}
}

// Docker's version may change while we run; the file follows what it knows.
func TestDockerIsUpgraded(t *testing.T) {
	const opts = "default-network-opts"
	inDockerBubble(t, "20.10.24+dfsg1", func(h *dockerHost) {
		h.start()
		h.settled()
		if strings.Contains(h.file("docker/daemon.json"), opts) {
			t.Errorf("20.10 would not start with %s", h.file("docker/daemon.json"))
		}
		h.stop()
		h.engine.Version = "26.1.5+dfsg1"
		h.start()
		h.settled()
		if !strings.Contains(h.file("docker/daemon.json"), opts) {
			t.Errorf("26 is not told of networks: %s", h.file("docker/daemon.json"))
		}
		h.stop()
		h.opts.dockerSocket = h.path("none.sock") // down, and no program to ask
		h.start()
		time.Sleep(resync)
		synctest.Wait()
		if !strings.Contains(h.file("docker/daemon.json"), opts) {
			t.Errorf("an unknown Docker loses its keys: %s", h.file("docker/daemon.json"))
		}
		if got := h.units.done(); got != "restart" {
			t.Errorf("jobs %q: what concerns later networks is worth no restart", got)
		}
		h.stop()
	})
}

// A network in place of docker0.
func TestDockerNetwork(t *testing.T) {
	inDockerBubble(t, "28.5.2", func(h *dockerHost) {
		h.start()
		h.settled()
		h.stop()
		// docker0 has the subnet: it must give it up first, by one restart.
		h.opts.dockerNetwork = "flannel"
		h.start()
		made := func() bool { return h.engine.Get("flannel").ID != "" }
		h.eventually(resync, "made", made)
		if got := h.units.done(); got != "restart restart" {
			t.Errorf("jobs %q, want one more restart", got)
		}
		if got := h.file("docker/daemon.json"); got != "" {
			t.Errorf("keys for docker0 stay: %s", got)
		}
		n := h.engine.Get("flannel")
		want := map[string]string{
			"com.docker.network.bridge.name": "br-flannel", "com.docker.network.driver.mtu": "1500",
			"com.docker.network.bridge.trusted_host_interfaces": "eth0",
		}
		if diff := cmp.Diff(want, n.Options); diff != "" || n.IPAM.Config[0].Gateway+"/24" != h.own() {
			t.Errorf("network of %+v (-want +got):\n%s", n.IPAM, diff)
		}
		// It is kept.
		if _, err := dockerd.NewClient(h.engine.Socket()).Drop(h.t.Context(), "flannel"); err != nil {
			t.Fatal(err)
		}
		h.eventually(resync, "made again", made)
		h.stop()

		// Another lease, while containers belong to it, and then not.
		h.engine.Attach("flannel", "web")
		_, key := h.subnet()
		h.data.DeleteKey(key)
		if err := os.RemoveAll(h.opts.stateDir); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(h.opts.subnetFile); err != nil {
			t.Fatal(err)
		}
		h.node = "another"
		h.start()
		h.eventually(resync, "said", func() bool {
			p := h.problem(status.ComponentDocker)
			return strings.Contains(p.Message, "docker network flannel must be made anew (subnet: ") && strings.HasPrefix(p.Hint, "docker rm -f web ")
		})
		h.engine.Attach("flannel")
		h.eventually(resync, "made anew", func() bool {
			n := h.engine.Get("flannel")
			return len(n.IPAM.Config) == 1 && n.IPAM.Config[0].Gateway+"/24" == h.own() && h.problem(status.ComponentDocker) == status.Problem{}
		})
		if d := h.board.Snapshot().Docker; d.Network != "flannel" || d.Differs != nil {
			t.Errorf("status %+v", d)
		}
		h.stop()
	})
}

func TestDockerNetworkOfSomebodyElse(t *testing.T) {
	inDockerBubble(t, "26.1.5", func(h *dockerHost) {
		h.opts.dockerNetwork = "flannel"
		h.engine.Put(dockerdtest.Network{Name: "flannel", Driver: "macvlan"})
		h.start()
		h.eventually(resync, "said", func() bool {
			p := h.problem(status.ComponentDocker)
			return strings.HasPrefix(p.Message, "docker network flannel was made by somebody else") && p.Hint == "docker network rm flannel"
		})
		h.stop()
	})
}
