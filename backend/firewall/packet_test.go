package firewall

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/firewall/native"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// space is a network namespace without a name: it ends with its handle and its
// processes, of which there are none.
type space struct{ handle netns.NsHandle }

func newSpace(t *testing.T) *space {
	t.Helper()
	s := &space{netns.None()}
	err := make(chan error)
	go func() {
		// The thread is not given back: it ends with the goroutine.
		runtime.LockOSThread()
		var e error
		s.handle, e = netns.New()
		err <- e
	}()
	if e := <-err; e != nil {
		t.Fatalf("make network namespace: %v", e)
	}
	t.Cleanup(func() { s.handle.Close() })
	s.ip(t, "link set lo up")
	// An address that may be somebody else's cannot be used for a second, and one that is
	// not added with nodad until a worker of the kernel has found out that this is off.
	s.sysctl(t, "net/ipv6/conf/all/accept_dad", "0")
	s.sysctl(t, "net/ipv6/conf/default/accept_dad", "0")
	return s
}

// inside starts fn on a thread inside and returns where its end will be told, also that of
// a test which fails in fn.
func (s *space) inside(fn func() error) <-chan error {
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := errors.New("the test has ended inside")
		defer func() { ended <- err }()
		if e := netns.Set(s.handle); e != nil {
			err = e
			return
		}
		err = fn()
	}()
	return ended
}

// do runs fn on a thread inside.
func (s *space) do(t *testing.T, fn func() error) {
	t.Helper()
	if err := <-s.inside(fn); err != nil {
		t.Fatal(err)
	}
}

// ip runs ip commands, one per line.
func (s *space) ip(t *testing.T, commands string) {
	t.Helper()
	s.do(t, func() error {
		cmd := exec.Command("ip", "-batch", "-")
		cmd.Stdin = strings.NewReader(commands)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("ip: %w: %s in:\n%s", err, out, commands)
		}
		return nil
	})
}

func (s *space) sysctl(t *testing.T, name, value string) {
	t.Helper()
	s.do(t, func() error { return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0) })
}

// plug joins eth0 of s with a link of that name in to.
func (s *space) plug(t *testing.T, to *space, name string) {
	t.Helper()
	s.ip(t, fmt.Sprintf("link add eth0 type veth peer name %s netns /proc/%d/fd/%d\nlink set eth0 up", name, os.Getpid(), to.handle))
	to.ip(t, "link set "+name+" up")
}

// answer listens on TCP port 7000 and tells every caller who it is. Two sockets:
// whether one can do for both families is decided once per process, by the namespace
// that happens to ask first.
func (s *space) answer(t *testing.T) {
	t.Helper()
	s.answerOn(t, "tcp4")
	s.answerOn(t, "tcp6")
}

func (s *space) answerOn(t *testing.T, network string) {
	t.Helper()
	s.do(t, func() error {
		l, err := net.Listen(network, ":7000")
		if err != nil {
			return err
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(c, netip.MustParseAddrPort(c.RemoteAddr().String()).Addr())
				c.Close()
			}
		}()
		t.Cleanup(func() {
			l.Close()
			<-done
		})
		return nil
	})
}

// call is one to TCP port 7000 of somebody who answers.
type call struct {
	by *space
	// from is empty for whatever address the kernel takes.
	from, to string
}

func (s *space) calling(from, to string) call { return call{s, from, to} }

const (
	// unreachable is what is seen of a call that does not come through.
	unreachable = "unreachable"
	// briefly is how long one is made that must not.
	briefly = 600 * time.Millisecond
	// patiently is for one that must: a busy machine may lose a packet or let it
	// wait, and TCP sends it again after one second, three, seven and so on.
	patiently = time.Minute
)

// made returns what the callee says of who called, or why it is unreachable. A refusal
// counts at once: nobody calls again.
func (c call) made(t *testing.T, within time.Duration) (seen string, why error) {
	t.Helper()
	seen = unreachable
	c.by.do(t, func() error {
		d := net.Dialer{Timeout: within}
		if c.from != "" {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(c.from), 0))
		}
		var conn net.Conn
		conn, why = d.Dial("tcp", net.JoinHostPort(c.to, "7000"))
		if errors.Is(why, syscall.EADDRNOTAVAIL) {
			return why // nothing was sent
		}
		if why != nil {
			return nil
		}
		defer conn.Close()
		if err := conn.SetReadDeadline(time.Now().Add(patiently)); err != nil {
			return err
		}
		text, err := io.ReadAll(conn)
		seen = string(text)
		return err
	})
	return seen, why
}

