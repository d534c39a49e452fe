package kerneltest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"syscall"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
)

// table is one kind of entries of a Fake: what differs is data. Its functions
// are called with the Fake's mutex held.
type table[E notator] struct {
	fake   *Fake
	kind   string
	topic  kernel.Topic
	link   func(E) int
	list   func() []E
	put    func(E) error
	remove func(E)
}

type notator interface {
	fmt.Stringer
	Notation(link string) string
}

// List implements reconcile.Table.
func (t table[E]) List(ctx context.Context) ([]E, error) {
	t.fake.mu.Lock()
	defer t.fake.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("list %s: %w", t.kind, err)
	}
	var out []E
	err := t.fake.do(Op{Verb: "list", Kind: t.kind}, func() error {
		out = t.list()
		return nil
	})
	if err != nil {
		return nil, err
	}
	return sorted(out), nil
}

// sorted orders entries by their notation: a map's order would hide from a test
// that it relies on one.
func sorted[E fmt.Stringer](entries []E) []E {
	names := make(map[string]E, len(entries))
	for _, e := range entries {
		names[e.String()] = e
	}
	for i, name := range slices.Sorted(maps.Keys(names)) {
		entries[i] = names[name]
	}
	return entries
}

// Put implements reconcile.Table.
func (t table[E]) Put(ctx context.Context, entries []E) error {
	return t.each(ctx, "put", entries, t.put)
}

// Delete implements reconcile.Table.
func (t table[E]) Delete(ctx context.Context, entries []E) error {
	return t.each(ctx, "delete", entries, func(e E) error {
		t.remove(e)
		return nil
	})
}

func (t table[E]) each(ctx context.Context, verb string, entries []E, run func(E) error) error {
	t.fake.mu.Lock()
	defer t.fake.mu.Unlock()
	var errs []error
	for _, e := range entries {
		o := Op{Verb: verb, Kind: t.kind, Entry: e.Notation(t.fake.linkName(t.link(e))), Value: e}
		err := ctx.Err()
		if err == nil {
			err = t.fake.do(o, func() error { return run(e) })
		}
		if err != nil {
			errs = append(errs, &reconcile.EntryError{Op: verb, Entry: o.Entry, Value: e, Err: err})
			continue
		}
		t.fake.emit(t.topic, t.link(e))
	}
	return errors.Join(errs...)
}

// Addrs implements kernel.Host.
func (f *Fake) Addrs(link int) reconcile.Table[kernel.Addr] {
	return table[kernel.Addr]{
		fake: f, kind: "addr", topic: kernel.TopicAddr,
		link: func(a kernel.Addr) int { return a.Link },
		list: func() []kernel.Addr {
			return slices.DeleteFunc(slices.Collect(maps.Keys(f.addrs)), func(a kernel.Addr) bool {
				return link != 0 && a.Link != link
			})
		},
		put: func(a kernel.Addr) error {
			if _, ok := f.links[a.Link]; !ok {
				return refused(syscall.ENODEV, "")
			}
			f.addrs[a] = struct{}{}
			return nil
		},
		remove: f.removeAddr,
	}
}

// removeAddr also removes what the kernel removes with an IPv4 address: routes
// that prefer it as their source, and with the last one of a link all IPv4
// routes and neighbours of that link.
func (f *Fake) removeAddr(a kernel.Addr) {
	if _, ok := f.addrs[a]; !ok {
		return
	}
	delete(f.addrs, a)
	if a.Prefix.Addr().Is6() {
		return
	}
	if !f.local(a.Prefix.Addr()) { // no other link has it
		maps.DeleteFunc(f.routes, func(_ kernel.RouteKey, r kernel.Route) bool { return r.Src == a.Prefix.Addr() })
	}
	for other := range f.addrs {
		if other.Link == a.Link && other.Prefix.Addr().Is4() {
			return
		}
	}
	maps.DeleteFunc(f.routes, func(_ kernel.RouteKey, r kernel.Route) bool {
		return r.Link == a.Link && r.Dst.Addr().Is4()
	})
	f.dropNeighbours(func(k kernel.NeighbourKey) bool { return k.Link == a.Link && k.Addr.Is4() })
}

