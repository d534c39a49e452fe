package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/backend/kernel/internal/feed"
)

// waitingEvents is how many different events may wait for their reader.
const waitingEvents = 1024

// Events implements Host. Equal events that were not taken yet are one. Two
// goroutines work until ctx ends: one empties the socket, whatever the reader
// does, and one serves the channel. Should the socket break, the channel is
// closed early.
func (n *Netlink) Events(ctx context.Context) (<-chan Event, error) {
	sock, err := n.subscribe()
	if err != nil {
		return nil, fmt.Errorf("subscribe to kernel events: %w", err)
	}
	return n.watch(ctx, sock)
}

// watch starts the goroutines; the socket is theirs then.
func (n *Netlink) watch(ctx context.Context, sock *os.File) (<-chan Event, error) {
	links, err := n.Links(ctx)
	if err != nil {
		_ = sock.Close() // nothing was written
		return nil, fmt.Errorf("subscribe to kernel events: %w", err)
	}
	resolved, err := n.Resolved(ctx, 0)
	if err != nil {
		_ = sock.Close() // nothing was written
		return nil, fmt.Errorf("subscribe to kernel events: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	sub := feed.New(Event{Topic: TopicOverrun}, waitingEvents)
	out := make(chan Event)
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = sock.SetReadDeadline(time.Unix(1, 0)) // wakes the reader; fails only on a closed socket
	})
	go func() {
		defer close(ended)
		defer cancel()
		readEvents(ctx, sock, newClassifier(links, resolved, n.own), sub.Add)
		stop()
		_ = sock.Close() // nothing was written
	}()
	go func() {
		defer close(out)
		sub.Run(ctx, out)
		<-ended
	}()
	return out, nil
}

// subscribe opens a socket in the multicast groups of what can drift.
func (n *Netlink) subscribe() (sock *os.File, err error) {
	fd := -1
	err = n.inside(func() (err error) {
		fd, err = openSocket(unix.SOCK_NONBLOCK)
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, group := range []int{
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF,
		unix.RTNLGRP_NEXTHOP,
	} {
		err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group)
		if err != nil && group != unix.RTNLGRP_NEXTHOP { // which came with Linux 5.3
			_ = unix.Close(fd)
			return nil, os.NewSyscallError("setsockopt", err)
		}
	}
	if n.own != nil {
		_ = n.own.filterEchoes(fd) // It only saves reading them.
	}
	return os.NewFile(uintptr(fd), "rtnetlink"), nil
}

// readEvents reads until ctx ends or the socket fails for good.
func readEvents(ctx context.Context, sock *os.File, class classifier, add func(Event)) {
	buf := make([]byte, datagram)
	for ctx.Err() == nil {
		n, err := sock.Read(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			// The kernel says so once, and then drops silently until the
			// socket is empty. Who reads the state again because of our
			// event must not do so before.
			drain(sock, buf, class)
			class.doubt()
			add(Event{Topic: TopicOverrun})
			continue
		case err != nil:
			return
		}
		for b := buf[:n]; len(b) > 0; {
			var m message
			if m, b, err = nextMessage(b); err != nil {
				class.doubt()
				add(Event{Topic: TopicOverrun}) // something happened
				break
			}
			if e, ok := class.event(m); ok {
				add(e)
			}
		}
	}
}

// drain reads what is there and does not wait for more. The classifier learns
// from it; everything else an overrun stands for.
func drain(sock *os.File, buf []byte, class classifier) {
	raw, err := sock.SyscallConn()
	if err != nil {
		return // closed: the next read says so
	}
	for {
		n := 0
		readErr := raw.Read(func(fd uintptr) bool {
			n, err = unix.Read(int(fd), buf)
			return true // whatever came of it
		})
		if readErr != nil || err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			return
		}
		for b := buf[:max(n, 0)]; len(b) > 0 && err == nil; {
			var m message
			if m, b, err = nextMessage(b); err == nil {
				_, _ = class.event(m)
			}
		}
	}
}

// classifier tells what concerns us from noise. Every ARP exchange of every
// container is a neighbour message; of entries that age only a change of the
// MAC counts. But a permanent entry that is deleted or loses its permanence says
// so in its new state, so on VXLAN links, where no other entries live, all states
// count.
type classifier struct {
	// others are the links that are known not to be VXLAN. A link of which
	// nothing is known may be one.
	others map[int]bool
	// resolved is what was heard of the others' neighbours.
	resolved resolution
	// own are the messages that nobody is told of; nil: none.
	own *echoes
}

