package backendtest

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// Lab is some hosts on a switch.
type Lab struct {
	Hosts  []*Host
	t      *testing.T
	config *subnet.Config
	make   backend.Constructor
	fabric *kerneltest.Namespace
}

// Host is one of a Lab's hosts. Its number n is in all its addresses.
type Host struct {
	*kerneltest.Namespace
	Backend backend.Backend
	// Uplink is what the next Apply sends by.
	Uplink backend.Uplink
	// Result is what the last Apply had to change.
	Result reconcile.Result
	// Lease is what the others are told.
	Lease subnet.Lease

	lab     *Lab
	n       int
	segment int
	inside  *kerneltest.Namespace
}

// NewLab starts a host per element of segments, on segment 0 or 1.
func NewLab(t *testing.T, constructor backend.Constructor, config string, segments ...int) *Lab {
	t.Helper()
	c, err := subnet.ParseConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	l := &Lab{t: t, config: c, make: constructor, fabric: kerneltest.NetNS(t, kernel.Options{})}
	l.fabric.Run(t, "ip", "link", "set", "lo", "up")
	for s := range 2 {
		bridge := fmt.Sprintf("br%d", s)
		l.fabric.Run(t, "ip", "link", "add", bridge, "type", "bridge")
		l.fabric.Run(t, "ip", "addr", "add", fmt.Sprintf("198.18.%d.254/24", s), "dev", bridge)
		l.fabric.Run(t, "ip", "addr", "add", fmt.Sprintf("fd00:198:%d::fe/64", 18+s), "nodad", "dev", bridge)
		l.fabric.Run(t, "ip", "link", "set", bridge, "up")
	}
	l.forward(l.fabric)
	for i, s := range segments {
		l.addHost(i+1, s)
	}
	return l
}

// forward makes a namespace a router.
func (l *Lab) forward(ns *kerneltest.Namespace) {
	l.t.Helper()
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := ns.SetSysctl(key, "1"); err != nil {
			l.t.Fatal(err)
		}
	}
}

// path names a namespace for commands, which are processes of their own.
func path(ns *kerneltest.Namespace) string {
	return strings.Replace(ns.Path, "self", fmt.Sprint(os.Getpid()), 1)
}

// cable joins name in ns to a bridge port in another namespace.
func (l *Lab) cable(ns *kerneltest.Namespace, name string, to *kerneltest.Namespace, port, bridge string) {
	l.t.Helper()
	to.Run(l.t, "ip", "link", "add", port, "type", "veth", "peer", "name", name, "netns", path(ns))
	to.Run(l.t, "ip", "link", "set", port, "master", bridge, "up")
	ns.Run(l.t, "ip", "link", "set", name, "up")
	awaitCarrier(l.t, ns, name)
	awaitCarrier(l.t, to, port)
}

// awaitCarrier waits until a link transmits. The kernel says a new carrier to
// the queueing discipline, which drops until then, up to a second later.
func awaitCarrier(t testing.TB, ns *kerneltest.Namespace, name string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); <-tick.C {
		l, err := ns.LinkByName(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if l.Running {
			return
		}
	}
	t.Fatalf("link %s has no carrier", name)
}

// awaitAnswer waits until an address of a segment answers. The kernel joins the group in
// which its neighbours ask for an IPv6 address some time after it has the address.
func awaitAnswer(t testing.TB, ns *kerneltest.Namespace, addr string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		ok := ns.Run(t, "sh", "-c", "ping -n -q -c 1 -W 1 "+addr+" >/dev/null 2>&1 && echo answered || true")
		if ok != "" {
			return
		}
	}
	t.Fatalf("%s does not answer", addr)
}

func (l *Lab) addHost(n, segment int) {
	t := l.t
	h := &Host{
		lab: l, n: n, segment: segment,
		Namespace: kerneltest.NetNS(t, kernel.Options{}), inside: kerneltest.NetNS(t, kernel.Options{}),
	}
	h.Run(t, "ip", "link", "set", "lo", "up")
	l.cable(h.Namespace, "eth0", l.fabric, fmt.Sprintf("h%d", n), fmt.Sprintf("br%d", segment))
	h.Run(t, "ip", "addr", "add", h.addr(subnet.IPv4).String()+"/24", "dev", "eth0")
	h.Run(t, "ip", "addr", "add", h.addr(subnet.IPv6).String()+"/64", "nodad", "dev", "eth0")
	h.Run(t, "ip", "route", "add", "default", "via", fmt.Sprintf("198.18.%d.254", segment))
	h.Run(t, "ip", "route", "add", "default", "via", fmt.Sprintf("fd00:198:%d::fe", 18+segment))
	l.forward(h.Namespace)

	h.Run(t, "ip", "link", "add", "docker0", "type", "bridge")
	h.Run(t, "ip", "addr", "add", fmt.Sprintf("10.5.%d.1/24", n), "dev", "docker0")
	h.Run(t, "ip", "addr", "add", fmt.Sprintf("fd05:0:0:%d::1/64", n), "nodad", "dev", "docker0")
	h.Run(t, "ip", "link", "set", "docker0", "up")
	l.cable(h.inside, "eth0", h.Namespace, "veth0", "docker0")
	h.inside.Run(t, "ip", "addr", "add", fmt.Sprintf("10.5.%d.2/24", n), "dev", "eth0")
	h.inside.Run(t, "ip", "addr", "add", fmt.Sprintf("fd05:0:0:%d::2/64", n), "nodad", "dev", "eth0")
	h.inside.Run(t, "ip", "route", "add", "default", "via", fmt.Sprintf("10.5.%d.1", n))
	h.inside.Run(t, "ip", "route", "add", "default", "via", fmt.Sprintf("fd05:0:0:%d::1", n))
	for f, inside := range []string{fmt.Sprintf("10.5.%d.2", n), fmt.Sprintf("fd05:0:0:%d::2", n)} {
		awaitAnswer(t, l.fabric, h.addr(subnet.Family(f)).String())
		awaitAnswer(t, h.Namespace, inside)
	}

	l.Hosts = append(l.Hosts, h)
	h.Restart(h.addr(subnet.IPv4))
}

