package udp

import (
	"errors"
	"net/netip"
	"slices"
	"sync/atomic"
)

// outlet is what one queue sends and receives by at one address.
type outlet struct {
	conn Conn
	// senders are the sockets that we send from, by Message.Source: first conn,
	// then those whose ports nobody knows beforehand.
	senders []Sender
}

// outletSet is the sockets at one address, by queue.
type outletSet struct {
	at      netip.AddrPort
	outlets []*outlet
}

// newOutletSet joins the sockets of the queues; more is empty or has some for each.
func newOutletSet(at netip.AddrPort, conns []Conn, more [][]Sender) *outletSet {
	s := &outletSet{at: at}
	for i, conn := range conns {
		o := &outlet{conn: conn, senders: []Sender{conn}}
		if len(more) > 0 {
			o.senders = append(o.senders, more[i]...)
		}
		s.outlets = append(s.outlets, o)
	}
	return s
}

func (s *outletSet) close() error {
	var all []Sender
	for _, o := range s.outlets {
		all = append(all, o.senders...)
	}
	return closeSenders(all)
}

// outlets holds the sockets that are open. Apply puts others when the uplink is
// another; for a while both may be there, or more, and all are read:
//
//	Apply   --put(A)-----put(B, A)------------put(B)-->
//	sends            A | B
//	receives at      A | A and B            | B
type outlets struct {
	current atomic.Pointer[outletList]
}

// outletList is what is open at one time.
type outletList struct {
	// sets are by address; by the first one we send. None: all is closed.
	sets     []*outletSet
	replaced chan struct{}
}

func newOutlets() *outlets {
	o := new(outlets)
	o.current.Store(&outletList{replaced: make(chan struct{})})
	return o
}

func (o *outlets) load() *outletList { return o.current.Load() }

// put makes sets the open ones and closes the others. It serves one caller at a time.
func (o *outlets) put(sets ...*outletSet) error {
	old := o.load()
	if slices.Equal(sets, old.sets) {
		return nil
	}
	o.current.Store(&outletList{sets: sets, replaced: make(chan struct{})})
	close(old.replaced)
	var errs []error
	for _, s := range old.sets {
		if !slices.Contains(sets, s) {
			errs = append(errs, s.close())
		}
	}
	return errors.Join(errs...)
}

func (l *outletList) open() bool { return len(l.sets) > 0 }

// out is what queue number i sends by; nil: nothing is open.
func (l *outletList) out(i int) *outlet {
	if !l.open() {
		return nil
	}
	return l.sets[0].outlets[i]
}

// in are those that queue number i receives by.
func (l *outletList) in(i int) []*outlet {
	list := make([]*outlet, 0, len(l.sets))
	for _, s := range l.sets {
		list = append(list, s.outlets[i])
	}
	return list
}
