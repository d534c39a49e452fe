package netns_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// lasting is how long a fault lasts: shortly as a rule, and as long as was
// promised with FLANNEL_TEST_LONG=1.
func lasting(short, long time.Duration) time.Duration {
	if os.Getenv("FLANNEL_TEST_LONG") == "1" {
		return long
	}
	return short
}

// steady is a network that must come through a fault as it is: the same
// subnets, the same processes, files that nobody wrote, and pings every 5 ms
// from each container to the next, in a ring, of which none is lost.
type steady struct {
	lab   *lab.Lab
	pings map[way]*lab.Pinging
	hosts map[*lab.Host]standing
}

// way is from one host's container to another's.
type way struct{ from, to *lab.Host }

// String reads as "h1 to h2", by the hosts' whole names.
func (w way) String() string { return w.from.Name + " to " + w.to.Name }

// standing is what a host keeps.
type standing struct {
	subnet subnet.Subnet
	pid    int
	files  string
}

// startSteady begins to watch a network whose containers talk.
func startSteady(t *testing.T, l *lab.Lab) *steady {
	t.Helper()
	s := &steady{lab: l, pings: map[way]*lab.Pinging{}, hosts: map[*lab.Host]standing{}}
	for i, h := range l.Hosts {
		s.hosts[h] = standingOf(t, h)
		next := l.Hosts[(i+1)%len(l.Hosts)]
		s.pings[way{h, next}] = startPing(t, h.Container, next.Container)
	}
	return s
}

func standingOf(t *testing.T, h *lab.Host) standing {
	t.Helper()
	env, err := h.ReadSubnet()
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(h.SubnetFile())
	if err != nil {
		t.Fatal(err)
	}
	return standing{subnet: env.Subnets, pid: h.Daemon.PID(), files: fmt.Sprintf("subnet.env of %s", info.ModTime().Format(time.RFC3339Nano))}
}

// disregard leaves out a host that the fault is about.
func (s *steady) disregard(h *lab.Host) {
	delete(s.hosts, h)
	for w, p := range s.pings {
		if w.from == h || w.to == h {
			p.Stop()
			delete(s.pings, w)
		}
	}
}

// unharmed ends the watch. The fault must be over.
func (s *steady) unharmed(t *testing.T) {
	t.Helper()
	sent := 0
	for w, p := range s.pings {
		r := p.Stop()
		sent += r.Sent
		if r.Lost() > 0 || r.Received == 0 {
			t.Errorf("%s: %s", w, r)
		}
	}
	t.Logf("%d pings", sent)
	for h, want := range s.hosts {
		if got := standingOf(t, h); got != want {
			t.Errorf("%s is not what it was: %v, before %v", h.Name, got, want)
		}
		if !h.Daemon.Running() {
			t.Errorf("%s's daemon has ended", h.Name)
		}
	}
}

// leaseKey is the key of a host's lease.
func (s *steady) leaseKey(h *lab.Host) string { return subnetKey(s.hosts[h].subnet) }

func subnetKey(s subnet.Subnet) string { return lab.Prefix + "/subnets/" + s.Key() }

// waitWell waits until all hosts are ready, with a valid lease and no problem.
func waitWell(t *testing.T, l *lab.Lab, d time.Duration) {
	t.Helper()
	began := time.Now()
	err := l.Each(within(t, d), func(ctx context.Context, h *lab.Host) error {
		_, err := h.WaitStatus(ctx, "all to be well", func(s lab.Status) bool {
			return s.Ready && s.Lease.State == "valid" && s.Etcd.Connected && len(s.Problems) == 0 && len(s.Peers) == len(l.Hosts)-1
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("all well after %s", time.Since(began))
}

// kept is a lease's key as etcd holds it.
type kept struct {
	attrs    subnet.Attrs
	lease    clientv3.LeaseID
	modified int64
}

// readKey reads a lease's key; false: there is none.
func readKey(t *testing.T, l *lab.Lab, key string) (kept, bool) {
	t.Helper()
	resp, err := l.Client().Get(within(t, time.Minute), key)
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return kept{}, false
	}
	kv := resp.Kvs[0]
	k := kept{lease: clientv3.LeaseID(kv.Lease), modified: kv.ModRevision}
	if err := k.attrs.UnmarshalJSON(kv.Value); err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	return k, true
}

// waitKey waits until a key is owned by a host, and returns how long that took.
func waitKey(t *testing.T, l *lab.Lab, key string, h *lab.Host, d time.Duration) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		k, found := readKey(t, l, key)
		if found && k.attrs.Owner == subnet.NodeID(h.NodeID()) {
			return time.Since(began)
		}
		if time.Since(began) > d {
			t.Fatalf("%s is not %s's after %s: found %t, %+v", key, h.Name, d, found, k.attrs)
		}
		pause(t, time.Millisecond)
	}
}

// waitNextHost waits until a host sends packets for dst to another.
func waitNextHost(t *testing.T, h *lab.Host, dst, want netip.Addr, d time.Duration) {
	t.Helper()
	for began := time.Now(); ; pause(t, time.Millisecond) {
		got, err := nextHost(h, dst)
		switch {
		case err == nil && got == want:
			return
		case time.Since(began) > d:
			t.Fatalf("%s sends packets for %s to %v (%v) after %s, want %v", h.Name, dst, got, err, d, want)
		}
	}
}