func newClassifier(links []Link, resolved []Neighbour, own *echoes) classifier {
	c := classifier{others: map[int]bool{}, resolved: resolution{}, own: own}
	for _, l := range links {
		c.note(l)
	}
	for _, n := range resolved {
		if c.others[n.Link] {
			c.resolved[n.Key()] = n.MAC
		}
	}
	return c
}

func (c classifier) note(l Link) {
	if l.Type == "vxlan" {
		delete(c.others, l.Index)
	} else {
		c.others[l.Index] = true
	}
}

// event is what a message means; not ok: nothing. A message that cannot be read
// means that anything may have changed.
func (c classifier) event(m message) (e Event, ok bool) {
	var err error
	switch m.typ {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		e, ok, err = c.linkEvent(m)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		e, ok, err = c.addrEvent(m)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		var r listed
		r, ok, err = parseRoute(m)
		ok = ok && r.Protocol != unix.RTPROT_KERNEL
		e = Event{Topic: TopicRoute, Link: r.Link}
	case unix.RTM_DELNEXTHOP: // takes its routes along without a word
		e, ok = Event{Topic: TopicRoute}, true
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		e, ok, err = c.neighbourEvent(m)
	case unix.RTM_NEWNETCONF:
		e, ok, err = forwardingEvent(m)
	}
	if err != nil {
		c.doubt()
		return Event{Topic: TopicOverrun}, true
	}
	return e, !c.own.ours(m) && ok
}

// doubt forgets what was heard: more was said than that.
func (c classifier) doubt() {
	clear(c.resolved)
	c.own.doubt()
}

func (c classifier) linkEvent(m message) (e Event, ok bool, err error) {
	deleted := m.typ == unix.RTM_DELLINK
	m.typ = unix.RTM_NEWLINK
	l, ok, err := parseLink(m)
	switch {
	case !ok:
	case deleted:
		delete(c.others, l.Index)
		c.resolved.forget(l.Index)
	default:
		c.note(l)
		if !l.Up {
			c.resolved.forget(l.Index)
		}
	}
	return Event{Topic: TopicLink, Link: l.Index}, ok, err
}

func (c classifier) addrEvent(m message) (e Event, ok bool, err error) {
	deleted := m.typ == unix.RTM_DELADDR
	m.typ = unix.RTM_NEWADDR
	a, ok, err := parseAddr(m)
	if ok && deleted {
		c.resolved.forget(a.Link)
	}
	return Event{Topic: TopicAddr, Link: a.Link}, ok, err
}

func (c classifier) neighbourEvent(m message) (e Event, ok bool, err error) {
	n, ok, err := parseNeighbour(m)
	switch {
	case !ok:
		return e, false, err
	case n.bridge():
		return Event{Topic: TopicFDB, Link: n.link}, n.permanent() && n.flags&unix.NTF_SELF != 0, nil
	case !c.others[n.link]:
		return Event{Topic: TopicNeighbour, Link: n.link}, true, nil
	case !n.host():
		return e, false, nil
	}
	mac := n.resolved()
	if m.typ == unix.RTM_DELNEIGH {
		mac = MAC{}
	}
	changed := c.resolved.learn(NeighbourKey{n.link, n.dst}, mac)
	if n.permanent() {
		return Event{Topic: TopicNeighbour, Link: n.link}, true, nil
	}
	return Event{Topic: TopicResolved, Link: n.link, Addr: n.dst, MAC: mac}, changed, nil
}

// Attributes of RTM_NEWNETCONF and a value (include/uapi/linux/netconf.h) that
// x/sys/unix has no name for.
const (
	netconfIfindex    = 1
	netconfForwarding = 2
	netconfAll        = -1 // an index that stands for all interfaces
	netconfHeader     = 4  // the family, padded
)

// forwardingEvent is what m says of forwarding: by the host as a whole, or that IPv4
// packets that come in by one interface are forwarded no more. That they are comes
// with each interface that is made; IPv6 has no such switch.
func forwardingEvent(m message) (e Event, ok bool, err error) {
	if len(m.data) < netconfHeader {
		return e, false, fmt.Errorf("%w: netconf of %d bytes", errMalformed, len(m.data))
	}
	index, off, told := 0, false, false
	err = eachAttr(m.data[netconfHeader:], func(typ uint16, v []byte) {
		switch typ {
		case netconfIfindex:
			index = int(int32(u32(v))) //nolint:gosec // the kernel's type
		case netconfForwarding:
			told, off = true, u32(v) == 0
		}
	})
	e = Event{Topic: TopicForwarding, Link: max(index, 0)}
	single := index > 0 && off && m.data[0] == unix.AF_INET
	return e, err == nil && told && (index == netconfAll || single), err
}