// Container is the namespace of the host's one container, which has the second
// address of the host's subnet.
func (h *Host) Container() *kerneltest.Namespace { return h.inside }

// addr is the uplink's first address.
func (h *Host) addr(f subnet.Family) netip.Addr {
	if f == subnet.IPv6 {
		return netip.MustParseAddr(fmt.Sprintf("fd00:198:%d::%d", 18+h.segment, h.n))
	}
	return netip.MustParseAddr(fmt.Sprintf("198.18.%d.%d", h.segment, h.n))
}

// Restart makes a new backend, as a new process would, with an uplink of the
// given IPv4 address, and asks it what to tell the others.
func (h *Host) Restart(v4 netip.Addr) {
	h.lab.t.Helper()
	var err error
	h.Backend, err = h.lab.make(backend.Params{
		Config: h.lab.config, Node: subnet.NodeID(fmt.Sprintf("h%d", h.n)), Kernel: h.Netlink,
		Observe: func(r reconcile.Result) { h.Result = r },
	})
	if err != nil {
		h.lab.t.Fatal(err)
	}
	h.Move("eth0", v4)
}

// Move makes a link, with the given IPv4 address, the uplink, and asks the backend
// what to tell the others.
func (h *Host) Move(link string, v4 netip.Addr) {
	t := h.lab.t
	t.Helper()
	up, err := h.LinkByName(t.Context(), link)
	if err != nil {
		t.Fatal(err)
	}
	own := subnet.ByFamily[netip.Addr]{v4, h.addr(subnet.IPv6)}
	h.Uplink = backend.Uplink{
		Link: up, Addr: own, Public: own,
		Segments: []netip.Prefix{
			netip.PrefixFrom(h.addr(subnet.IPv4), 24).Masked(), netip.PrefixFrom(h.addr(subnet.IPv6), 64).Masked(),
		},
	}
	if h.Lease.Attrs, err = h.Backend.Attrs(h.Uplink); err != nil {
		t.Fatal(err)
	}
	h.Lease.Subnet = subnet.Subnet{netip.MustParsePrefix(fmt.Sprintf("10.5.%d.0/24", h.n))}
	if h.lab.config.Ranges[subnet.IPv6].Network.IsValid() {
		h.Lease.Subnet[subnet.IPv6] = netip.MustParsePrefix(fmt.Sprintf("fd05:0:0:%d::/64", h.n))
	}
}

// Desired is what the leases of all hosts mean for this one.
func (h *Host) Desired() backend.Desired {
	d := backend.Desired{Config: h.lab.config, Uplink: h.Uplink, Own: h.Lease}
	for _, other := range h.lab.Hosts {
		if other != h {
			lease := other.Lease
			d.Peers = append(d.Peers, &lease)
		}
	}
	return d
}

// Apply must succeed.
func (h *Host) Apply(ctx context.Context) {
	h.lab.t.Helper()
	if err := h.Backend.Apply(ctx, h.Desired()); err != nil {
		h.lab.t.Fatalf("host %d: Apply: %v", h.n, err)
	}
}

// ApplyAll brings all hosts to what the leases say.
func (l *Lab) ApplyAll() {
	l.t.Helper()
	for _, h := range l.Hosts {
		h.Apply(l.t.Context())
	}
}

// PingAll pings from every container every other one, with packets as large as
// the backend's MTU, and from every host every other's container.
func (l *Lab) PingAll() {
	l.t.Helper()
	for _, f := range subnet.Families() {
		if !l.config.Ranges[f].Network.IsValid() {
			continue
		}
		for _, from := range l.Hosts {
			for _, to := range l.Hosts {
				if from != to {
					l.ping(f, from, to)
				}
			}
		}
	}
}

func (l *Lab) ping(f subnet.Family, from, to *Host) {
	l.t.Helper()
	dst, headers := fmt.Sprintf("10.5.%d.2", to.n), 20+8
	if f == subnet.IPv6 {
		dst, headers = fmt.Sprintf("fd05:0:0:%d::2", to.n), 40+8
	}
	size := min(from.Backend.MTU(from.Uplink), 1500) - headers
	// One by one: once it has an answer, ping waits for the next not much longer than that
	// took, whatever it was told.
	args := []string{"-n", "-c", "1", "-W", "60", "-M", "do", "-s", fmt.Sprint(size), dst}
	for where, ns := range map[string]*kerneltest.Namespace{"container of ": from.inside, "": from.Namespace} {
		for range 2 {
			out := ns.Run(l.t, "ping", args...)
			if !strings.Contains(out, " 0% packet loss") {
				l.t.Errorf("ping from %shost %d to container of host %d:\n%s", where, from.n, to.n, out)
			}
		}
	}
}