// brief is what is seen of a call right now.
func (c call) brief(t *testing.T) string {
	t.Helper()
	seen, _ := c.made(t, briefly)
	return seen
}

func newMachine(t *testing.T, net *space, f subnet.Family, n int) *machine {
	t.Helper()
	m := &machine{host: newSpace(t), container: newSpace(t), family: f, n: n}
	m.host.plug(t, net, fmt.Sprintf("h%d", n))
	net.ip(t, fmt.Sprintf("link set h%d master switch", n))
	m.host.ip(t, fmt.Sprintf("addr add %s dev eth0\nlink add docker0 type bridge\naddr add %s dev docker0\nlink set docker0 up", onLink(m.public()), onLink(m.gateway())))
	m.container.plug(t, m.host, "c1")
	m.host.ip(t, "link set c1 master docker0")
	m.container.ip(t, fmt.Sprintf("addr add %s dev eth0\nroute add default via %s", onLink(m.contained()), m.gateway()))
	// What is dropped must be dropped by rules.
	m.host.sysctl(t, "net/ipv4/conf/all/rp_filter", "0")
	m.host.sysctl(t, "net/ipv4/conf/eth0/rp_filter", "0")
	m.host.sysctl(t, "net/ipv4/conf/default/rp_filter", "0")
	m.host.sysctl(t, "net/ipv4/ip_forward", "1")
	m.host.sysctl(t, "net/ipv6/conf/all/forwarding", "1")
	m.container.answer(t)
	m.host.find(t, m.contained())
	return m
}

