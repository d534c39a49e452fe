package robustness

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// reporter takes what is wrong in one sample. What stays wrong with the same
// subject from one sample of a host to the next is reported once.
type reporter func(subject string, keys []string, format string, args ...any)

// eachSample checks all samples.
func (e *evidence) eachSample(check func(Sample, reporter)) []Violation {
	return e.samplesInRow(1, check)
}

// eachTable checks what was read from the kernel's tables. They are read one
// after the other, so that a change in between leads nowhere for one sample.
func (e *evidence) eachTable(check func(Sample, reporter)) []Violation {
	return e.samplesInRow(2, check)
}

// samplesInRow checks all samples and reports what is wrong in n of a host's in a
// row.
func (e *evidence) samplesInRow(n int, check func(Sample, reporter)) []Violation {
	var found []Violation
	wrong := map[string]map[string]int{}
	for _, s := range e.Samples {
		before, now := wrong[s.Host], map[string]int{}
		check(s, func(subject string, keys []string, format string, args ...any) {
			if now[subject] > 0 {
				return
			}
			if now[subject] = before[subject] + 1; now[subject] == n {
				found = append(found, Violation{At: s.From, Host: s.Host, Message: fmt.Sprintf(format, args...), Keys: keys})
			}
		})
		wrong[s.Host] = now
	}
	return found
}

// keysOf are the keys that ever had something to do with a prefix.
func (e *evidence) keysOf(p netip.Prefix) []string {
	var keys []string
	for _, m := range e.line.moments {
		for _, h := range m.state.order {
			if h.subnet[subnet.FamilyOf(p.Addr())].Overlaps(p) && !slices.Contains(keys, h.Key) {
				keys = append(keys, h.Key)
			}
		}
	}
	return keys
}

// stopsUsing looks at the addresses on the tunnel's device.
func (e *evidence) stopsUsing() []Violation {
	return e.eachSample(func(s Sample, report reporter) {
		host := e.hosts[s.Host]
		judges := host.Policy != subnet.Keep && e.ableFor(s.Host, s.From, e.bounds.Heal)
		for _, own := range s.Own {
			if !e.count(judges) {
				continue
			}
			wrong := e.throughout(s.From-e.bounds.React, s.Until, func(x *state) bool {
				escape := host.Policy == subnet.Fence || x.room(host)
				return escape && x.heldByOthers(ownerOf(host), own.Addr())
			})
			if wrong {
				report(own.String(), e.keysOf(own), "still uses %s, which another owner has held for more than %s", own, e.bounds.React)
			}
		}
	})
}

// heldByOthers reports whether a belongs to another owner's subnet, and to none
// of us. A key of ours that somebody made unreadable is not another's.
func (s *state) heldByOthers(us owner, a netip.Addr) bool {
	others := false
	for _, h := range s.holdings {
		if !h.subnet[subnet.FamilyOf(a)].Contains(a) {
			continue
		}
		if h.owner == us || h.err != nil && h.former == us {
			return false
		}
		others = true
	}
	return others
}

// wholeFiles looks at what the container daemon would read.
func (e *evidence) wholeFiles() []Violation {
	return e.eachSample(func(s Sample, report reporter) {
		env, ok := e.checkEnv(s, report)
		e.checkDocker(s, env, ok, report)
	})
}

// checkEnv judges subnet.env and returns it if it is whole.
func (e *evidence) checkEnv(s Sample, report reporter) (daemonconfig.Env, bool) {
	if !s.SubnetEnv.Exists {
		// One sample alone may have been read while the first file was made.
		before := e.sampleBefore(s.Host, s.From)
		if before != nil && isReady(s.Status) && isReady(before.Status) && !before.SubnetEnv.Exists {
			report("no subnet.env", nil, "says that it is ready, and has no subnet.env")
		}
		return daemonconfig.Env{}, false
	}
	env, err := daemonconfig.ParseEnv([]byte(s.SubnetEnv.Text))
	none := subnet.Subnet(env.Subnets).IsZero() || env.MTU == 0
	if err != nil || none || string(env.Format()) != s.SubnetEnv.Text {
		report("subnet.env", nil, "subnet.env is partial: %q", s.SubnetEnv.Text)
		return daemonconfig.Env{}, false
	}
	if !e.rightful(s, func(x subnet.Subnet) bool { return x == subnet.Subnet(env.Subnets) }) {
		p := env.Subnets[subnet.IPv4]
		report("subnet.env", e.keysOf(p), "subnet.env says %s, which is not its lease, and nothing marks it", subnet.Subnet(env.Subnets))
	}
	return env, true
}

