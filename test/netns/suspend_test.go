package netns_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/subnet"
)

const (
	// shortTTL is a lease that is renewed every second. awayTTL is one that a test can
	// wait for to expire, and that a busy machine does not keep from being renewed.
	shortTTL, awayTTL = 3 * time.Second, 8 * time.Second
	// letGo is how long a host that is back may take to let go of a subnet that
	// is another's; 5 s are promised, and logged.
	letGo = time.Minute
	// crowded has two subnets, roomy one more.
	crowded = `{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.2.0","Backend":{"Type":"vxlan"}}`
	roomy   = `{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.3.0","Backend":{"Type":"vxlan"}}`
)

// A host is suspended for longer than its lease lasts. Another, for which there
// was no room, gets its subnet. When the first one is back it must not go on as
// if nothing had happened, but as its policy says.
func TestSuspendedBeyondTheLease(t *testing.T) {
	for policy, behaves := range map[string]func(*suspension, *testing.T){
		"renumber": (*suspension).renumbers,
		"fence":    (*suspension).fences,
		"keep":     (*suspension).keeps,
	} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			s := suspend(t, policy)
			if policy == "renumber" {
				putConfig(t, s.lab, roomy)
			}
			s.resumed = time.Now()
			if err := s.away.Daemon.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			behaves(s, t)
			if !s.away.Daemon.Running() {
				t.Error("the daemon that was away has ended")
			}
		})
	}
}

// suspension is a host that was away, and the one that has its subnet now.
type suspension struct {
	lab        *lab.Lab
	away, heir *lab.Host
	// lost is the subnet.
	lost    netip.Prefix
	resumed time.Time
}

