package udp

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// netns is a network namespace that ends with its test.
type netns string

var netnsCount atomic.Int32 //nolint:gochecknoglobals // names must be unique in the process

func newNetNS(t testing.TB) netns {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces")
	}
	n := netns(fmt.Sprintf("udpt-%d-%d", os.Getpid(), netnsCount.Add(1)))
	command(t, "ip", "netns", "add", string(n))
	t.Cleanup(func() { command(t, "ip", "netns", "del", string(n)) })
	n.ip(t, "link set lo up")
	return n
}

func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// ip runs ip(8) in the namespace and returns what it prints.
func (n netns) ip(t testing.TB, args string) string {
	t.Helper()
	return command(t, "ip", append([]string{"-n", string(n)}, strings.Fields(args)...)...)
}

// exec runs a program in the namespace and returns what it prints.
func (n netns) exec(t testing.TB, line string) string {
	t.Helper()
	return command(t, "ip", append([]string{"netns", "exec", string(n)}, strings.Fields(line)...)...)
}

// ping sends a few and returns what ping(8) prints, also when it fails. After the last
// one it waits for a second, for nothing is to come: else see pingAnswered.
func (n netns) ping(args string) string {
	args = "netns exec " + string(n) + " ping -n -i 0.01 -W 1 " + args
	out, _ := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
	return string(out)
}

// pingAnswered is ping for those of which each is to be answered, be it by an error.
func (n netns) pingAnswered(args string) string {
	return n.ping(fmt.Sprintf("-W %.0f %s", patient.Seconds(), args))
}

// pinging is a ping(8) that goes on until it is ended.
type pinging struct {
	cmd   *exec.Cmd
	ended chan struct{}

	mu  sync.Mutex
	out strings.Builder
}

// startPing returns once ping(8) has begun.
func (n netns) startPing(t testing.TB, args string) *pinging {
	t.Helper()
	p := &pinging{ended: make(chan struct{})}
	p.cmd = exec.Command("ip", strings.Fields("netns exec "+string(n)+" ping -n -i 0.01 "+args)...)
	stdout, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.end() })
	go func() {
		defer close(p.ended)
		for lines := bufio.NewReader(stdout); ; {
			line, err := lines.ReadString('\n')
			p.mu.Lock()
			p.out.WriteString(line)
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	await(t, "ping has begun", func() bool { return p.printed("PING ") })
	return p
}

// text is what it has printed.
func (p *pinging) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

func (p *pinging) printed(s string) bool { return strings.Contains(p.text(), s) }

// end ends it and returns all that it printed.
func (p *pinging) end() string {
	if p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Signal(os.Interrupt)
		<-p.ended
		_ = p.cmd.Wait()
	}
	return p.text()
}

// mustPing waits for five answers, or for more that come at once. Without a deadline
// ping(8) would wait for the last ones only twice as long as the first took, too little
// on a busy machine.
func mustPing(t testing.TB, from netns, args string) {
	t.Helper()
	out := from.ping(fmt.Sprintf("-c 5 -w %.0f %s", patient.Seconds(), args))
	if !regexp.MustCompile(` ([5-9]|[1-9]\d+) received`).MatchString(out) {
		t.Errorf("ping %s from %s:\n%s", args, from, out)
	}
}

// do runs f on a thread in the namespace; the thread ends with it.
func (n netns) do(t testing.TB, f func()) {
	t.Helper()
	errs := make(chan error)
	go func() {
		defer close(errs)
		runtime.LockOSThread() // for good
		ns, err := os.Open("/run/netns/" + string(n))
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err != nil {
			errs <- err
			return
		}
		f()
	}()
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
}

// machine is a host with a container, in real namespaces:
//
//	container eth0 10.5.N.2 --- docker0 10.5.N.1   flannel0   eth0 198.18.0.N --- the other
type machine struct {
	*Backend
	n         int
	ns        netns
	container netns
	host      *kernel.Netlink
	options   string // the config's Backend object
	address   string // of the uplink; empty: 198.18.0.N
	ended     chan error
	cancel    context.CancelFunc
}

// twoMachines joins two by a cable. No backend is up yet.
func twoMachines(t testing.TB) [2]*machine {
	t.Helper()
	m := [2]*machine{newMachine(t, 1), newMachine(t, 2)}
	m[0].ns.ip(t, "link add eth0 type veth peer name eth0 netns "+string(m[1].ns))
	for _, m := range m {
		m.ns.ip(t, fmt.Sprintf("addr add 198.18.0.%d/24 dev eth0", m.n))
		m.ns.ip(t, fmt.Sprintf("addr add fd00:198:18::%d/64 dev eth0 nodad", m.n))
		m.ns.ip(t, "link set eth0 up")
	}
	return m
}

