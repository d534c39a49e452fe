package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Options describe a lab. Hosts is needed.
type Options struct {
	// Name is what everything of the lab begins with; when empty, one that
	// no other lab has.
	Name  string
	Hosts int
	// Replace removes what a killed lab of the name left.
	Replace bool
	// Daemon is the path of flanneld-go, DaemonArgs are given to it on every
	// host after the lab's own arguments, so that they win.
	Daemon     string
	DaemonArgs []string
	// Self is the path of flannel-lab, which runs etcd's members; by default this very
	// executable.
	Self string
}

// Lab is a switch, hosts and what runs on them.
type Lab struct {
	Name string
	// Dir holds a folder per host and etcd's data.
	Dir    string
	Switch *Node
	Hosts  []*Host

	opts   Options
	plan   plan
	claim  *claim
	bridge bridge

	// partitions guards every Host's dropped, and the switch's rules.
	partitions sync.Mutex

	mu        sync.Mutex
	cluster   *Cluster
	proxies   []*Proxy
	nodes     []*Node
	processes []*Process
	keepFiles bool
}

// New makes the switch and the hosts, with nothing running on them. Nothing is
// left after an error.
func New(ctx context.Context, o Options) (_ *Lab, err error) {
	if o.Name == "" {
		o.Name = fmt.Sprintf("lab%d-%x", os.Getpid(), rand.Uint32())
	}
	if err := checkName(o.Name); err != nil {
		return nil, err
	}
	p, err := planFor(o.Hosts)
	if err != nil {
		return nil, err
	}
	if o.Self == "" {
		if o.Self, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("find own executable: %w", err)
		}
	}
	c, err := claimName(ctx, o.Name, o.Replace)
	if err != nil {
		return nil, err
	}
	sweep(root, time.Now().Add(-keptFor))
	l := &Lab{Name: o.Name, Dir: c.dir, opts: o, plan: p, claim: c}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close(ctx))
		}
	}()
	if err := l.addSwitch(); err != nil {
		return nil, err
	}
	for number := 1; number <= o.Hosts; number++ {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err := l.addHost(number); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (l *Lab) addSwitch() error {
	node, err := l.addNode("sw")
	if err != nil {
		return err
	}
	l.Switch = node
	if err := node.Do(switchFrames); err != nil {
		return err
	}
	l.bridge, err = node.addBridge("br0", 0, l.plan.gateways[:])
	return err
}

// switchFrames makes the bridges of the calling thread's namespace as a switch is,
// which looks at frames alone: where br_netfilter is loaded, the kernel takes each
// through a host's firewall and connection table.
func switchFrames() error {
	for _, f := range []string{"iptables", "ip6tables", "arptables"} {
		err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+f, []byte("0"), 0o644)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // not loaded
			return fmt.Errorf("switch frames, not packets: %w", err)
		}
	}
	return nil
}

func (l *Lab) addHost(number int) error {
	h := &Host{Number: number, Addrs: l.plan.host(number), lab: l}
	node, err := l.addNode(h.port())
	if err != nil {
		return err
	}
	h.Node, h.Dir = node, filepath.Join(l.Dir, h.port())
	if err := os.Mkdir(h.Dir, 0o755); err != nil {
		return fmt.Errorf("make folder of %s: %w", node.Name, err)
	}
	l.Hosts = append(l.Hosts, h)
	gateways := []netip.Addr{l.plan.gateways[0].Addr(), l.plan.gateways[1].Addr()}
	return l.bridge.plug(h.port(), node, h.Addrs, gateways)
}

// addNode makes a namespace that Close removes, unless removeNode did.
func (l *Lab) addNode(role string) (*Node, error) {
	n, err := newNode(l.Name+"-"+role, l.Name)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nodes = append(l.nodes, n)
	return n, nil
}

// removeNode removes a namespace before Close does.
func (l *Lab) removeNode(n *Node) error {
	l.mu.Lock()
	l.nodes = slices.DeleteFunc(l.nodes, func(other *Node) bool { return other == n })
	l.mu.Unlock()
	return n.remove()
}

// Start starts a process in one of the lab's nodes that Close ends.
func (l *Lab) Start(n *Node, s Spec) (*Process, error) {
	p, err := n.start(l.Name, s)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.processes = append(l.processes, p)
	return p, nil
}

// KeepFiles makes Close leave the lab's folder, for its logs. The next lab of
// the name removes it.
func (l *Lab) KeepFiles() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keepFiles = true
}

// closeWithin is how long processes may take to end when asked.
const closeWithin = 5 * time.Second

// Close ends the lab's processes and removes its namespaces and files, also when
// ctx has ended. It must be called once, after everything else has returned.
func (l *Lab) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWithin)
	defer cancel()
	var errs []error
	if l.cluster != nil {
		errs = append(errs, l.cluster.closeClients())
	}
	// The daemons first: they need not notice that their etcd goes.
	stopped := make(chan error)
	for _, p := range l.processes {
		go func() { stopped <- p.Stop(ctx) }()
	}
	for range l.processes {
		errs = append(errs, <-stopped)
	}
	for _, p := range l.proxies {
		errs = append(errs, p.Close())
	}
	if l.cluster != nil {
		errs = append(errs, l.cluster.Stop(ctx))
	}
	for _, n := range l.nodes {
		errs = append(errs, n.remove())
	}
	errs = append(errs, l.claim.release(l.keepFiles))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close lab %s: %w", l.Name, err)
	}
	return nil
}
