package kernel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/backend/reconcile"
)

// Options say how to open a Netlink. The zero value is for the daemon: the
// process's own namespace, and the best that its kernel can do.
type Options struct {
	// NetNS is the path of a network namespace ("/run/netns/h1"); empty: the
	// process's own. Another one needs CAP_SYS_ADMIN.
	NetNS string
	// Instance is who we are: whose nexthop objects are ours.
	Instance Instance
	// Gateways is the form in which routes through a gateway are written.
	Gateways GatewayForm
	// OthersOnly leaves out of Events what this very Host does to entries. Changes
	// of links are told of all the same.
	OthersOnly bool
}

// GatewayForm is a form of routes through a gateway.
type GatewayForm uint8

const (
	// GatewayAuto uses nexthop objects where the kernel has them.
	GatewayAuto GatewayForm = iota
	// GatewayClassic writes the gateway into each route, as flannel does.
	GatewayClassic
)

// Netlink is a Host that is a network namespace of the running kernel.
type Netlink struct {
	ns    *os.File // nil: the process's own
	gates GatewayForm
	// turn holds conn for the one who uses it; nil after Close.
	turn chan *conn
	hops hopTable // guarded by turn
	// own tells our own writes from others'; nil: events tell of both.
	own *echoes
}

var _ Host = (*Netlink)(nil)

// errClosed is for calls after Close.
var errClosed = fmt.Errorf("netlink: %w", os.ErrClosed)

// Open opens a Netlink; it must be closed.
func Open(o Options) (_ *Netlink, err error) {
	n := &Netlink{gates: o.Gateways, turn: make(chan *conn, 1), hops: hopTable{instance: o.Instance}}
	if o.NetNS != "" {
		if n.ns, err = os.Open(o.NetNS); err != nil {
			return nil, fmt.Errorf("open network namespace: %w", err)
		}
		defer func() {
			if err != nil {
				_ = n.ns.Close() // read-only
			}
		}()
	}
	var c *conn
	err = n.inside(func() (err error) {
		c, err = openConn()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	if o.OthersOnly {
		if n.own, err = newEchoes(c); err != nil {
			_ = unix.Close(c.fd) // the first error is the one to tell
			return nil, fmt.Errorf("open netlink: %w", err)
		}
	}
	n.turn <- c
	return n, nil
}

// Close frees the descriptors; it waits for running calls and leaves Events to
// their contexts. It may be called twice.
func (n *Netlink) Close() error {
	c := <-n.turn
	n.turn <- nil
	if c == nil {
		return nil
	}
	err := os.NewSyscallError("close netlink", unix.Close(c.fd))
	if n.ns != nil {
		err = errors.Join(err, n.ns.Close())
	}
	return err
}

// use runs f with the connection, one at a time.
func (n *Netlink) use(ctx context.Context, f func(*conn) error) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case c := <-n.turn:
		defer func() { n.turn <- c }()
		if c == nil {
			return errClosed
		}
		return f(c)
	}
}

