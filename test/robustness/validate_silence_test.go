package robustness

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// Who has not heard of etcd for long holds on to what it deletes next, and nobody else
// does, nor for longer than a TTL, nor to what is deleted long afterwards.
func TestRouteToOwnerAfterSilence(t *testing.T) {
	old := Route{Subnet: netip.MustParsePrefix("10.5.1.0/24"), Via: netip.MustParseAddr("198.18.0.1"), MAC: "aa:00:00:00:00:01"}
	holding := func(s *story, d time.Duration) {
		s.hooks["h2"] = func(x *Sample) {
			x.Routes = slices.DeleteFunc(x.Routes, func(r Route) bool { return r.Subnet == old.Subnet })
			x.Routes = append(x.Routes, old)
		}
		s.then(d)
		s.hooks["h2"] = nil
		s.then(40 * sec)
	}
	// released is a key that goes away a while after a host was cut off, or another
	// thing was done; h2 has a path to its owner for another while.
	released := func(silence func(*story), later, held time.Duration) func(*story) {
		return func(s *story) {
			silence(s)
			s.then(later)
			s.byOperator(func() { s.del(home(1)) })
			s.create("h1", home(7))
			holding(s, held)
		}
	}
	cut := func(d time.Duration, host string) func(*story) {
		return func(s *story) {
			s.cutOff(d, host)
			s.then(d)
		}
	}
	for _, c := range []tale{
		{name: "held by who had heard nothing", then: released(cut(6*sec, "h2"), 8*sec, storyTTL)},
		{name: "held for longer than a TTL", then: released(cut(6*sec, "h2"), 8*sec, 18*sec), want: []string{"route-to-owner h2 50s"}},
		{name: "deleted long afterwards", then: released(cut(6*sec, "h2"), 30*sec, storyTTL), want: []string{"route-to-owner h2 1m4s"}},
		{name: "a moment without etcd", then: released(cut(sec, "h2"), 13*sec, storyTTL), want: []string{"route-to-owner h2 42s"}},
		{name: "held by another", then: released(cut(6*sec, "h3"), 8*sec, storyTTL), want: []string{"route-to-owner h2 42s"}},
		{name: "two moments without etcd", then: released(func(s *story) {
			cut(1500*time.Millisecond, "h2")(s)
			s.then(3 * sec)
			cut(1500*time.Millisecond, "h2")(s)
		}, 8*sec, storyTTL)},
		{name: "two moments without etcd, long apart", then: released(func(s *story) {
			cut(1500*time.Millisecond, "h2")(s)
			s.then(11 * sec)
			cut(1500*time.Millisecond, "h2")(s)
		}, 13*sec, storyTTL), want: []string{"route-to-owner h2 55s"}},
		{name: "another process was without etcd long ago", then: released(func(s *story) {
			cut(6*sec, "h2")(s)
			s.restart("h2", sec)
		}, 40*sec, storyTTL), want: []string{"route-to-owner h2 1m15s"}},
		{name: "another process may have been without etcd", then: released(func(s *story) {
			s.restart("h2", sec)
		}, 13*sec, storyTTL)},
		{name: "another process of another host", then: released(func(s *story) {
			s.restart("h3", sec)
		}, 13*sec, storyTTL), want: []string{"route-to-owner h2 42s"}},
		{name: "a process that began without etcd", then: released(func(s *story) {
			s.cutOff(6*sec, "h2")
			s.restart("h2", sec)
			s.then(5 * sec)
		}, 8*sec, storyTTL)},
		{name: "a clock that jumped", then: released(func(s *story) {
			s.fault(0, Fault{Kind: FaultClock, To: []string{"h2"}})
		}, 8*sec, storyTTL)},
		// Nobody holds on to an address that its owner has left.
		{name: "to the former address", then: func(s *story) {
			cut(6*sec, "h2")(s)
			s.then(8 * sec)
			s.put(home(1), `{"PublicIP":"198.18.0.77","BackendType":"vxlan","Owner":"n1","Instance":"h1#1","BackendData":{"VNI":1,"VtepMAC":"aa:00:00:00:00:01"}}`)
			holding(s, storyTTL)
		}, want: []string{"route-follows h2 40s"}},
	} {
		c.run(t)
	}
}
