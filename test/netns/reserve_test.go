package netns_test

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// What flannelctl reserves is the host's from its next start on, and stays a
// reservation whatever becomes of the daemon.
func TestReservation(t *testing.T) {
	t.Parallel()
	l := newNetwork(t, 2, configs["vxlan"], "--subnet-lease-ttl="+shortTTL.String())
	h := l.Hosts[0]
	former := standingOf(t, h).subnet
	free := leasedByNobody(t, l.Hosts...)
	reserved, key := free.String(), subnetKey(free)
	out := flannelctl(t, l, "reserve", reserved, "--node="+h.NodeID())
	if !strings.Contains(out, "which has "+former.String()+" now and moves at its next restart") {
		t.Errorf("flannelctl reserve: %s", out)
	}
	if now := standingOf(t, h).subnet; now != former {
		t.Errorf("the host has %s before its restart, it had %s", now, former)
	}
	for _, life := range []struct {
		name string
		end  func() error
		args []string
	}{
		{name: "restart", end: func() error { return h.Daemon.Stop(within(t, time.Minute)) }},
		{name: "renewals", end: nil},
		{name: "kill -9", end: func() error { return h.Daemon.Kill() }, args: []string{"--release-on-exit"}},
		{name: "release on exit", end: func() error { return h.Daemon.Stop(within(t, time.Minute)) }},
	} {
		t.Run(life.name, func(t *testing.T) {
			if life.end == nil {
				pause(t, 2*shortTTL)
			} else {
				if err := life.end(); err != nil {
					t.Fatal(err)
				}
				checkReserved(t, l, key, h)
				if err := h.StartDaemon(life.args...); err != nil {
					t.Fatal(err)
				}
			}
			st, err := h.WaitReady(within(t, time.Minute), 1)
			if err != nil {
				t.Fatal(err)
			}
			if st.Lease.Subnet != reserved || !st.Lease.Reservation || !st.Lease.Expires.IsZero() {
				t.Errorf("lease %+v, want the reservation %s", st.Lease, reserved)
			}
			checkReserved(t, l, key, h)
		})
	}
	if _, found := readKey(t, l, subnetKey(former)); found {
		t.Errorf("the host still has %s", former)
	}
}

// leasedByNobody is a subnet that none of some hosts has.
func leasedByNobody(t *testing.T, hosts ...*lab.Host) subnet.Subnet {
	t.Helper()
	leased := map[subnet.Subnet]bool{}
	for _, h := range hosts {
		leased[standingOf(t, h).subnet] = true
	}
	for n := 77; ; n++ {
		if s := (subnet.Subnet{ghostsOwn(n)}); !leased[s] {
			return s
		}
	}
}

// checkReserved fails unless a key hangs on no lease and is a host's.
func checkReserved(t *testing.T, l *lab.Lab, key string, h *lab.Host) {
	t.Helper()
	if k, found := readKey(t, l, key); !found || k.lease != 0 || k.attrs.Owner != subnet.NodeID(h.NodeID()) {
		t.Errorf("%s: found %t, on lease %x, of %q; want it bare and %s's", key, found, k.lease, k.attrs.Owner, h.NodeID())
	}
}

// A running host's lease becomes a reservation and a lease again under the
// traffic, and is given back on a signal when it is told to.
func TestReservedWhileRunning(t *testing.T) {
	t.Parallel()
	l := newNetwork(t, 2, configs["vxlan"], "--subnet-lease-ttl="+shortTTL.String(), "--release-on-exit")
	startContainers(t, l)
	s := startSteady(t, l)
	h := l.Hosts[0]
	prefix := s.hosts[h].subnet.String()
	becomes := func(reservation bool) {
		t.Helper()
		began := time.Now()
		_, err := h.WaitStatus(within(t, follow), "the reservation to come or go", func(st lab.Status) bool {
			return st.Lease.State == "valid" && st.Lease.Reservation == reservation
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("reservation %t after %s", reservation, time.Since(began))
	}
	if out := flannelctl(t, l, "reserve", prefix, "--public-ip="+h.Addrs[0].Addr().String()); !strings.Contains(out, "has it already: nothing to restart") {
		t.Errorf("flannelctl reserve: %s", out)
	}
	becomes(true)
	pause(t, shortTTL)
	checkReserved(t, l, s.leaseKey(h), h)
	if out := flannelctl(t, l, "release", prefix); !strings.Contains(out, "as an ordinary lease again within a second") {
		t.Errorf("flannelctl release: %s", out)
	}
	becomes(false)
	if k, found := readKey(t, l, s.leaseKey(h)); !found || k.lease == 0 {
		t.Errorf("%s: found %t, on lease %x; want it on a lease", s.leaseKey(h), found, k.lease)
	}
	pause(t, hold+holdSlack/3)
	s.unharmed(t)

	if err := h.Daemon.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code, err := h.Daemon.ExitCode(within(t, time.Minute)); err != nil || code != 0 {
		t.Fatalf("exit status %d, %v", code, err)
	}
	if k, found := readKey(t, l, s.leaseKey(h)); found {
		t.Errorf("the lease was not given back: %+v", k)
	}
	waitGone(t, h, follow)
}
