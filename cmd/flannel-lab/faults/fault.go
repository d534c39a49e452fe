package faults

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Fault is one thing that goes wrong on a host.
type Fault struct {
	// Name is what --only takes, and what JSON says.
	Name  string
	Title string
	// bounds are by backend.
	bounds map[string]Bound
	// absent says why a backend cannot have it.
	absent map[string]string
	// lacks, if any, says what is missing here for it to be done; empty: nothing.
	lacks func(Options) string
	// once: it is done in the last round alone, since it lasts.
	once bool
	// common: it happens to all networks at once.
	common bool
	// prepare, if any, goes before the pings.
	prepare func(context.Context, *network) error
	// do breaks the host, and makes good what no daemon could. It returns since
	// when traffic is to flow; zero: all the time.
	do func(context.Context, *network) (time.Time, error)
	// healed, if any, replaces the comparison of the host with what it was.
	healed func(context.Context, *network) (bool, error)
	// undo, if any, goes after the pings.
	undo func(context.Context, *network) error
	// look is what is compared.
	look look
}

// Bound is how long traffic may stand still; 0: nothing may be lost.
type Bound time.Duration

// Unbounded is for what is only measured.
const Unbounded Bound = -1

// String reads as "300 ms".
func (b Bound) String() string {
	switch {
	case b < 0:
		return "none"
	case b == 0:
		return "0 lost"
	case time.Duration(b)%time.Second == 0:
		return fmt.Sprintf("%d s", time.Duration(b)/time.Second)
	default:
		return fmt.Sprintf("%d ms", time.Duration(b).Milliseconds())
	}
}

// met reports whether s keeps to the bound, and traffic flowed at all.
func (b Bound) met(s Sample) bool {
	switch {
	case b < 0:
		return true
	case s.Received == 0 || !s.Healed() || s.Wrong != "":
		return false
	case b == 0:
		return s.Lost() == 0
	default:
		return s.Gap <= time.Duration(b)
	}
}

// Bound is that of a backend.
func (f *Fault) Bound(backend string) Bound { return f.bounds[backend] }

// Absent says why a backend cannot have the fault; empty: it can.
func (f *Fault) Absent(backend string) string { return f.absent[backend] }

// The backends, in the order of tables.
const (
	vxlan  = "vxlan"
	hostGW = "host-gw"
	udp    = "udp"
)

// Backends lists them.
func Backends() []string { return []string{vxlan, hostGW, udp} }

// alike is one bound for all backends.
func alike(b Bound) map[string]Bound { return map[string]Bound{vxlan: b, hostGW: b, udp: b} }

// byUDP is a bound of none lost for the kernel's data paths, and another for the
// one in user space.
func byUDP(b Bound) map[string]Bound { return map[string]Bound{vxlan: 0, hostGW: 0, udp: b} }

// lacking is one reason for several backends.
func lacking(why string, backends ...string) map[string]string {
	reasons := map[string]string{}
	for _, b := range backends {
		reasons[b] = why
	}
	return reasons
}

const ms = Bound(time.Millisecond)

// Pick returns the faults of some names, in the order of All; without any, all.
func Pick(names ...string) []Fault {
	if len(names) == 0 {
		return All()
	}
	return slices.DeleteFunc(All(), func(f Fault) bool { return !slices.Contains(names, f.Name) })
}

// All lists the faults, in the order in which they are done and shown.
func All() []Fault {
	var all []Fault
	for _, group := range [][]Fault{
		processFaults(), flannelFaults(), storeFaults(), deviceFaults(), routeFaults(), entryFaults(), ruleFaults(), uplinkFaults(),
		networkdFaults(),
	} {
		all = append(all, group...)
	}
	return all
}