// inside runs f on a thread that is in the namespace. A thread that cannot be
// brought back ends with its goroutine: it stays locked, and the runtime never
// reuses such a thread.
func (n *Netlink) inside(f func() error) error {
	if n.ns == nil {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- err
			runtime.UnlockOSThread()
			return
		}
		defer func() { _ = home.Close() }() // read-only
		if err := unix.Setns(int(n.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- os.NewSyscallError("setns", err)
			runtime.UnlockOSThread()
			return
		}
		err = f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// notation is an entry that can be printed for an error.
type notation interface{ Notation(link string) string }

// table is one kind of entries: what the four of them do alike. Link 0 is no
// filter.
type table[E notation] struct {
	n *Netlink
	// dumps are the requests whose answers together are the table.
	dumps []dump
	// parse reads one answer; ok is false for what is not of this table.
	parse func(message) (e E, ok bool, err error)
	link  func(E) int
	// encodePut and encodeDelete write the request for one entry.
	encodePut, encodeDelete func(*encoder, E)
	// known is where to note what is in the kernel; nil: nowhere.
	known notebook[E]
}

// notebook notes what a table is known to hold.
type notebook[E any] interface {
	put(entries []E)
	remove(entries []E)
}

// List implements reconcile.Table.
func (t *table[E]) List(ctx context.Context) ([]E, error) {
	var out []E
	err := t.n.use(ctx, func(c *conn) (err error) {
		out, err = list(ctx, c, nil, t.dumps, t.parse)
		return err
	})
	if err != nil {
		return nil, err
	}
	if t.known != nil {
		t.known.put(out)
	}
	return out, nil
}

// Put implements reconcile.Table.
func (t *table[E]) Put(ctx context.Context, entries []E) error {
	if t.known != nil {
		t.known.put(entries)
	}
	return t.batch(ctx, "put", entries, t.encodePut)
}

// Delete implements reconcile.Table.
func (t *table[E]) Delete(ctx context.Context, entries []E) error {
	if t.known != nil {
		t.known.remove(entries)
	}
	return t.batch(ctx, "delete", entries, t.encodeDelete)
}

func (t *table[E]) batch(ctx context.Context, op string, entries []E, encode func(*encoder, E)) error {
	var bad errorList
	err := t.n.use(ctx, func(c *conn) error {
		failed, sent, err := c.do(ctx, requests{
			n:      len(entries),
			encode: func(e *encoder, i int) { encode(e, entries[i]) },
		})
		for _, f := range failed {
			if op == "delete" && gone(code(f.err)) {
				continue
			}
			bad.add(f.i, f.err)
		}
		bad.rest(sent, len(entries), err)
		return nil
	})
	bad.rest(0, len(entries), err)
	if t.known != nil {
		for _, f := range bad {
			t.known.remove(entries[f.i : f.i+1]) // What is there is not known.
		}
	}
	return entryErrors(ctx, t.n, op, entries, t.link, bad)
}

// dump asks for a table. Answers of another family than the asked one are
// dropped: a kernel without IPv6 answers a question about it with all families.
type dump struct {
	family byte // AF_UNSPEC: any
	encode func(*encoder)
}

// list appends to out what is read by dumps, one after the other.
func list[E any](ctx context.Context, c *conn, out []E, dumps []dump, parse func(message) (E, bool, error)) ([]E, error) {
	for _, d := range dumps {
		begin := len(out)
		err := c.dump(ctx, d.encode, func() { out = out[:begin] }, func(m message) error {
			if d.family != unix.AF_UNSPEC && (len(m.data) == 0 || m.data[0] != d.family) {
				return nil
			}
			e, ok, err := parse(m)
			if ok {
				out = append(out, e)
			}
			return err
		})
		if gone(code(err)) {
			// A table that the kernel has not made yet, or the addresses of
			// a link that is gone: nothing is there.
			out, err = out[:begin], nil
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// errorList gathers the failures of entries by their index.
type errorList []failure

func (l *errorList) add(i int, err error) { *l = append(*l, failure{i, err}) }

// rest says that the entries from..n failed with err, if there is one.
func (l *errorList) rest(from, n int, err error) {
	if err == nil {
		return
	}
	for i := from; i < n; i++ {
		l.add(i, err)
	}
}

// entryErrors makes reconcile's errors, with the names that the links have now.
func entryErrors[E notation](ctx context.Context, n *Netlink, op string, entries []E, link func(E) int, bad errorList) error {
	if len(bad) == 0 {
		return nil
	}
	slices.SortFunc(bad, func(a, b failure) int { return cmp.Compare(a.i, b.i) })
	names := n.linkNames(ctx)
	errs := make([]error, len(bad))
	for i, f := range bad {
		e := entries[f.i]
		name, ok := names[link(e)]
		if !ok {
			name = linkName(link(e))
		}
		errs[i] = &reconcile.EntryError{Op: op, Entry: e.Notation(name), Value: e, Err: f.err}
	}
	return errors.Join(errs...)
}

// linkNames are for messages: none is no failure.
func (n *Netlink) linkNames(ctx context.Context) map[int]string {
	links, err := n.Links(context.WithoutCancel(ctx))
	if err != nil {
		return nil
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Index] = l.Name
	}
	return names
}
