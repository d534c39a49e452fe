package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend/firewall/native"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/daemonconfig/dockerd"
	"github.com/flanneld-go/flanneld-go/daemonconfig/dockerd/dockerdtest"
)

const inTables = `{"FirewallBackend": {"Driver": "nftables"}}`

// dockerd makes procfs have one, which is years older or younger than any file.
func (h *dockerHost) dockerd(pidFile string, young bool, flags ...string) {
	h.t.Helper()
	var ticks int64
	if young {
		ticks = 100 * 60 * 60 * 24 * 365 * 100 // the bubble's clock is decades behind that of files
	}
	h.places.proc = h.path("proc")
	h.writeFile(pidFile, "42")
	h.writeFile("proc/uptime", "100.00 50.00\n")
	h.writeFile("proc/42/stat", fmt.Sprintf("42 (dockerd) S%s %d 0 0\n", strings.Repeat(" 0", 18), ticks))
	h.writeFile("proc/42/cmdline", strings.Join(append([]string{"/usr/bin/dockerd"}, flags...), "\x00")+"\x00")
}

// docker is what the status and the log say of Docker, once it says something that
// contains a text.
func (h *dockerHost) docker(says string) status.Problem {
	h.t.Helper()
	h.eventually(resync, "said: "+says, func() bool { return strings.Contains(h.problem(status.ComponentDocker).Message, says) })
	p := h.problem(status.ComponentDocker)
	if p.Hint == "" || p.Blocking || !h.board.Snapshot().Ready {
		h.t.Errorf("problem %+v: want a hint, and a host that is ready", p)
	}
	time.Sleep(3 * resyncEvery)
	synctest.Wait()
	if got := h.log.count("component=docker error="); got != 1 {
		h.t.Errorf("%d lines about it in the log, want 1:\n%s", got, h.log.buf.String())
	}
	return p
}

// markTable is our own table, which remembers each time whether it was to set the
// mark.
type markTable struct {
	noTable
	mu   sync.Mutex
	sets []bool
	// rounds is how many are over, and over is that of each time.
	rounds func() uint64
	over   []uint64
}

func (m *markTable) Apply(ctx context.Context, d native.Desired) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sets, m.over = append(m.sets, d.AcceptMark), append(m.over, m.rounds())
	return m.noTable.Apply(ctx, d)
}

// every reports that the mark was set each time, or never; if the memory of our
// keys does not say, from the second time on, in the first round.
func (m *markTable) every(set, known bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !known && set && len(m.sets) > 1 {
		return !slices.Contains(m.sets[1:], false) && m.over[0] == m.over[1]
	}
	return len(m.sets) > 0 && !slices.Contains(m.sets, !set)
}

// A Docker that keeps its rules in nf_tables is told the mark, and our own table
// sets it.
func TestDockerIsToldTheMark(t *testing.T) {
	const mark = "\"bridge-accept-fwmark\": \"0x1000/0x1000\""
	tests := []struct {
		name, version, info, file string
		flags                     []string
		want                      bool // the key is ours to write
		says                      string
	}{
		{"with nftables", "29.1.3", inTables, `{"allow-direct-routing": true}`, nil, true, ""},
		{"with iptables", "29.1.3", `{"FirewallBackend": {"Driver": "iptables"}}`, "{}", nil, false, ""},
		{"before 29", "28.5.2", `{}`, "{}", nil, false, ""},
		{"drops in raw, too", "29.1.3", inTables, "{}", nil, true, "docker 29.1.3 with nftables drops in raw PREROUTING what other hosts send to containers on docker0, and takes no mark there"},
		{"raw by the command line", "29.1.3", inTables, "{}", []string{"--allow-direct-routing"}, true, ""},
		{"a mark of his own", "29.1.3", inTables, `{"allow-direct-routing": true, "bridge-accept-fwmark": "2/3"}`, nil, false, `docker 29.1.3 with nftables drops what comes from other hosts unless its "bridge-accept-fwmark" is 0x1000/0x1000, and has 2/3`},
		{"our mark by the command line", "29.1.3", inTables, `{"allow-direct-routing": true}`, []string{"--bridge-accept-fwmark=4096/0x1000"}, false, ""},
		{"another by the command line", "29.1.3", inTables, `{"allow-direct-routing": true}`, []string{"--bridge-accept-fwmark", "1"}, false, "and has 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inDockerBubble(t, tt.version, func(h *dockerHost) {
				h.engine.Info = tt.info
				h.writeFile("docker/daemon.json", tt.file+"\n")
				h.places.pidFile = h.path("docker.pid")
				rounds := func() uint64 { return h.board.Snapshot().Sync.Runs }
				table := &markTable{rounds: rounds}
				h.table = table
				h.dockerd("docker.pid", true, append(tt.flags, "--config-file="+h.opts.dockerConfig)...)
				h.start()
				if tt.says != "" {
					h.docker(tt.says)
				} else {
					h.settled()
				}
				if got := strings.Contains(h.file("docker/daemon.json"), mark); got != tt.want {
					t.Errorf("file has the mark: %t, want %t: %s", got, tt.want, h.file("docker/daemon.json"))
				}
				if got := h.units.done(); got != "restart" {
					t.Errorf("jobs %q, want one restart", got)
				}
				h.stop()
				// What is in the kernel stays over a restart.
				table = &markTable{rounds: rounds}
				h.table = table
				h.start()
				h.eventually(resync, "sets the mark at once", func() bool { return table.every(tt.info == inTables, tt.want) })
				h.stop()
			})
		})
	}
}