func (f *Fake) dropNeighbours(match func(kernel.NeighbourKey) bool) {
	maps.DeleteFunc(f.neighbours, func(k kernel.NeighbourKey, _ kernel.Neighbour) bool { return match(k) })
	maps.DeleteFunc(f.resolved, func(k kernel.NeighbourKey, _ kernel.MAC) bool { return match(k) })
}

// Neighbours implements kernel.Host.
func (f *Fake) Neighbours(link int) reconcile.Table[kernel.Neighbour] {
	return table[kernel.Neighbour]{
		fake: f, kind: "neighbour", topic: kernel.TopicNeighbour,
		link: func(n kernel.Neighbour) int { return n.Link },
		list: func() []kernel.Neighbour {
			return slices.DeleteFunc(slices.Collect(maps.Values(f.neighbours)), func(n kernel.Neighbour) bool {
				return n.Link != link
			})
		},
		put: func(n kernel.Neighbour) error {
			if _, ok := f.links[n.Link]; !ok {
				return refused(syscall.ENODEV, "")
			}
			f.neighbours[n.Key()] = n
			delete(f.resolved, n.Key())
			return nil
		},
		remove: func(n kernel.Neighbour) { delete(f.neighbours, n.Key()) },
	}
}

// Resolved implements kernel.Host.
func (f *Fake) Resolved(ctx context.Context, link int) ([]kernel.Neighbour, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("list resolved neighbours: %w", err)
	}
	var out []kernel.Neighbour
	err := f.do(Op{Verb: "list", Kind: "resolved"}, func() error {
		for k, mac := range f.resolved {
			out = append(out, kernel.Neighbour{Link: k.Link, Addr: k.Addr, MAC: mac})
		}
		out = slices.AppendSeq(out, maps.Values(f.neighbours))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list resolved neighbours: %w", err)
	}
	return sorted(slices.DeleteFunc(out, func(n kernel.Neighbour) bool { return link != 0 && n.Link != link })), nil
}

// Confirm implements kernel.Host. Here nothing grows old: who was asked is an
// operation.
func (f *Fake) Confirm(ctx context.Context, link int, addrs []netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("confirm neighbours: %w", err)
	}
	for _, a := range slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare) {
		if _, known := f.resolved[kernel.NeighbourKey{Link: link, Addr: a}]; !known {
			continue
		}
		if err := f.do(Op{Verb: "confirm", Kind: "resolved", Entry: a.String()}, func() error { return nil }); err != nil {
			return fmt.Errorf("confirm neighbours: %w", err)
		}
	}
	return nil
}

// FDB implements kernel.Host.
func (f *Fake) FDB(link int) reconcile.Table[kernel.FDB] {
	return table[kernel.FDB]{
		fake: f, kind: "fdb", topic: kernel.TopicFDB,
		link: func(e kernel.FDB) int { return e.Link },
		list: func() []kernel.FDB {
			return slices.DeleteFunc(slices.Collect(maps.Values(f.fdb)), func(e kernel.FDB) bool {
				return e.Link != link
			})
		},
		put: func(e kernel.FDB) error {
			l, ok := f.links[e.Link]
			if !ok {
				return refused(syscall.ENODEV, "")
			}
			if l.Type != "vxlan" {
				return refused(syscall.EOPNOTSUPP, "")
			}
			if l.VXLAN.Local.Is6() != e.Dst.Is6() {
				return refused(syscall.EAFNOSUPPORT, "")
			}
			f.fdb[e.Key()] = e
			return nil
		},
		remove: func(e kernel.FDB) {
			if f.fdb[e.Key()] == e {
				delete(f.fdb, e.Key())
			}
		},
	}
}
