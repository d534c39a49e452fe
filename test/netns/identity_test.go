package netns_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// Two machines have one node id. The first one keeps its lease, the second ends
// and names both, until the first one is gone: then it is the host that moved.
func TestClonedMachines(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 2, DaemonArgs: []string{"--node-id=twin"}})
	putConfig(t, l, configs["vxlan"])
	first, second := l.Hosts[0], l.Hosts[1]
	if err := first.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	if _, err := first.WaitReady(within(t, time.Minute), 0); err != nil {
		t.Fatal(err)
	}
	had, err := first.ReadSubnet()
	if err != nil {
		t.Fatal(err)
	}
	if err := second.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	expectRefused(t, second, first)
	if _, err := os.Stat(second.SubnetFile()); err == nil {
		t.Error("the clone has written a subnet.env")
	}
	if st, err := first.Status(within(t, time.Minute)); err != nil || !st.Ready || st.Lease.State != "valid" || st.Lease.Subnet != subnet.Subnet(had.Subnets).String() {
		t.Errorf("the first host: %+v, %v; want it ready with %v", st.Lease, err, had.Subnets)
	}

	if err := first.Daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := second.RelaunchDaemon(); err != nil {
		t.Fatal(err)
	}
	got, err := second.WaitSubnet(within(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	t.Logf("the host that moved has its subnet after %s", took)
	if got.Subnets != had.Subnets {
		t.Errorf("it has %v, want %v", got.Subnets, had.Subnets)
	}
	if took < subnet.ChallengeWait {
		t.Errorf("it took the lease after %s, without having waited %s for an answer", took, subnet.ChallengeWait)
	}

	// The first one is back: now it is the clone, and must not go on with what
	// its former self left in the kernel.
	if err := first.RelaunchDaemon(); err != nil {
		t.Fatal(err)
	}
	expectRefused(t, first, second)
	waitGone(t, first, follow)
}

// expectRefused waits for a daemon to end since another host has its node id.
func expectRefused(t *testing.T, h, by *lab.Host) {
	t.Helper()
	began := time.Now()
	code, err := h.Daemon.ExitCode(within(t, time.Minute))
	if err != nil {
		t.Fatal(errStop(h, err))
	}
	t.Logf("%s ends after %s", h.Name, time.Since(began))
	last := h.Daemon.Tail(1)
	for _, want := range []string{"node id twin", h.Addrs[0].Addr().String(), by.Addrs[0].Addr().String(), "/etc/machine-id", "--node-id"} {
		if !strings.Contains(last, want) {
			t.Errorf("%q is missing in: %s", want, last)
		}
	}
	if code != 1 {
		t.Errorf("exit status %d, want 1", code)
	}
}

// A host was installed anew: it has another node id and the same address. It
// works, everybody says what is left over, and the operator can remove that.
func TestReinstalledHost(t *testing.T) {
	t.Parallel()
	l := newNetwork(t, 2, configs["vxlan"])
	h, peer := l.Hosts[0], l.Hosts[1]
	former := standingOf(t, h).subnet
	if err := h.Daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	forget(t, h)
	if err := os.RemoveAll(h.StateDir()); err != nil {
		t.Fatal(err)
	}
	if err := h.StartDaemon("--node-id=anew"); err != nil {
		t.Fatal(err)
	}
	st, err := h.WaitStatus(within(t, time.Minute), "a lease", func(st lab.Status) bool { return st.Ready && st.Lease.State == "valid" })
	if err != nil {
		t.Fatal(err)
	}
	if st.Lease.Subnet == former.String() {
		t.Errorf("it has %s, which is another node's", former)
	}
	address := h.Addrs[0].Addr().String()
	for _, who := range []struct {
		host      *lab.Host
		component string
	}{{h, "lease"}, {peer, "peers"}} {
		p, err := who.host.WaitProblem(within(t, time.Minute), who.component, address)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{former.String(), st.Lease.Subnet, h.NodeID(), "anew"} {
			if !strings.Contains(p.Message, want) {
				t.Errorf("%s does not name %s: %s", who.host.Name, want, p.Message)
			}
		}
	}
	out := flannelctl(t, l, "release", former.String(), "--yes")
	if !strings.Contains(out, "released "+former.String()) {
		t.Errorf("flannelctl release: %s", out)
	}
	waitWell(t, l, time.Minute)
}

// flannelctl runs it on the switch, far from any daemon.
func flannelctl(t *testing.T, l *lab.Lab, args ...string) string {
	t.Helper()
	args = append(args, "--etcd-endpoints="+l.EtcdURL(), "--etcd-prefix="+lab.Prefix)
	out, err := l.Switch.Run(within(t, time.Minute), command(t, "flannelctl"), args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("flannelctl %s: %s", args[0], strings.TrimSpace(out))
	return out
}