// suspend stops a host until another has its subnet.
func suspend(t *testing.T, policy string) *suspension {
	t.Helper()
	l := newLab(t, lab.Options{Hosts: 3, DaemonArgs: []string{"--on-conflict=" + policy}})
	putConfig(t, l, crowded)
	for i, h := range l.Hosts[:2] {
		// The others keep what they have, also while a machine is too busy for renewals.
		ttl := []time.Duration{awayTTL, time.Hour}[i]
		if err := h.StartDaemon("--docker-config="+dockerConfig(h), "--subnet-lease-ttl="+ttl.String()); err != nil {
			t.Fatal(err)
		}
		if _, err := h.WaitReady(within(t, time.Minute), h.Number-1); err != nil {
			t.Fatal(err)
		}
	}
	s := &suspension{lab: l, away: l.Hosts[0], heir: l.Hosts[2]}
	env, err := s.away.ReadSubnet()
	if err != nil {
		t.Fatal(err)
	}
	s.lost = env.Subnets[subnet.IPv4]
	if err := s.heir.StartDaemon("--docker-config="+dockerConfig(s.heir), "--subnet-lease-ttl="+time.Hour.String()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.heir.WaitProblem(within(t, time.Minute), "lease", "no free subnet: 2 of the pool's 2 are occupied"); err != nil {
		t.Fatal(err)
	}
	if err := s.away.Daemon.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := time.Now()
	if env, err = s.heir.WaitSubnet(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s has %s after %s, with a TTL of %s", s.heir.Name, env.Subnets[subnet.IPv4], time.Since(stopped), awayTTL)
	if env.Subnets[subnet.IPv4] != s.lost {
		t.Fatalf("%s has %s, want %s", s.heir.Name, env.Subnets[subnet.IPv4], s.lost)
	}
	if _, err := s.heir.WaitReady(within(t, time.Minute), 1); err != nil {
		t.Fatal(err)
	}
	checkFiles(t, s.heir)
	return s
}

func dockerConfig(h *lab.Host) string { return filepath.Join(h.Dir, "daemon.json") }

// renumbers: another subnet, in the kernel and in every file.
func (s *suspension) renumbers(t *testing.T) {
	waitNextHost(t, s.away, s.lost.Addr().Next(), s.heir.Addrs[0].Addr(), letGo)
	st, err := s.away.WaitReady(within(t, letGo), 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s in place of %s %s after the host is back", st.Lease.Subnet, s.lost, time.Since(s.resumed))
	if st.Lease.Subnet != "10.5.3.0/24" || st.Lease.State != "valid" {
		t.Errorf("lease %+v, want 10.5.3.0/24", st.Lease)
	}
	checkFiles(t, s.away)
	if got := tunnelAddr(t, s.away); got.String() != "10.5.3.0/32" {
		t.Errorf("flannel.1 has %s, want 10.5.3.0/32", got)
	}
	log, err := s.away.Daemon.Log()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"msg=renumbered", "former=" + s.lost.String(), "subnet=10.5.3.0/24", s.heir.NodeID(), "systemctl restart docker"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log does not say %q", want)
		}
	}
}

// fences: nothing uses the subnet until it is ours again.
func (s *suspension) fences(t *testing.T) {
	s.complains(t)
	waitGone(t, s.away, letGo)
	t.Logf("withdrawn %s after the host is back", time.Since(s.resumed))
	s.recovers(t)
}

// keeps: all stays as it is, and is no secret.
func (s *suspension) keeps(t *testing.T) {
	s.complains(t)
	if got := tunnelAddr(t, s.away); got.Addr() != s.lost.Addr() {
		t.Errorf("flannel.1 has %s, want that of %s", got, s.lost)
	}
	checkFiles(t, s.away)
	s.recovers(t)
}

// complains: the host says who has its subnet, and is not ready.
func (s *suspension) complains(t *testing.T) {
	t.Helper()
	st, err := s.away.WaitStatus(within(t, letGo), "the conflict", func(st lab.Status) bool { return !st.Ready && st.Lease.State == "conflict" })
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{s.heir.NodeID(), s.heir.Addrs[0].Addr().String(), s.lost.String()} {
		if !strings.Contains(st.Lease.Reason, want) {
			t.Errorf("%q is missing in the lease's reason: %s", want, st.Lease.Reason)
		}
	}
}

// recovers: the other host goes, and all is as it was.
func (s *suspension) recovers(t *testing.T) {
	t.Helper()
	if err := s.heir.Daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	// As if it had expired.
	k, found := readKey(t, s.lab, subnetKey(subnet.Subnet{s.lost}))
	if !found || k.attrs.Owner != subnet.NodeID(s.heir.NodeID()) {
		t.Fatalf("the key of %s: found %t, %+v, want it to be %s's", s.lost, found, k.attrs, s.heir.Name)
	}
	if _, err := s.lab.Client().Revoke(within(t, time.Minute), k.lease); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	st, err := s.away.WaitReady(within(t, time.Minute), 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("well again %s after the other host was killed", time.Since(began))
	if st.Lease.Subnet != s.lost.String() {
		t.Errorf("lease %s, want %s", st.Lease.Subnet, s.lost)
	}
	checkFiles(t, s.away)
	if got := tunnelAddr(t, s.away); got.Addr() != s.lost.Addr() {
		t.Errorf("flannel.1 has %s, want that of %s", got, s.lost)
	}
}

// checkFiles compares what others are told with the lease.
func checkFiles(t *testing.T, h *lab.Host) {
	t.Helper()
	st, err := h.Status(within(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	env, err := h.ReadSubnet()
	if err != nil {
		t.Fatal(err)
	}
	if got := subnet.Subnet(env.Subnets).String(); got != st.Lease.Subnet {
		t.Errorf("%s: subnet.env says %s, the lease is %s", h.Name, got, st.Lease.Subnet)
	}
	text, err := os.ReadFile(dockerConfig(h))
	if bip := fmt.Sprintf("%q: %q", "bip", daemonconfig.HostAddr(env.Subnets[0])); err != nil || !strings.Contains(string(text), bip) {
		t.Errorf("%s: daemon.json has no %s (%v):\n%s", h.Name, bip, err, text)
	}
}

// tunnelAddr is the IPv4 address of flannel.1.
func tunnelAddr(t *testing.T, h *lab.Host) netip.Prefix {
	t.Helper()
	link, err := h.Links().LinkByName("flannel.1")
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := h.Links().AddrList(link, netlink.FAMILY_V4)
	if err != nil || len(addrs) != 1 {
		t.Fatalf("%s: flannel.1 has addresses %v, %v; want one", h.Name, addrs, err)
	}
	p, err := netip.ParsePrefix(addrs[0].IPNet.String())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// waitGone waits until nothing is left of the data path and in the files that tell
// others of it.
func waitGone(t *testing.T, h *lab.Host, d time.Duration) {
	t.Helper()
	for began := time.Now(); ; pause(t, 5*time.Millisecond) {
		var notFound netlink.LinkNotFoundError
		_, err := h.Links().LinkByName("flannel.1")
		env, told := os.ReadFile(h.SubnetFile())
		docker, written := os.ReadFile(dockerConfig(h))
		switch {
		case errors.As(err, &notFound) && errors.Is(told, fs.ErrNotExist) && !strings.Contains(string(docker), "10.5."):
			return
		case time.Since(began) > d:
			t.Fatalf("after %s %s still has flannel.1 (%v), subnet.env (%v):\n%s\nor daemon.json (%v):\n%s", d, h.Name, err, told, env, written, docker)
		}
	}
}
