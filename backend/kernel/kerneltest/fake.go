package kerneltest

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"syscall"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/internal/feed"
)

// Op is one operation on one thing.
type Op struct {
	// Verb is "put", "delete", "list", "add" (link), "set" (link, sysctl) or
	// "confirm" (resolved).
	Verb string
	// Kind is "link", "addr", "route", "neighbour", "fdb", "sysctl",
	// or "resolved", which is only listed and confirmed.
	Kind string
	// Entry is the thing in iproute2's notation; empty for "list".
	Entry string
	// Value is the entry itself, a kernel.Link or kernel.LinkChange for
	// links; nil for "list" and sysctls.
	Value any
}

// String reads as "put route 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink".
func (o Op) String() string {
	if o.Entry == "" {
		return o.Verb + " " + o.Kind
	}
	return o.Verb + " " + o.Kind + " " + o.Entry
}

// Fake is a network stack in memory. Its methods beyond kernel.Host are the
// test's own hand: they are neither recorded nor refused.
type Fake struct {
	mu         sync.Mutex
	nextIndex  int
	links      map[int]kernel.Link
	addrs      map[kernel.Addr]struct{}
	routes     map[kernel.RouteKey]kernel.Route
	neighbours map[kernel.NeighbourKey]kernel.Neighbour
	resolved   map[kernel.NeighbourKey]kernel.MAC // what ages
	fdb        map[kernel.FDBKey]kernel.FDB
	sysctls    map[string]string
	feeds      map[*feed.Feed[kernel.Event]]struct{}
	ops        []Op
	hook       func(Op) error
}

var _ kernel.Host = (*Fake)(nil)

// ipForward is the sysctl that takes those of all links along.
const ipForward = "net/ipv4/ip_forward"

// New returns a stack like that of a fresh network namespace: a loopback link
// that is down, and nothing else.
func New() *Fake {
	return &Fake{
		nextIndex: 2,
		links: map[int]kernel.Link{
			1: {Index: 1, Name: "lo", Type: "loopback", MTU: 65536, TxQueueLen: 1000},
		},
		addrs:      map[kernel.Addr]struct{}{},
		routes:     map[kernel.RouteKey]kernel.Route{},
		neighbours: map[kernel.NeighbourKey]kernel.Neighbour{},
		resolved:   map[kernel.NeighbourKey]kernel.MAC{},
		fdb:        map[kernel.FDBKey]kernel.FDB{},
		sysctls: map[string]string{
			ipForward:                          "0",
			forwarding4("lo"):                  "0",
			forwarding4("default"):             "0",
			"net/ipv6/conf/all/forwarding":     "0",
			"net/ipv6/conf/default/forwarding": "0",
		},
		feeds: map[*feed.Feed[kernel.Event]]struct{}{},
	}
}

// Plug adds a link that no AddLink can make (a physical one: empty Type; a tun)
// with its addresses, brings it up, and returns it with
// its index.
func (f *Fake) Plug(l kernel.Link, addrs ...netip.Prefix) kernel.Link {
	f.mu.Lock()
	defer f.mu.Unlock()
	l.Up, l.Running = true, true
	l = f.insertLink(l)
	for _, p := range addrs {
		f.addrs[kernel.Addr{Link: l.Index, Prefix: p}] = struct{}{}
	}
	f.emit(kernel.TopicLink, l.Index)
	return l
}

// SetRunning plays a cable that is pulled or plugged.
func (f *Fake) SetRunning(index int, running bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.links[index]
	l.Running = running
	f.links[index] = l
	f.emit(kernel.TopicLink, index)
}

// Resolve plays an answer to ARP or NDP; the zero MAC: there is none any more.
func (f *Fake) Resolve(link int, addr netip.Addr, mac kernel.MAC) {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := kernel.NeighbourKey{Link: link, Addr: addr}
	if _, permanent := f.neighbours[key]; permanent || f.resolved[key] == mac {
		return
	}
	if mac == (kernel.MAC{}) {
		delete(f.resolved, key)
	} else {
		f.resolved[key] = mac
	}
	f.tell(kernel.Event{Topic: kernel.TopicResolved, Link: link, Addr: addr, MAC: mac})
}

