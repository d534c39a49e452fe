package uplink

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// ErrOption: the options are wrong on every host, whatever it has. It is an
// error of usage.
var ErrOption = errors.New("invalid option")

// Validate returns every problem of the options, each wrapping [ErrOption].
func (o Options) Validate() error {
	var errs []error
	bad := func(flag, value string, rule any) {
		errs = append(errs, fmt.Errorf("%w --%s=%s: %v", ErrOption, flag, value, rule))
	}
	for _, name := range o.Ifaces {
		if name == "" {
			bad("iface", name, "must be the name or an address of an interface")
		} else if a, err := netip.ParseAddr(name); err == nil && refuse(a) != nil {
			bad("iface", name, refuse(a))
		}
	}
	for _, pattern := range o.Regexes {
		if _, err := regexp.Compile(pattern); err != nil {
			bad("iface-regex", pattern, err)
		} else if pattern == "" {
			bad("iface-regex", pattern, "would match every interface")
		}
	}
	if a := o.CanReach; a.IsValid() && refuse(a) != nil {
		bad("iface-can-reach", a.String(), refuse(a))
	}
	flags := subnet.ByFamily[string]{"public-ip", "public-ipv6"}
	for _, f := range subnet.Families() {
		a := o.Public[f]
		switch {
		case !a.IsValid():
		case subnet.FamilyOf(a) != f:
			bad(flags[f], a.String(), "must be an "+f.String()+" address")
		case refuse(a) != nil:
			bad(flags[f], a.String(), refuse(a))
		}
	}
	return errors.Join(errs...)
}

// Error says that no interface fits.
type Error struct {
	// Tried says of every way to choose why it came to nothing.
	Tried []string
	// Candidates are the interfaces that could be an uplink, up or not.
	Candidates []Candidate
}

// Candidate is an interface that might be named.
type Candidate struct {
	Link  kernel.Link
	Addrs []netip.Prefix
}

// Error is one line: what was tried, what there is, and what to do.
func (e *Error) Error() string {
	names := make([]string, 0, len(e.Candidates))
	for _, c := range e.Candidates {
		names = append(names, c.String())
	}
	there := "none"
	if len(names) > 0 {
		there = strings.Join(names, ", ")
	}
	return fmt.Sprintf("choose uplink: %s; interfaces here: %s; name one that is up and has an address that the other hosts reach, "+
		"by --iface=NAME or --iface=ADDRESS", strings.Join(e.Tried, "; "), there)
}

// String reads as "eth0 (up, 198.18.0.1/24)".
func (c Candidate) String() string {
	var b strings.Builder
	b.WriteString(c.Link.Name + " (")
	switch {
	case !c.Link.Up:
		b.WriteString("down")
	case !c.Link.Running:
		b.WriteString("up, no carrier")
	default:
		b.WriteString("up")
	}
	for _, p := range c.Addrs {
		b.WriteString(", " + p.String())
	}
	if len(c.Addrs) == 0 {
		b.WriteString(", no address")
	}
	b.WriteString(")")
	return b.String()
}

// candidates lists what the message names: not loopback and tunnels, and without
// addresses only what is no half of something virtual, for a host with
// containers has hundreds of these.
func (s *selection) candidates() []Candidate {
	var all []Candidate
	for _, l := range s.inv.Links {
		if never(l) != nil {
			continue
		}
		c := Candidate{Link: l}
		for _, a := range s.inv.Addrs {
			if a.Link == l.Index {
				c.Addrs = append(c.Addrs, a.Prefix)
			}
		}
		if len(c.Addrs) > 0 || l.Type == "" {
			all = append(all, c)
		}
	}
	return all
}
