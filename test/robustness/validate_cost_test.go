package robustness

import (
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
)

func TestNoLoss(t *testing.T) {
	lost := func(at ...time.Duration) func(*story) {
		return func(s *story) {
			s.Pairs = []Pair{{From: "h1", To: "h2", Interval: sec / 50, Sent: 1000, Lost: at}}
			s.then(30 * sec)
		}
	}
	during := func(f Fault, at ...time.Duration) func(*story) {
		return func(s *story) {
			s.fault(5*sec, f)
			lost(at...)(s)
		}
	}
	touched := Fault{Kind: "partition", Hosts: []string{"h2"}}
	// Another owner has the second host's subnet from 20 s to 50 s.
	taken := func(at ...time.Duration) func(*story) {
		return func(s *story) {
			s.byOperator(func() { s.putBare(home(2), stranger) })
			s.hooks["h2"] = func(x *Sample) { x.Own = nil }
			lost(at...)(s)
			s.byOperator(func() { s.del(home(2)) })
			s.create("h2", home(2))
			s.hooks["h2"] = nil
			s.then(30 * sec)
		}
	}
	for _, c := range []tale{
		{name: "none", then: lost()},
		{name: "it waits for its subnet", begin: func(s *story) { s.Hosts[1].Policy = subnet.Fence }, then: taken(22*sec, 49*sec, 59*sec)},
		{name: "it has its subnet again", begin: func(s *story) { s.Hosts[1].Policy = subnet.Fence }, then: taken(75 * sec), want: []string{"no-loss h1 1m15s"}},
		{name: "one packet", then: lost(21 * sec), want: []string{"no-loss h1 21s"}},
		{name: "two bursts", then: lost(21*sec, 21*sec+sec/50, 25*sec), want: []string{"no-loss h1 21s", "no-loss h1 25s"}},
		{name: "other hosts' fault", then: during(Fault{Kind: "partition", Hosts: []string{"h3"}}, 22*sec), want: []string{"no-loss h1 22s"}},
		{name: "etcd's fault", then: during(Fault{Kind: "etcd-down", Unreachable: []string{"h1", "h2", "h3"}}, 22*sec), want: []string{"no-loss h1 22s"}},
		{name: "its fault", then: during(touched, 19*sec+sec/2, 22*sec, 35*sec)},
		{name: "everybody's fault", then: during(Fault{Kind: "x", Every: true}, 22*sec)},
		{name: "long after its fault", then: during(touched, 35*sec+1), want: []string{"no-loss h1 35.000000001s"}},
		{name: "before its fault", then: during(touched, 18*sec), want: []string{"no-loss h1 18s"}},
		{name: "the machine's", then: func(s *story) {
			s.Faults = blips([]time.Duration{25 * sec})
			lost(25*sec, 26*sec)(s)
		}},
		{name: "long after the machine's", then: func(s *story) {
			s.Faults = blips([]time.Duration{25 * sec})
			lost(27 * sec)(s)
		}, want: []string{"no-loss h1 27s"}},
		{name: "the machine loses now and then", then: func(s *story) {
			s.Faults = blips([]time.Duration{22 * sec, 25 * sec, 28 * sec, 31 * sec, 34 * sec})
			lost()(s)
		}},
		{name: "the machine loses much", then: func(s *story) {
			s.Faults = blips([]time.Duration{22 * sec, 25 * sec, 28 * sec, 31 * sec, 34 * sec, 37 * sec})
			lost()(s)
		}, want: []string{"no-loss 50s"}},
		{name: "etcd was kept waiting", then: func(s *story) {
			s.Faults = []Fault{{Kind: faultStarved, From: 22 * sec, Until: 31 * sec, Unreachable: []string{"h1", "h2", "h3"}}}
			lost(25 * sec)(s)
		}, want: []string{"no-loss h1 25s"}},
		{name: "etcd was kept waiting for long", then: func(s *story) {
			s.Faults = []Fault{{Kind: faultStarved, From: 22 * sec, Until: 33 * sec, Unreachable: []string{"h1", "h2", "h3"}}}
			lost()(s)
		}, want: []string{"no-loss 50s"}},
		{name: "the machine loses much in a long run", then: func(s *story) {
			s.Faults = blips([]time.Duration{22 * sec, 25 * sec, 28 * sec, 31 * sec, 34 * sec, 37 * sec})
			lost()(s)
			s.to(2 * time.Minute)
		}},
		{name: "its fault was never healed", then: func(s *story) {
			lost(40 * sec)(s)
			s.Faults = []Fault{{Kind: "partition", From: 20 * sec, Hosts: []string{"h1"}}}
		}},
	} {
		c.run(t)
	}
}
