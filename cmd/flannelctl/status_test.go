package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
)

var update = flag.Bool("update", false, "write golden files")

// now is when the screens are looked at.
func now() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

func running() status.Status {
	return status.Status{
		Version: "v0.1.0", PID: 812, Node: "web-1", State: status.StateRunning, Ready: true,
		Started: now().Add(-50*time.Hour - 3*time.Minute),
		Etcd:    status.Etcd{Endpoints: []string{"http://192.0.2.10:2379", "http://192.0.2.11:2379"}, Prefix: "/coreos.com/network", Connected: true, Revision: 4711},
		Config:  status.Config{Revision: 12, Networks: []string{"10.5.0.0/16", "fd05::/48"}, BackendType: "vxlan"},
		Uplink:  status.Uplink{Name: "eth0", MTU: 1500, Public: []string{"198.18.0.1", "2001:db8::1"}},
		Lease:   status.Lease{Subnet: "10.5.72.0/24", State: "valid", Since: now().Add(-47 * time.Hour), TTLSeconds: 86400, Expires: now().Add(16*time.Hour + 30*time.Minute)},
		Backend: status.Backend{Type: "vxlan", DataPath: status.PathApplied, Devices: []string{"flannel.1", "flannel-v6.1"}, MTU: 1430},
		Peers:   []status.Peer{{Subnet: "10.5.9.0/24", PublicIP: "198.18.0.2"}, {Subnet: "10.5.10.0/24", PublicIP: "198.18.0.3"}},
		Sync:    status.Sync{LastRun: now().Add(-4 * time.Second), LastSeconds: 0.0123, Runs: 36005, Failures: 2},
		Files:   []status.File{{Path: "/run/flannel/subnet.env", State: "written"}, {Path: "/etc/docker/daemon.json", State: "written"}},
	}
}