// DefineSysctl makes a sysctl exist.
func (f *Fake) DefineSysctl(name, value string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sysctls[name] = value
}

// Overrun tells all subscribers that events were lost.
func (f *Fake) Overrun() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.emit(kernel.TopicOverrun, 0)
}

// Ops returns what was done since the start or the last ResetOps, in order,
// refusals left out; lists and reads are not recorded.
func (f *Fake) Ops() []Op {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Op(nil), f.ops...)
}

// ResetOps forgets what was done.
func (f *Fake) ResetOps() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ops = nil
}

// OnOp sets a function that sees every operation before it is done, lists
// included, and refuses it by an error. It must not call the Fake. Nil: none.
func (f *Fake) OnOp(hook func(Op) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}

// FailNth returns a function for OnOp that refuses the n-th operation, counted
// from 1, for which match holds; nil matches all.
func FailNth(n int, err error, match func(Op) bool) func(Op) error {
	seen := 0
	return func(o Op) error {
		if match != nil && !match(o) {
			return nil
		}
		if seen++; seen == n {
			return err
		}
		return nil
	}
}

// do runs one operation unless the hook refuses it, and records it if it
// worked.
func (f *Fake) do(o Op, run func() error) error {
	if f.hook != nil {
		if err := f.hook(o); err != nil {
			return err
		}
	}
	if err := run(); err != nil {
		return err
	}
	if o.Verb != "list" {
		f.ops = append(f.ops, o)
	}
	return nil
}

func (f *Fake) emit(t kernel.Topic, link int) { f.tell(kernel.Event{Topic: t, Link: link}) }

// Hush ends the telling of events: it tells those of the caller's own doing, too, which a
// [kernel.Netlink] keeps to itself.
func (f *Fake) Hush() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.feeds)
}

func (f *Fake) tell(e kernel.Event) {
	for sub := range f.feeds {
		sub.Add(e)
	}
}

// Events implements kernel.Host.
func (f *Fake) Events(ctx context.Context) (<-chan kernel.Event, error) {
	const waiting = 1024
	sub := feed.New(kernel.Event{Topic: kernel.TopicOverrun}, waiting)
	f.mu.Lock()
	f.feeds[sub] = struct{}{}
	f.mu.Unlock()
	out := make(chan kernel.Event)
	go func() {
		defer close(out)
		sub.Run(ctx, out)
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.feeds, sub)
	}()
	return out, nil
}

// Sysctl implements kernel.Host.
func (f *Fake) Sysctl(name string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, ok := f.sysctls[name]
	if !ok {
		return "", fmt.Errorf("read sysctl %s: %w", name, kernel.ErrNotFound)
	}
	return v, nil
}

// SetSysctl implements kernel.Host.
func (f *Fake) SetSysctl(name, value string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.do(Op{Verb: "set", Kind: "sysctl", Entry: name + "=" + value}, func() error {
		if _, ok := f.sysctls[name]; !ok {
			return fmt.Errorf("write sysctl %s: %w", name, kernel.ErrNotFound)
		}
		before := f.sysctls[name]
		f.sysctls[name] = value
		if before != value {
			f.forwardingChanged(name, value)
		}
		return nil
	})
}

// forwarding4 is the name of a link's switch. It begins as that of the link "default".
func forwarding4(link string) string { return "net/ipv4/conf/" + link + "/forwarding" }

// forwardingChanged does what follows from a sysctl if it is about forwarding.
func (f *Fake) forwardingChanged(name, value string) {
	switch name {
	case ipForward:
		f.sysctls[forwarding4("default")] = value
		for _, l := range f.links {
			f.sysctls[forwarding4(l.Name)] = value
		}
		f.emit(kernel.TopicForwarding, 0)
	case "net/ipv6/conf/all/forwarding":
		f.emit(kernel.TopicForwarding, 0)
	}
	for _, l := range f.links {
		if name == forwarding4(l.Name) && value == "0" {
			f.emit(kernel.TopicForwarding, l.Index)
		}
	}
}

// refused is an error as the kernel gives it.
func refused(code syscall.Errno, message string) error {
	return &kernel.Error{Code: code, Message: message}
}
