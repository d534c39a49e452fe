package kernel

import (
	"fmt"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// echoes tells what others did from what the kernel repeats of our own writes. A
// notification carries the port of the socket whose request it comes of, as a rule.
// It does not where the kernel works on the request by itself: for all of a VXLAN
// link's FDB, and for a neighbour that is deleted. There, what we know to be in the
// kernel decides: a message that says the same is no news.
//
//	Put, Delete, List --> ledger <-- message: the same, or news?
//
// What is known is what this process has written or listed. It is set before the
// kernel is asked, for the message may come first. A message that says otherwise is
// news, even if it is older than what we wrote since: a look too many.
type echoes struct {
	// port is that of our socket.
	port       uint32
	fdb        ledger[FDBKey, netip.Addr, FDB]
	neighbours ledger[NeighbourKey, MAC, Neighbour]
}

// newEchoes knows our writes by the socket of c.
func newEchoes(c *conn) (*echoes, error) {
	sa, err := unix.Getsockname(c.fd)
	if err != nil {
		return nil, os.NewSyscallError("getsockname", err)
	}
	address, ok := sa.(*unix.SockaddrNetlink)
	if !ok {
		return nil, fmt.Errorf("%w: the socket's address", errMalformed)
	}
	return &echoes{port: address.Pid}, nil
}

// ledger is what a table is known to hold: of each key the rest of its entry.
type ledger[K, V comparable, E interface {
	Key() K
	value() V
}] struct {
	mu   sync.Mutex
	held map[K]V
}

// value is what a neighbour's key does not say.
func (n Neighbour) value() MAC { return n.MAC }

// value is what an FDB entry's key does not say.
func (f FDB) value() netip.Addr { return f.Dst }

func (l *ledger[K, V, E]) put(entries []E) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held == nil {
		l.held = make(map[K]V, len(entries))
	}
	for _, e := range entries {
		l.held[e.Key()] = e.value()
	}
}

// remove forgets entries, by value.
func (l *ledger[K, V, E]) remove(entries []E) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range entries {
		if v, ok := l.held[e.Key()]; ok && v == e.value() {
			delete(l.held, e.Key())
		}
	}
}

// forget drops what is known of the keys that match; all of it without a match.
func (l *ledger[K, V, E]) forget(match func(K) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range l.held {
		if match == nil || match(k) {
			delete(l.held, k)
		}
	}
}

// news reports whether a message, that e is there or is there no longer, says what is
// not known, and takes it over.
func (l *ledger[K, V, E]) news(e E, deleted bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	known, ok := l.held[e.Key()]
	switch {
	case deleted && ok && known == e.value():
		delete(l.held, e.Key())
		return true
	case deleted:
		return ok // Another of that key is said to be gone: who knows what is left.
	case ok && known == e.value():
		return false
	}
	if l.held == nil {
		l.held = map[K]V{}
	}
	l.held[e.Key()] = e.value()
	return true
}

// ours reports whether a message tells nothing but what this Host itself did.
func (s *echoes) ours(m message) bool {
	if s == nil {
		return false
	}
	switch m.typ {
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
	case unix.RTM_DELLINK:
		if l, ok, err := parseLink(message{typ: unix.RTM_NEWLINK, data: m.data}); ok && err == nil {
			s.forget(l.Index) // Its entries are gone with it.
		}
		return m.port == s.port
	default:
		return m.port == s.port
	}
	n, ok, err := parseNeighbour(m)
	if !ok || err != nil {
		return false
	}
	deleted := m.typ == unix.RTM_DELNEIGH
	switch {
	case n.bridge():
		return n.permanent() && n.dst.IsValid() && !s.fdb.news(FDB{Link: n.link, MAC: n.mac, Dst: n.dst}, deleted)
	case m.port == s.port:
		return true
	case deleted:
		// The MAC of one that is gone is not told of reliably.
		return !s.neighbours.holds(NeighbourKey{n.link, n.dst})
	}
	return false
}

// holds reports whether an entry of the key is known to be there.
func (l *ledger[K, V, E]) holds(k K) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.held[k]
	return ok
}

// forget drops what is known of a link.
func (s *echoes) forget(link int) {
	s.fdb.forget(func(k FDBKey) bool { return k.Link == link })
	s.neighbours.forget(func(k NeighbourKey) bool { return k.Link == link })
}

// doubt drops all that is known: messages were lost.
func (s *echoes) doubt() {
	if s != nil {
		s.fdb.forget(nil)
		s.neighbours.forget(nil)
	}
}