func TestStatusScreens(t *testing.T) {
	tests := map[string]func(*status.Status){
		"running": func(*status.Status) {},
		"docker": func(s *status.Status) {
			s.Docker = &status.Docker{
				Version: "28.5.2", Running: true, Firewall: "iptables", Bridge: "docker0", Addresses: []string{"172.17.0.1/16"}, MTU: 1500,
				Differs: []string{"docker0 has not 10.5.72.1/24, this host's subnet", "docker0 has mtu 1500 and not 1430"}, Hint: "systemctl restart docker",
			}
		},
		"udp": func(s *status.Status) {
			s.Config.BackendType = "udp"
			s.Backend = status.Backend{
				Type: "udp", DataPath: status.PathApplied, Devices: []string{"flannel0"}, MTU: 1472, Port: 8285,
				Queues: 4, Offloads: map[string]bool{"tso": true, "uso": false, "udp_segment": true, "udp_gro": true},
			}
		},
		"docker_down": func(s *status.Status) {
			s.Docker = &status.Docker{Network: "flannel"}
		},
		"reservation": func(s *status.Status) { s.Lease.Reservation, s.Lease.Expires = true, time.Time{} },
		"degraded": func(s *status.Status) {
			s.State, s.Etcd.Connected, s.Lease.State, s.Lease.Reason = status.StateDegraded, false, "unproven", "etcd is silent"
			s.Lease.Expires = now().Add(-time.Minute)
			s.Files[1] = status.File{Path: "/etc/docker/daemon.json", State: "failed", Error: "line 3, column 1: trailing comma"}
			s.Problems = []status.Problem{
				{Component: "etcd", Since: now().Add(-25 * time.Hour), Message: "load leases: http://192.0.2.10:2379: connection refused", Hint: "etcdctl --endpoints=http://192.0.2.10:2379 endpoint health"},
				{Component: "docker", Since: now().Add(-90 * time.Second), Message: "line 3, column 1: trailing comma"},
				{Component: "config", Since: now().Add(-time.Second), Message: "network config at revision 9 is invalid: Network: 10.5.0.0/33: must be a network\nSubnetLen: x: must be an integer"},
			}
		},
		"waiting": func(s *status.Status) {
			*s = status.Status{
				Version: "v0.1.0", PID: 812, Node: "web-1", State: status.StateWaiting, Started: now().Add(-7 * time.Second),
				Etcd:     status.Etcd{Endpoints: []string{"http://127.0.0.1:2379"}, Prefix: "/coreos.com/network", Connected: true, Revision: 1},
				Problems: []status.Problem{{Component: "config", Since: now().Add(-7 * time.Second), Message: "no network config yet: waiting for key /coreos.com/network/config", Hint: "etcdctl put ..", Blocking: true}},
				Sync:     status.Sync{LastRun: now(), Runs: 6, Failures: 6},
			}
		},
		"fenced": func(s *status.Status) {
			s.State, s.Ready, s.Backend.DataPath = status.StateWaiting, false, status.PathWithdrawn
			s.Lease.State, s.Lease.Since, s.Lease.Expires, s.Lease.Reason = "conflict", now().Add(-5*time.Minute), time.Time{}, "node db-3 at 198.18.0.9 holds it"
			s.Problems = []status.Problem{{Component: "lease", Since: now().Add(-5 * time.Minute), Message: "lease of 10.5.72.0/24 is in conflict, data path and files are withdrawn: node db-3 at 198.18.0.9 holds it", Hint: "flannelctl leases", Blocking: true}}
			for i := range s.Files {
				s.Files[i].State = "withdrawn"
			}
		},
		"oddities": func(s *status.Status) {
			s.State = status.StateDegraded
			s.BadKeys = []status.BadKey{{Key: "10.5.3.0-24", Error: "invalid character 'n' in literal"}, {Key: "README", Error: "is no subnet"}}
			s.SharedAddresses = []status.SharedAddress{{PublicIP: "198.18.0.2", Holders: []status.Holder{{Subnet: "10.5.9.0/24", Node: "web-2"}, {Subnet: "10.5.11.0/24", Node: "web-9"}}}}
			s.Dropped = map[string]uint64{"foreign_source": 12, "own_source": 0, "peer_source": 3}
		},
		"many_oddities": func(s *status.Status) {
			s.State = status.StateDegraded
			for i := range 12 {
				s.BadKeys = append(s.BadKeys, status.BadKey{Key: fmt.Sprintf("10.5.%d.0-24", i), Error: "is not JSON"})
			}
			s.SharedAddresses = []status.SharedAddress{{PublicIP: "198.18.0.2"}}
		},
		"many_peers": func(s *status.Status) {
			s.Peers = nil
			for i := range 30 {
				p := status.Peer{Subnet: fmt.Sprintf("10.5.%d.0/24", i+1), PublicIP: fmt.Sprintf("198.18.0.%d", i+1)}
				if i == 12 || i == 28 {
					p.Error = "its backend is another: \"host-gw\", not \"vxlan\""
				}
				s.Peers = append(s.Peers, p)
			}
		},
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			s := running()
			change(&s)
			var out bytes.Buffer
			if err := printStatus(&out, s, now()); err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), out.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// More failed peers than fit are counted.
func TestStatusCountsFailedPeers(t *testing.T) {
	s := running()
	s.Peers = nil
	for i := range 40 {
		p := status.Peer{Subnet: fmt.Sprintf("10.5.%d.0/24", i)}
		if i%4 != 0 {
			p.Error = "no path"
		}
		s.Peers = append(s.Peers, p)
	}
	var out bytes.Buffer
	if err := printStatus(&out, s, now()); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "no path"); n != maxPeers {
		t.Errorf("%d failed peers shown, want %d", n, maxPeers)
	}
	if !strings.Contains(out.String(), "and 20 more, 10 of them without a path: flannelctl status --json") {
		t.Errorf("the others are not counted:\n%s", out.String())
	}
}

func TestStatusOfADaemon(t *testing.T) {
	s := newShell(t)
	s.daemon(running())
	if r := s.run("status"); r.err != "" || !strings.HasPrefix(r.out, "RUNNING, ready; flanneld-go v0.1.0, pid 812, up ") {
		t.Errorf("%s, error %q", r.out, r.err)
	}
	r := s.run("status", "--json")
	var got status.Status
	if err := json.Unmarshal([]byte(r.out), &got); err != nil || r.err != "" {
		t.Fatalf("%v, error %q", err, r.err)
	}
	if diff := cmp.Diff(running(), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAge(t *testing.T) {
	for age0, want := range map[time.Duration]string{
		-time.Hour: "0s", 0: "0s", 59 * time.Second: "59s", 61 * time.Second: "1m01s", 59*time.Minute + 59*time.Second: "59m59s",
		time.Hour: "1h00m", 47*time.Hour + 59*time.Minute: "47h59m", 48 * time.Hour: "2d0h", 100*24*time.Hour + 5*time.Hour: "100d5h",
	} {
		if got := age(now(), now().Add(-age0)); got != want {
			t.Errorf("%s: %q, want %q", age0, got, want)
		}
	}
	if got := age(now(), time.Time{}); got != "never" {
		t.Errorf("no time: %q, want never", got)
	}
}
