package robustness

import (
	"fmt"
	"slices"
	"time"
)

// deed is a fault that was done, and to whom: not all of those are touched.
type deed struct {
	Fault
	variant string
	// delay is that of each packet between the hosts and etcd, one way.
	delay time.Duration
	// partly: something was done, whatever was refused. void: nothing was, and
	// nothing will be.
	partly, void bool
	// released are those who gave up their key by it.
	released []string
}

// spare takes a host out to whom it could not be done.
func (d *deed) spare(host string) {
	it := func(name string) bool { return name == host }
	d.To, d.Hosts = slices.DeleteFunc(d.To, it), slices.DeleteFunc(d.Hosts, it)
}

// stretch is its time.
func (d deed) stretch() stretch { return stretch{d.From, d.Until} }

// hits reports whether it was done to a host.
func (d deed) hits(host string) bool {
	return slices.Contains(d.To, host) || slices.Contains(d.Unreachable, host)
}

// What follows from faults that overlap.
const (
	// faultSilence: a host could not renew its lease for so long that it may
	// have expired.
	faultSilence FaultKind = "silence"
	// faultLoss: a host lost its key at a time when it could not take it back.
	faultLoss FaultKind = "loss"
)

// takenBackWithin is how soon a host that can has its key again: before peers,
// which hold on for 2 s, let go of it.
const takenBackWithin = 1500 * time.Millisecond

// delaysToTakeBack is how many packets a host waits for in a row until its key is
// there again: the news of its loss, two for each of a look and a lease of etcd's,
// and the one that creates it. One more is the machine's.
const delaysToTakeBack = 7

// consequences are the times in which hosts were touched by several faults of
// which each alone would have touched nobody, or not at once. A host whose daemon
// is down, or cut off, keeps its traffic for as long as its lease lives. It was
// renewed a third of its TTL before the silence at the most, and a slow request
// ago, so that it lives half of its TTL into the silence for certain. From then on
// another host may have the subnet, and nobody holds on to it any more.
func consequences(deeds []deed, hosts []string, ttl time.Duration) []Fault {
	var out []Fault
	deeds = slices.DeleteFunc(slices.Clone(deeds), func(d deed) bool { return d.void })
	touched := func(kind FaultKind, host string, from, until time.Duration, detail string) {
		until = prolonged(until, stuck(deeds, host))
		f := Fault{Kind: kind, From: from, Until: until, Hosts: []string{host}, Detail: host + detail}
		// Two causes may come to the same.
		if !slices.ContainsFunc(out, func(o Fault) bool { return o.describe() == f.describe() }) {
			out = append(out, f)
		}
	}
	for _, host := range hosts {
		for _, s := range merge(silences(deeds, host), ttl/3) {
			if d := s.until - s.from; d > ttl/2 {
				touched(faultSilence, host, s.from+ttl/2, s.until, fmt.Sprintf(" could not renew for %s", d.Round(time.Millisecond)))
			}
		}
		for _, l := range forgotten(deeds, host, ttl) {
			touched(faultLoss, host, l.from, l.until, " had no key when its peers let go of it")
		}
		for _, l := range hurried(deeds, hosts, host) {
			touched(faultLoss, host, l.from, l.until, "'s clock had it let go of who was not back")
		}
		for _, l := range losses(deeds, host) {
			for _, s := range l.stuck {
				if s.until > l.from && s.from <= l.until {
					touched(faultLoss, host, l.from, max(l.from, s.until), " could not have its key back")
				}
			}
		}
	}
	return out
}

// prolonged is when a host that could act again at a time could do so for long
// enough to have a key that it may have lost.
func prolonged(until time.Duration, stuck []stretch) time.Duration {
	for changed := true; changed; {
		changed = false
		for _, s := range stuck {
			if s.from <= until+takenBackWithin && s.until > until {
				until, changed = s.until, true
			}
		}
	}
	return until
}

// silences are the times in which etcd's clock ran and a host's daemon could not
// renew, because nobody could where etcd was given no time. Without a quorum the clock stands still.
func silences(deeds []deed, host string) []stretch {
	var out []stretch
	for _, d := range deeds {
		switch d.Kind {
		case FaultKill, FaultStop, FaultPause, FaultPartition, FaultBlock, FaultCut, faultStarved:
			if d.hits(host) {
				out = append(out, stretch{d.From, startedBy(deeds, d)})
			}
		default:
		}
	}
	return out
}

// startedBy is when a daemon that was ended could work again: to start anew it
// needs a config, and a write.
func startedBy(deeds []deed, ended deed) time.Duration {
	at := ended.Until
	if ended.Kind != FaultKill && ended.Kind != FaultStop {
		return at
	}
	for _, d := range deeds {
		prevents := d.Kind == FaultNoConfig || d.Kind == FaultConfig && d.variant == variantInvalid ||
			d.Kind == FaultNoSpace || d.Kind == FaultWipe
		if prevents && d.From <= at && at <= d.Until {
			at = d.Until
		}
	}
	return at
}