// A dockerd that is older than the key does not know it, and is restarted for it;
// one that is down keeps it.
func TestMarkIsTaken(t *testing.T) {
	for _, network := range []string{"", "flannel"} {
		t.Run("network "+network, func(t *testing.T) {
			inDockerBubble(t, "28.5.2", func(h *dockerHost) {
				h.writeFile("docker/daemon.json", `{"allow-direct-routing": true, "firewall-backend": "nftables"}`)
				h.places.pidFile, h.opts.dockerNetwork = h.path("docker.pid"), network
				h.dockerd("docker.pid", true, "--config-file="+h.opts.dockerConfig)
				h.start()
				h.eventually(resync, "well", func() bool {
					return h.board.Snapshot().Ready && h.problem(status.ComponentDocker) == status.Problem{}
				})
				h.stop()
				before := h.units.done()
				h.engine.Version, h.engine.Info, h.opts.dockerRestart = "29.1.3", inTables, "never"
				h.dockerd("docker.pid", false, "--config-file="+h.opts.dockerConfig)
				h.start()
				p := h.docker("Docker was started before its file named the mark of the overlay's packets: Docker must be restarted for its containers to be reached")
				if p.Hint != "systemctl restart docker" || h.units.done() != before {
					t.Errorf("hint %q, jobs %q", p.Hint, h.units.done())
				}
				h.stop()
				h.opts.dockerRestart = "on-change"
				h.units.restart = func() error {
					h.dockerd("docker.pid", true, "--config-file="+h.opts.dockerConfig)
					return h.obey()
				}
				h.start()
				h.settled()
				if got := h.units.done(); strings.TrimSpace(strings.TrimPrefix(got, before)) != "restart" {
					t.Errorf("jobs %q after %q, want one restart more", got, before)
				}
				h.stop()
				// Down, and with no program to ask.
				if err := os.Remove(h.places.pidFile); err != nil {
					t.Fatal(err)
				}
				told := h.file("docker/daemon.json")
				h.opts.dockerSocket = h.path("none.sock")
				h.start()
				time.Sleep(3 * resyncEvery)
				synctest.Wait()
				if now := h.file("docker/daemon.json"); !strings.Contains(now, "bridge-accept-fwmark") || now != told {
					t.Errorf("Docker is to start with %s, and was told %s", now, told)
				}
				h.stop()
			})
		})
	}
}

// What is written where dockerd does not read it is of no use, and is not.
func TestAnotherConfigFile(t *testing.T) {
	tests := []struct {
		name, flag, hint string
		running, unit    bool
		says             string
	}{
		{"by the running dockerd", "--config-file=/etc/x.json", "run with --docker-config=/etc/x.json", true, false, "dockerd reads /etc/x.json (--config-file=/etc/x.json in the command line of dockerd (pid 42)), and not FILE: nothing is written there"},
		{"by the unit of one that is down", "--config-file=/etc/x.json", "run with --docker-config=/etc/x.json", false, true, "dockerd reads /etc/x.json (--config-file=/etc/x.json in docker.service), and not FILE: nothing is written there"},
		{"by its default", "--debug", "run without --docker-config, or give dockerd --config-file=FILE", true, false, "dockerd (pid 42) reads /etc/docker/daemon.json, and not FILE: what is written there has no effect"},
		{"the same", "--config-file=SAME", "", true, false, ""},
		{"not known", "--debug", "", false, true, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inDockerBubble(t, "28.5.2", func(h *dockerHost) {
				text := strings.NewReplacer("FILE", h.opts.dockerConfig, "SAME", h.path("link/daemon.json")).Replace
				h.writeFile("docker/daemon.json", "{}\n")
				if err := os.Symlink(h.path("docker"), h.path("link")); err != nil {
					t.Fatal(err)
				}
				if tt.running {
					h.places.pidFile = h.path("docker.pid")
					h.dockerd("docker.pid", true, text(tt.flag))
				}
				if tt.unit {
					h.opts.dockerSocket = h.path("none.sock")
					h.units.unit = dockerd.Unit{Argv: []string{"/usr/bin/dockerd", text(tt.flag)}}
				}
				h.start()
				if tt.says == "" {
					h.eventually(resync, "written", func() bool { return strings.Contains(h.file("docker/daemon.json"), "bip") })
					h.stop()
					return
				}
				if p := h.docker(text(tt.says)); p.Hint != text(tt.hint) {
					t.Errorf("hint %q, want %q", p.Hint, text(tt.hint))
				}
				if written := h.file("docker/daemon.json") != "{}\n"; written != strings.HasSuffix(tt.says, "no effect") || h.units.done() != "" {
					t.Errorf("file %s, jobs %q", h.file("docker/daemon.json"), h.units.done())
				}
				h.stop()
			})
		})
	}
}