// isReady reports whether a host says that everything is as it should be.
func isReady(st *HostStatus) bool {
	return st != nil && st.Ready && st.LeaseState == subnet.StateValid.String()
}

// checkDocker judges daemon.json. Keys that are absent are right: not everybody
// has them set.
func (e *evidence) checkDocker(s Sample, env daemonconfig.Env, whole bool, report reporter) {
	if !s.DockerConfig.Exists {
		return
	}
	var docker struct {
		BIP string `json:"bip"`
		MTU int    `json:"mtu"`
	}
	if err := json.Unmarshal([]byte(s.DockerConfig.Text), &docker); err != nil {
		report("daemon.json", nil, "daemon.json cannot be read: %v: %q", err, s.DockerConfig.Text)
		return
	}
	if docker.BIP != "" {
		bip, err := netip.ParsePrefix(docker.BIP)
		switch {
		case err != nil || bip != daemonconfig.HostAddr(bip.Masked()):
			report("daemon.json", nil, "daemon.json: bip %q is no host address of a subnet", docker.BIP)
		case !e.rightful(s, func(x subnet.Subnet) bool { return x[subnet.IPv4] == bip.Masked() }):
			report("daemon.json", e.keysOf(bip), "daemon.json says bip %s, which is not of its lease, and nothing marks it", bip)
		}
	}
	if docker.MTU != 0 && whole && docker.MTU != env.MTU && !e.hadMTU(s, docker.MTU) {
		report("mtu", nil, "daemon.json says mtu %d, and subnet.env %d", docker.MTU, env.MTU)
	}
}

// hadMTU reports whether subnet.env had an MTU about the time of s.
func (e *evidence) hadMTU(s Sample, mtu int) bool {
	for _, other := range e.near(s) {
		if env, err := daemonconfig.ParseEnv([]byte(other.SubnetEnv.Text)); err == nil && env.MTU == mtu {
			return true
		}
	}
	return false
}

// near are the same host's samples not farther than React from s, itself
// included.
func (e *evidence) near(s Sample) []Sample {
	var out []Sample
	for _, other := range e.samples[s.Host] {
		if other.Until >= s.From-e.bounds.React && other.From <= s.Until+e.bounds.React {
			out = append(out, other)
		}
	}
	return out
}

// rightful reports whether a file of s may name a subnet: it was the host's
// within React, or the host says that something is wrong.
func (e *evidence) rightful(s Sample, names func(subnet.Subnet) bool) bool {
	host := e.hosts[s.Host]
	e.count(e.ableFor(s.Host, s.From, e.bounds.Heal))
	another := func(x *state) bool {
		return !slices.ContainsFunc(x.of(ownerOf(host)), func(h *holding) bool { return names(h.subnet) })
	}
	return !e.throughout(s.From-e.bounds.React, s.Until, another) || e.marked(s, host, another)
}

// marked reports whether a host in s counts as degraded. One that is not able
// does, whatever it says and if it says nothing: its files cannot follow etcd, and
// whether they follow what it says is another validator's. What an able host says
// counts only as long as there is a reason: a host that has been able for long, and whose policy and pool let it
// have another subnet all the time that its files were wrong, must have it by now.
func (e *evidence) marked(s Sample, host Host, wrong func(*state) bool) bool {
	if !e.ableFor(s.Host, s.From, e.bounds.Heal) {
		return true
	}
	said := e.spoken(s)
	if said == nil || isReady(said) {
		return false
	}
	patience := e.bounds.Heal + e.bounds.React
	overdue := host.Policy == subnet.Renumber && e.ableFor(s.Host, s.From, patience) &&
		e.throughout(s.From-patience, s.Until, func(x *state) bool { return wrong(x) && x.room(host) })
	return !overdue
}

// spoken is what the host said nearest to s; nil: nothing within React.
func (e *evidence) spoken(s Sample) *HostStatus {
	if s.Status != nil {
		return s.Status
	}
	var said *HostStatus
	best := forever
	for _, other := range e.near(s) {
		if d := max(other.From-s.From, s.From-other.From); other.Status != nil && d < best {
			said, best = other.Status, d
		}
	}
	return said
}