func newMachine(t testing.TB, number int) *machine {
	t.Helper()
	m := &machine{n: number, ns: newNetNS(t), container: newNetNS(t)}
	command(t, "ip", "netns", "exec", string(m.ns), "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	m.ns.ip(t, "link add docker0 type veth peer name eth0 netns "+string(m.container))
	m.ns.ip(t, fmt.Sprintf("addr add 10.5.%d.1/24 dev docker0", number))
	m.ns.ip(t, "link set docker0 up")
	m.container.ip(t, fmt.Sprintf("addr add 10.5.%d.2/24 dev eth0", number))
	m.container.ip(t, "link set eth0 up")
	m.container.ip(t, fmt.Sprintf("route add default via 10.5.%d.1", number))
	host, err := kernel.Open(kernel.Options{NetNS: "/run/netns/" + string(m.ns)})
	if err != nil {
		t.Fatal(err)
	}
	m.host = host
	t.Cleanup(func() { host.Close() })
	return m
}

// config has both families over IPv4, and unless the test says otherwise two
// queues, whatever cores this machine has.
func (m *machine) config() *subnet.Config {
	c := testConfig(cmp.Or(m.options, `{"Queues":2}`))
	c.Ranges[subnet.IPv6] = subnet.Range{Network: netip.MustParsePrefix("fd05::/48"), SubnetLen: 64}
	return c
}

// lease is what the machine publishes: until it has a backend, a host of flannel's.
func (m *machine) lease() subnet.Lease {
	l := lease(fmt.Sprintf("10.5.%d.0/24", m.n), m.outer())
	if m.Backend != nil {
		l.Attrs, _ = m.Attrs(m.uplink())
	}
	l.Subnet[subnet.IPv6] = netip.MustParsePrefix(fmt.Sprintf("fd05:0:0:%d::/64", m.n))
	return l
}

// outer is the address of the uplink.
func (m *machine) outer() string { return cmp.Or(m.address, fmt.Sprintf("198.18.0.%d", m.n)) }

// uplink is eth0.
func (m *machine) uplink() backend.Uplink {
	u := testUplink(m.outer())
	if link, err := m.host.LinkByName(context.Background(), "eth0"); err == nil {
		u.Link.Index = link.Index
	}
	u.Segments = []netip.Prefix{netip.MustParsePrefix("198.18.0.0/24")}
	return u
}

// boot makes a new backend, as a new process would.
func (m *machine) boot(t testing.TB) {
	t.Helper()
	made, err := New(backend.Params{
		Config: m.config(), Kernel: m.host,
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Backend = made.(*Backend)
}

func (m *machine) apply(t testing.TB, peers ...*machine) (err error) {
	t.Helper()
	d := backend.Desired{Config: m.config(), Uplink: m.uplink(), Own: m.lease()}
	for _, p := range peers {
		lease := p.lease()
		d.Peers = append(d.Peers, &lease)
	}
	m.ns.do(t, func() { err = m.Apply(context.Background(), d) })
	return err
}

func (m *machine) mustApply(t testing.TB, peers ...*machine) {
	t.Helper()
	if err := m.apply(t, peers...); err != nil {
		t.Fatal(err)
	}
}

// start runs the data path until stop or the test's end.
func (m *machine) start(t testing.TB) {
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel, m.ended = cancel, make(chan error, 1)
	go func() { m.ended <- m.Run(ctx) }()
	t.Cleanup(func() {
		if m.cancel != nil {
			m.stop(t)
		}
	})
}

func (m *machine) stop(t testing.TB) {
	t.Helper()
	m.cancel()
	m.cancel = nil
	if err := <-m.ended; err != nil {
		t.Errorf("run: %v", err)
	}
}

// joined are two machines with their tunnel up.
func joined(t testing.TB) (a, b *machine) {
	t.Helper()
	m := twoMachines(t)
	join(t, m)
	return m[0], m[1]
}

// join brings the tunnel of two machines up.
func join(t testing.TB, m [2]*machine) {
	t.Helper()
	for _, own := range m {
		own.boot(t)
	}
	for i, own := range m {
		own.mustApply(t, m[1-i])
		own.start(t)
	}
}