// A rootless Docker has its networks elsewhere.
func TestRootless(t *testing.T) {
	tests := []struct {
		name, says string
		on, gone   bool // on the host's own socket; the user's has ended
	}{
		{"on the host's socket", "Docker is rootless, which is not supported: its containers are in a network namespace of its user's, where neither routes nor devices of this host lead", true, false},
		{"of a user", "the only dockerd that runs here (pid 42) is rootless, which is not supported", false, false},
		{"of a user, and ended", "", false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inDockerBubble(t, "28.5.2", func(h *dockerHost) {
				if tt.on {
					h.engine.Info = `{"SecurityOptions": ["name=rootless"]}`
				} else {
					h.opts.dockerSocket, h.places.rootless = h.path("none.sock"), h.path("run/user/*/docker.pid")
					h.dockerd("run/user/1000/docker.pid", true)
					h.units.active = false
				}
				if tt.gone {
					h.places.proc = h.path("nowhere")
				}
				h.start()
				if tt.says == "" {
					h.eventually(resync, "written", func() bool { return strings.Contains(h.file("docker/daemon.json"), "bip") })
					if p := h.problem(status.ComponentDocker); strings.Contains(p.Message, "rootless") {
						t.Errorf("problem %+v", p)
					}
					h.stop()
					return
				}
				if p := h.docker(tt.says); !strings.HasSuffix(p.Hint, "install Docker as a service of the system; or run with --docker-config=none, for "+h.opts.subnetFile+" alone") {
					t.Errorf("hint %q", p.Hint)
				}
				// The host's own may yet start.
				if written := strings.Contains(h.file("docker/daemon.json"), "bip"); written == tt.on || h.units.done() != "" {
					t.Errorf("written %t, jobs %q", written, h.units.done())
				}
				h.stop()
			})
		})
	}
}

// bridgeOn is a network of the user's.
func bridgeOn(name, driver string, subnets ...string) dockerdtest.Network {
	n := dockerdtest.Network{Name: name, Driver: driver}
	for _, s := range subnets {
		n.IPAM.Config = append(n.IPAM.Config, dockerdtest.IPAM{Subnet: s})
	}
	return n
}

// Networks of the user's that hide other hosts are named as they come and go.
func TestOverlappingNetworks(t *testing.T) {
	inDockerBubble(t, "28.5.2", func(h *dockerHost) {
		h.engine.Put(bridgeOn("apart", "bridge", "10.6.0.0/16", "fd00::/64"))
		h.engine.Put(bridgeOn("swarm", "overlay", "10.5.0.0/16"))
		h.engine.Put(bridgeOn("host", "host"))
		h.start()
		h.settled()
		inside := strings.Replace(h.own(), ".1/24", ".128/25", 1)
		h.engine.Put(bridgeOn("inside", "bridge", inside))
		time.Sleep(2 * resyncEvery)
		synctest.Wait()
		if p := h.problem(status.ComponentDocker); p != (status.Problem{}) {
			t.Errorf("a network inside our own subnet is a problem: %+v", p)
		}
		h.engine.Put(bridgeOn("shop", "bridge", "192.168.0.0/24", "10.5.250.0/24"))
		p := h.docker("docker network shop has 10.5.250.0/24, inside of which the network 10.5.0.0/16 has other hosts: their containers cannot be reached from here")
		want := "docker network rm shop, and make it anew with --subnet outside of 10.5.0.0/16; \"default-address-pools\" in " + h.opts.dockerConfig + " keep Docker from choosing such a subnet"
		if diff := cmp.Diff(want, p.Hint); diff != "" {
			t.Errorf("hint (-want +got):\n%s", diff)
		}
		for i := range 4 {
			h.engine.Put(bridgeOn(fmt.Sprintf("more%d", i), "bridge", fmt.Sprintf("10.5.%d.0/24", 251+i)))
		}
		h.eventually(resync, "counted", func() bool { return strings.Contains(h.problem(status.ComponentDocker).Message, "; and 2 more: ") })
		for _, name := range []string{"shop", "more0", "more1", "more2", "more3"} {
			h.engine.Put(bridgeOn(name, "bridge", "172.30.0.0/24"))
		}
		h.settled()
		if h.units.done() != "restart" {
			t.Errorf("jobs %q", h.units.done())
		}
		h.stop()
	})
}

// With a network of our own, docker0 is one of the others.
func TestOverlappingBridge(t *testing.T) {
	inDockerBubble(t, "28.5.2", func(h *dockerHost) {
		h.opts.dockerNetwork = "flannel"
		h.setBridge("10.5.250.1/24", 1500, true)
		h.start()
		h.docker("docker network bridge has 10.5.250.0/24")
		if h.engine.Get("flannel").ID == "" {
			t.Error("our network is not made")
		}
		h.stop()
	})
}