// join makes one of two data paths to a peer.
func (m *machine) join(t *testing.T, peer *machine, tunnel backend.Tunnel) {
	t.Helper()
	m.host.find(t, peer.public())
	if tunnel.Direct {
		m.host.ip(t, fmt.Sprintf("route add %s via %s", peer.subnet(), peer.public()))
		return
	}
	device := tunnel.Devices[0]
	m.host.do(t, func() error {
		if _, err := net.InterfaceByName(device); err == nil {
			return nil
		}
		out, err := exec.Command("ip", "link", "add", device, "address", m.mac(), "type", "vxlan", "id", fmt.Sprint(tunnel.VNI),
			"local", m.public(), "dev", "eth0", "dstport", fmt.Sprint(tunnel.Port), "nolearning").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		out, err = exec.Command("sh", "-c", "ip addr add "+m.vtep()+" dev "+device+" nodad && ip link set "+device+" up").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	m.host.ip(t, fmt.Sprintf("neigh add %s lladdr %s dev %s nud permanent\nroute add %s via %s dev %s onlink",
		peer.vtep(), peer.mac(), device, peer.subnet(), peer.vtep(), device))
	m.host.do(t, func() error {
		out, err := exec.Command("bridge", "fdb", "append", peer.mac(), "dev", device, "dst", peer.public()).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// strict are policies and a rule of the host's owner.
const strict = "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n"

// protect gives the host Docker's rules and a firewall of ours that is not
// applied yet.
func (m *machine) protect(t *testing.T, p path, from ...*machine) {
	t.Helper()
	m.d = Desired{
		Tunnel: p.tunnel, Uplink: "eth0", ForwardRules: true, Native: p.native == nativeNAT,
	}
	m.d.Networks[m.family] = netip.MustParsePrefix(overlays()[m.family])
	m.d.Own[m.family] = netip.MustParsePrefix(m.subnet())
	for _, peer := range from {
		m.d.Peers = append(m.d.Peers, peer.peer())
	}
	m.host.do(t, func() error {
		tools := &Exec{}
		variants, err := tools.Variants(t.Context(), m.family)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(variants, func(v Variant) bool { return v.Command == p.command() })
		if i < 0 {
			return fmt.Errorf("no %s in PATH", p.command())
		}
		m.b = &bench{tools, variants[i], New(Options{Log: quiet(), Tools: tools, Native: p.table()})}
		return nil
	})
	m.guard(t, p)
}

// guard writes the rules of Docker and of the host's owner.
func (m *machine) guard(t *testing.T, p path) {
	t.Helper()
	m.others(t, dockerWrites(t, p.docker, m.n)+strict)
	if m.family == subnet.IPv6 {
		// Nobody is found without.
		m.others(t, "*filter\n-A INPUT -p ipv6-icmp -j ACCEPT\nCOMMIT\n")
	}
}

func (m *machine) apply(t *testing.T) {
	t.Helper()
	m.host.do(t, func() error { return m.applied(t.Context()) })
}

// applied applies as the daemon does: what a firewalld had no time for, on a busy
// machine or since it reloads, is tried again.
func (m *machine) applied(ctx context.Context) (err error) {
	for range 4 {
		if err = m.b.f.Apply(ctx, m.d); !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			break
		}
	}
	return err
}

// others does what another program would; addresses of IPv4 are translated to those
// that the machine has.
func (m *machine) others(t *testing.T, script string) {
	t.Helper()
	script = m.translate(script)
	m.host.do(t, func() error {
		for _, table := range strings.SplitAfter(script, "COMMIT\n") {
			if table == "" {
				continue
			}
			if err := m.b.tools.Restore(t.Context(), m.b.v, table); err != nil {
				return fmt.Errorf("%w in:\n%s", err, table)
			}
		}
		return nil
	})
}

// wantCall wants a call to be seen as one from an address, or to be unreachable.
func wantCall(t *testing.T, what string, c call, want string) {
	t.Helper()
	within := patiently
	if want == unreachable {
		within = briefly
	}
	if got, why := c.made(t, within); got != want {
		t.Errorf("%s: the callee saw %s (%v), want %s", what, got, why, want)
	}
}

// Three real hosts with the rules of Docker, FORWARD's and INPUT's policies DROP,
// and Docker's masquerade: packets of every kind, over a tunnel and plainly.
func TestPackets(t *testing.T) {
	onPaths(t, append(paths("20.10", "28.5"), paths6("28.5")...), testPackets)
}

// path is one of the ways that packets can go.
type path struct {
	variant, docker string
	tunnel          backend.Tunnel
	// native says what our own table does.
	native nativeUse
	family subnet.Family
}

type nativeUse uint8

const (
	nativeDrops nativeUse = iota
	// nativeNAT: translate too.
	nativeNAT
	// nativeMissing: nothing, the kernel has no nf_tables.
	nativeMissing
)

func (u nativeUse) String() string { return [...]string{"drops", "nat", "missing"}[u] }

// table is nil for the real one.
func (p path) table() Native {
	if p.native == nativeMissing {
		return &fakeNative{fail: &native.ErrUnsupported{Feature: native.FeatureTables}}
	}
	return nil
}

func (p path) String() string {
	kind := "host-gw"
	if !p.tunnel.Direct {
		kind = "vxlan"
	}
	return fmt.Sprintf("%s/%s/%s/%s", p.command(), p.docker, kind, p.native)
}

// paths are one for each variant, Docker and kind of backend, and in turn what
// our own table does.
func paths(dockers ...string) []path {
	tunnels := []backend.Tunnel{
		{Devices: []string{"flannel.1"}, Port: 8472, Encapsulation: backend.VXLANFrame, VNI: 1},
		{Direct: true},
	}
	var out []path
	for _, variant := range []string{"iptables-nft", "iptables-legacy"} {
		for _, docker := range dockers {
			for _, tunnel := range tunnels {
				native := []nativeUse{nativeDrops, nativeNAT, nativeMissing}[len(out)%3]
				out = append(out, path{variant: variant, docker: docker, tunnel: tunnel, native: native})
			}
		}
	}
	return out
}

// onPaths runs a test on each, at the same time.
func onPaths(t *testing.T, paths []path, test func(t *testing.T, p path)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	for _, p := range paths {
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath(p.command()); err != nil {
				t.Skip("needs program: " + p.command())
			}
			test(t, p)
		})
	}
}

func testPackets(t *testing.T, p path) {
	tunnel := p.tunnel
	a, b, lan := pair(t, p)
	c := newMachine(t, lan, p.family, 3)
	a.join(t, c, tunnel)
	c.join(t, a, tunnel)
	// Docker lets containers out to anywhere; where it does not, ours must do.
	a.others(t, map[string]string{
		"20.10": "*filter\n-D FORWARD -i docker0 ! -o docker0 -j ACCEPT\nCOMMIT\n",
		"28.5":  "*filter\n-D DOCKER-FORWARD -i docker0 -j ACCEPT\nCOMMIT\n",
	}[p.docker])

	wantCall(t, "container to container without us", a.container.calling("", b.contained()), unreachable)
	a.apply(t)
	b.apply(t)
	wantCall(t, "container to container", a.container.calling("", b.contained()), a.contained())
	wantCall(t, "container to container, back", b.container.calling("", a.contained()), b.contained())

	// The host itself: by a tunnel it has an address of the network, plainly
	// it gets one.
	ownName := a.vtep()
	if tunnel.Direct {
		ownName = a.gateway()
	}
	wantCall(t, "host to container", a.host.calling("", b.contained()), ownName)
	wantCall(t, "host's uplink address to container", a.host.calling(a.public(), b.contained()), a.gateway())
	testStranger(t, a, c, tunnel)
	testForged(t, a, b)
	testOutside(t, a, b, lan)
}

// pair are two hosts that are joined, with Docker's rules and without ours.
func pair(t *testing.T, p path) (a, b *machine, lan *space) {
	t.Helper()
	lan = newSpace(t)
	lan.ip(t, "link add switch type bridge\nlink set switch up")
	a, b = newMachine(t, lan, p.family, 1), newMachine(t, lan, p.family, 2)
	a.join(t, b, p.tunnel)
	b.join(t, a, p.tunnel)
	a.protect(t, p, b)
	b.protect(t, p, a)
	return a, b, lan
}

// testStranger: c is no peer of a yet and has no firewall at all.
func testStranger(t *testing.T, a, c *machine, tunnel backend.Tunnel) {
	t.Helper()
	if !tunnel.Direct {
		wantCall(t, "tunnel of a stranger", c.container.calling("", a.contained()), unreachable)
		a.d.Peers = append(a.d.Peers, c.peer())
		a.apply(t)
	}
	wantCall(t, "tunnel of a new peer", c.container.calling("", a.contained()), c.contained())
}

// testForged lets b send a source outside of the network in by the overlay. Answers
// would find their way: only rules can drop it.
func testForged(t *testing.T, a, b *machine) {
	t.Helper()
	foreign := [...]string{"198.51.100.7", "2001:db8::7"}[a.family]
	b.host.do(t, func() error { return b.b.f.Cleanup(t.Context()) })
	b.host.ip(t, "addr add "+foreign+" dev lo nodad")
	a.host.ip(t, "route add "+foreign+" via "+b.public())
	wantCall(t, "foreign source by the overlay", b.host.calling(foreign, a.contained()), unreachable)
	a.host.do(t, func() error { return native.New(native.Options{Log: quiet()}).Cleanup(t.Context()) })
	a.others(t, "*filter\n:FORWARD ACCEPT [0:0]\n-I FORWARD 1 -s "+foreign+" -j ACCEPT\n-I DOCKER-ISOLATION-STAGE-1 1 -o docker0 -j ACCEPT\nCOMMIT\n*raw\n-I PREROUTING 1 -s "+foreign+" -j ACCEPT\nCOMMIT\n")
	wantCall(t, "foreign source with an open firewall, or the test proves nothing", b.host.calling(foreign, a.contained()), foreign)
	a.others(t, "*filter\n:FORWARD DROP [0:0]\n-D FORWARD -s "+foreign+" -j ACCEPT\n-D DOCKER-ISOLATION-STAGE-1 -o docker0 -j ACCEPT\nCOMMIT\n*raw\n-D PREROUTING -s "+foreign+" -j ACCEPT\nCOMMIT\n")
	a.apply(t)
	b.apply(t)
}

// testOutside: first Docker masquerades, then we do, then nobody.
func testOutside(t *testing.T, a, b *machine, lan *space) {
	t.Helper()
	outside := a.outside(t, lan)
	a.others(t, "*filter\n-A FORWARD -i docker0 ! -o docker0 -j ACCEPT\nCOMMIT\n")
	wantCall(t, "to the outside by Docker's masquerade", a.container.calling("", outside), a.public())
	a.others(t, "*nat\n-D POSTROUTING -s "+a.subnet()+" ! -o docker0 -j MASQUERADE\nCOMMIT\n")
	wantCall(t, "to the outside without masquerade", a.container.calling("", outside), unreachable)
	a.d.Masquerade, a.d.RandomFully = true, true
	a.apply(t)
	wantCall(t, "to the outside by our masquerade", a.container.calling("", outside), a.public())
	wantCall(t, "container to container, still", a.container.calling("", b.contained()), a.contained())
	testMulticast(t, a, lan)
}
