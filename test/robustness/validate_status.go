package robustness

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// trueStatus compares what a host says with what can be seen of it. Whether it
// reaches etcd does not matter.
func (e *evidence) trueStatus() []Violation {
	var found []Violation
	for _, host := range e.Hosts {
		c := comparison{evidence: e}
		for _, s := range e.samples[host.Name] {
			// A daemon that is silent says nothing that could be wrong.
			if s.Status != nil && e.count(c.begin(s.Status)) {
				found = append(found, c.compare(s)...)
			}
		}
	}
	return found
}

// comparison follows one host through its samples.
type comparison struct {
	*evidence
	// since is when each of its parts was first seen to be wrong, of which told
	// were reported, while the host said what it did last.
	since map[string]time.Duration
	told  map[string]bool
	last  *HostStatus
}

// begin takes what the host says, and reports whether that is that it is ready.
func (c *comparison) begin(st *HostStatus) bool {
	goesOn := c.last != nil && isReady(c.last) && isReady(st) && c.last.PID == st.PID && c.last.Subnet == st.Subnet
	if c.last = st; !goesOn {
		c.since, c.told = map[string]time.Duration{}, map[string]bool{}
	}
	return isReady(st)
}

// compare reports what has been wrong for too long.
func (c *comparison) compare(s Sample) []Violation {
	var found []Violation
	for _, p := range c.parts(s) {
		since, wrong := c.since[p.name]
		switch {
		case p.is == p.must:
			delete(c.since, p.name)
		case !wrong:
			c.since[p.name] = s.Until
		case s.From-since > c.bounds.Settle && !c.told[p.name]:
			c.told[p.name] = true
			found = append(found, Violation{At: s.From, Host: s.Host, Keys: c.keysOf(s.Status.Subnet), Message: fmt.Sprintf(
				"says that it is ready with %s, and %s has been %q for more than %s: it must be %q", s.Status.Subnet, p.name, p.is, c.bounds.Settle, p.must)})
		}
	}
	return found
}

// part is something of a host, as it is and as it must be.
type part struct{ name, is, must string }

// parts are those of a ready host that follow from what it says. One that never
// had a tunnel's address or a bip has none.
func (e *evidence) parts(s Sample) []part {
	says := s.Status.Subnet
	env, _ := daemonconfig.ParseEnv([]byte(s.SubnetEnv.Text)) // What cannot be read says nothing.
	parts := []part{{"subnet.env", fmt.Sprint(env.Subnets[subnet.IPv4].Masked()), says.String()}}
	ever := func(has func(Sample) bool) bool { return slices.ContainsFunc(e.samples[s.Host], has) }
	if ever(func(s Sample) bool { return bip(s) != "" }) && !complains(s.Status, "docker") {
		parts = append(parts, part{"bip in daemon.json", bip(s), daemonconfig.HostAddr(says).String()})
	}
	if ever(func(s Sample) bool { return len(s.Own) > 0 }) {
		own := []netip.Prefix{netip.PrefixFrom(says.Addr(), says.Addr().BitLen())}
		parts = append(parts, part{"the tunnel's address", fmt.Sprint(s.Own), fmt.Sprint(own)})
	}
	return parts
}

// bip is the address in daemon.json; empty where there is none, or no file that
// could be read.
func bip(s Sample) string {
	var docker struct {
		BIP string `json:"bip"`
	}
	_ = json.Unmarshal([]byte(s.DockerConfig.Text), &docker)
	return docker.BIP
}

// complains reports whether a host names a component among its problems.
func complains(st *HostStatus, component string) bool {
	return slices.ContainsFunc(st.Problems, func(p string) bool { return strings.HasPrefix(p, component+": ") })
}

// timelyReady looks for hosts that could be ready, and do not say that they are:
// most of what is asked of a host is asked of ready ones alone. It need not be for
// a moment, when somebody changes its key, which it notices and takes back.
func (e *evidence) timelyReady() []Violation {
	var found []Violation
	for _, host := range e.Hosts {
		could := e.couldBeReady(host)
		since, told := forever, false
		for _, s := range e.samples[host.Name] {
			must := e.count(slices.ContainsFunc(could, func(c stretch) bool { return c.from <= s.From && s.Until <= c.until }))
			st := e.spoken(s)
			switch {
			case !must || isReady(st):
				since, told = forever, false
			case since == forever:
				since = s.Until
			case s.From-since > e.bounds.React && !told:
				told = true
				found = append(found, Violation{At: s.From, Host: host.Name, Message: fmt.Sprintf(
					"has had its lease and reached etcd for more than %s, and has not been ready for %s: %s", e.bounds.Heal, e.bounds.React, st.describe())})
			}
		}
	}
	return found
}

// describe is what a host says of itself, for people.
func (s *HostStatus) describe() string {
	if s == nil {
		return "it says nothing"
	}
	return fmt.Sprintf("ready=%t, lease %s %s: %s", s.Ready, s.LeaseState, s.Reason, strings.Join(s.Problems, "; "))
}

// couldBeReady are the times in which a host had been able, and the one and same
// key had been its own with nothing in its way, for Heal.
func (e *evidence) couldBeReady(host Host) []stretch {
	keys := map[string]bool{}
	for _, m := range e.line.moments {
		for _, h := range m.state.of(ownerOf(host)) {
			keys[h.Key] = true
		}
	}
	var out []stretch
	for key := range keys {
		leased := e.surely(func(x *state) bool {
			own := x.of(ownerOf(host))
			return len(own) == 1 && own[0].Key == key && x.config != nil && len(x.overlapping(own[0])) == 0
		})
		for _, s := range leased {
			if s.from += e.bounds.Heal; s.from < s.until {
				out = append(out, stretch{s.from, s.until})
			}
		}
	}
	return both(out, e.settled(host))
}