// loss is a time in which a host must be able to act so that nobody notices what
// became of its key, and those in which it cannot.
type loss struct {
	stretch
	stuck []stretch
}

// forgotten are the times after wipes in which a host may have been without a
// key when its peers let go of it. They hold on for a TTL from when they see that
// all is gone, which is when etcd is emptied at the earliest; it can have its key
// again from when there is a config.
func forgotten(deeds []deed, host string, ttl time.Duration) []stretch {
	var out []stretch
	for i, d := range deeds {
		if d.Kind != FaultWipe {
			continue
		}
		back := prolonged(d.Until, stuck(others(deeds, i), host)) + takenBackWithin
		if gone := d.From + ttl; back > gone {
			out = append(out, stretch{gone, back})
		}
	}
	return out
}

// hurried are the times in which a host whose clock jumped held on to nobody: its
// time for that was over at once, and others had no keys yet.
func hurried(deeds []deed, hosts []string, host string) []stretch {
	var jumps, hindered, out []stretch
	for _, d := range deeds {
		if d.Kind == FaultClock && d.variant == variantBoot && d.hits(host) {
			jumps = append(jumps, d.stretch())
		}
	}
	for _, h := range hosts {
		hindered = append(hindered, stuck(deeds, h)...)
	}
	for _, d := range deeds {
		switch d.Kind {
		case FaultWipe, FaultRestore, FaultDelete, FaultRevoke, FaultOverwrite:
			out = append(out, stretch{d.From, prolonged(d.Until, hindered) + takenBackWithin})
		default:
		}
	}
	return slices.DeleteFunc(out, func(s stretch) bool { return len(both(jumps, []stretch{s})) == 0 })
}

// losses are those of one host.
func losses(deeds []deed, host string) []loss {
	var out []loss
	for i, d := range deeds {
		switch {
		case d.Kind == FaultMemberPause && d.variant == variantLeader:
			// One that wakes up revokes what it believes to have expired before
			// it learns that it leads no more.
			out = append(out, loss{stretch{d.From, d.Until + takenBackWithin}, stuck(others(deeds, i), host)})
		case d.Kind == FaultWipe || d.Kind == FaultRestore:
			// It creates its key again, which another range may not allow.
			out = append(out, loss{stretch{d.From, d.Until + takenBackWithin}, ranges(deeds)})
		case !slices.Contains(d.To, host):
		case d.Kind == FaultDelete || d.Kind == FaultRevoke:
			out = append(out, loss{stretch{d.From, d.From + takenBackWithin}, stuck(deeds, host)})
		case d.Kind == FaultOverwrite || d.Kind == FaultExhaust || d.Kind == FaultUsurp:
			out = append(out, loss{stretch{d.From, d.Until + takenBackWithin}, stuck(deeds, host)})
		case slices.Contains(d.released, host):
			out = append(out, loss{stretch{d.From, d.Until + takenBackWithin}, stuck(others(deeds, i), host)})
		case d.Kind == FaultKill || d.Kind == FaultStop || d.Kind == FaultOffline:
			// It has its key, but another range may not allow it.
			out = append(out, loss{stretch{d.Until, d.Until + takenBackWithin}, ranges(deeds)})
		}
	}
	return out
}

// others are all deeds but one.
func others(deeds []deed, but int) []deed { return slices.Concat(deeds[:but], deeds[but+1:]) }

// ranges are the times in which the config had another range.
func ranges(deeds []deed) []stretch {
	var out []stretch
	for _, d := range deeds {
		if d.Kind == FaultConfig && d.variant == variantRange {
			out = append(out, d.stretch())
		}
	}
	return out
}

// stuck are the times in which a host could not create its key again, or only
// another one, or not soon enough.
func stuck(deeds []deed, host string) []stretch {
	out := ranges(deeds)
	for _, d := range deeds {
		switch d.Kind {
		case FaultNoConfig, FaultExhaust, FaultWipe:
			out = append(out, d.stretch())
		case FaultConfig:
			if d.variant == variantInvalid {
				out = append(out, d.stretch())
			}
		default:
			prevents := d.Kind == FaultKill || d.Kind == FaultStop || delaysToTakeBack*d.delay > takenBackWithin
			if slices.Contains(d.Unreachable, host) || prevents && slices.Contains(d.To, host) {
				out = append(out, d.stretch())
			}
		}
	}
	return out
}

// merge joins stretches between which there is less than a gap.
func merge(all []stretch, gap time.Duration) []stretch {
	slices.SortFunc(all, func(a, b stretch) int { return int(a.from - b.from) })
	var out []stretch
	for _, s := range all {
		if n := len(out); n > 0 && s.from-out[n-1].until < gap {
			out[n-1].until = max(out[n-1].until, s.until)
			continue
		}
		out = append(out, s)
	}
	return out
}
