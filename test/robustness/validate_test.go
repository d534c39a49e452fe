package robustness

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// tale is one story and what every validator together must say of it: lines of
// "validator host time".
type tale struct {
	name  string
	hosts int
	// begin changes what the story begins with, then goes on from its 20th
	// second.
	begin func(*story)
	then  func(*story)
	want  []string
}

func (c tale) run(t *testing.T) {
	t.Run(c.name, func(t *testing.T) {
		t.Parallel()
		var begin []func(*story)
		if c.begin != nil {
			begin = append(begin, c.begin)
		}
		s := narrate(t, max(c.hosts, 3), begin...)
		if c.then != nil {
			c.then(s)
		}
		r := s.record()
		if diff := cmp.Diff(c.want, judge(r), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("(-want +got):\n%s\n%s", diff, Report(r, Validate(r, Validators(DefaultBounds(r.TTL))).Violations()))
		}
	})
}

const sec = time.Second

// stranger is the value of a host that is none of the run's.
const stranger = `{"PublicIP":"198.18.0.99","BackendType":"vxlan","Owner":"n99","Instance":"x","BackendData":{"VtepMAC":"aa:00:00:00:00:63"}}`

func TestQuietRun(t *testing.T) {
	tale{name: "nothing happens", then: func(s *story) { s.then(30 * sec) }}.run(t)
	tale{name: "no record at all", then: func(s *story) { s.Record = &Record{TTL: storyTTL} }}.run(t)
}

func TestWholeRecord(t *testing.T) {
	for _, c := range []tale{
		{name: "missed deletion", then: func(s *story) {
			s.del(home(1))
			s.forget()
			s.create("h1", home(1))
			s.then(sec)
		}, want: []string{"silent-renewal h1 20s", "whole-record 20s"}},
		{name: "missed creation", then: func(s *story) {
			s.byOperator(func() { s.putBare("subnets/10.5.8.0-24", stranger) })
			s.forget()
			s.byOperator(func() { s.del("subnets/10.5.8.0-24") })
		}, want: []string{"whole-record 20s"}},
		{name: "revisions go back", then: func(s *story) {
			s.byOperator(func() { s.put("config", storyConfig) })
			s.rev -= 3
			s.byOperator(func() { s.put("config", storyConfig) })
		}, want: []string{"whole-record 20s"}},
	} {
		c.run(t)
	}
}

// forget takes the last event out of the record.
func (s *story) forget() {
	e := &s.Epochs[len(s.Epochs)-1]
	e.Events = e.Events[:len(e.Events)-1]
}

// late keeps a host from taking part until a test starts it.
func late(host string) func(*story) {
	return func(s *story) { s.absent = append(s.absent, host) }
}

func TestOneOwner(t *testing.T) {
	const wide, half = "subnets/10.5.4.0-22", "subnets/10.5.2.128-25"
	const halves = `{"Network":"10.5.0.0/16","SubnetLen":25,"SubnetMin":"10.5.1.0","SubnetMax":"10.5.9.0","Backend":{"Type":"vxlan"}}`
	for _, c := range []tale{
		{name: "creation over half of another's", hosts: 4, begin: late("h4"), then: func(s *story) {
			s.byOperator(func() { s.put("config", halves) })
			s.start("h4")
			s.then(sec)
			s.create("h4", half)
			s.then(sec)
		}, want: []string{"one-owner h4 21s"}},
		{name: "creation over what an operator wrote long ago", hosts: 4, begin: late("h4"), then: func(s *story) {
			s.byOperator(func() { s.putBare(wide, stranger) })
			s.then(13 * sec)
			s.start("h4")
			s.create("h4", home(4))
			s.then(sec)
		}, want: []string{"one-owner h4 33s"}},
		{name: "creation over what an operator wrote just now", hosts: 4, begin: late("h4"), then: func(s *story) {
			s.start("h4")
			s.byOperator(func() { s.putBare(wide, stranger) })
			s.then(9 * sec)
			s.create("h4", home(4))
			s.then(20 * sec)
		}},
		{name: "creation by a host that could not see the operator's", hosts: 4, begin: late("h4"), then: func(s *story) {
			s.start("h4")
			s.then(sec)
			s.cutOff(15*sec, "h4")
			s.byOperator(func() { s.putBare(wide, stranger) })
			s.then(16 * sec)
			s.create("h4", home(4))
			s.then(sec)
		}},
		{name: "takes an overlap over from another", then: func(s *story) {
			s.byOperator(func() { s.putLeased(half, stranger) })
			s.then(sec)
			s.take("h3", half)
			s.then(sec)
		}, want: []string{"lost-write h3 21s", "one-owner h3 21s"}},
		{name: "operator writes over a lease", then: func(s *story) {
			s.byOperator(func() { s.putBare(half, stranger) })
			s.then(20 * sec)
		}},
		{name: "takeover beside an overlap", then: func(s *story) {
			s.byOperator(func() { s.putBare(half, stranger) })
			s.then(20 * sec)
			s.restart("h2", sec)
			s.take("h2", home(2))
			s.then(5 * sec)
		}},
	} {
		c.run(t)
	}
}

// at changes the address of a value.
func at(addr string) func(*subnet.Attrs) {
	return func(a *subnet.Attrs) { a.PublicIP[subnet.IPv4] = netip.MustParseAddr(addr) }
}

// as changes the instance of a value.
func as(instance string) func(*subnet.Attrs) {
	return func(a *subnet.Attrs) { a.Instance = instance }
}

// askedBy adds a challenge.
func askedBy(instance, addr string) func(*subnet.Attrs) {
	return func(a *subnet.Attrs) {
		a.Challenge.Instance = instance
		a.Challenge.PublicIP[subnet.IPv4] = netip.MustParseAddr(addr)
	}
}

func TestLostWrite(t *testing.T) {
	const flannels = `{"PublicIP":"198.18.0.1","BackendType":"vxlan","BackendData":{"VtepMAC":"aa:00:00:00:00:01"}}`
	for _, c := range []tale{
		{name: "blind put after an overwrite", then: func(s *story) {
			s.byOperator(func() { s.put(home(1), stranger) })
			s.then(sec)
			s.take("h1", home(1))
			s.then(sec)
		}, want: []string{"lost-write h1 21s"}},
		{name: "creation without a compare", then: func(s *story) {
			s.take("h2", home(1))
			s.then(sec)
		}, want: []string{"lost-write h2 20s"}},
		{name: "put by a process that was superseded", then: func(s *story) {
			s.restart("h1", sec)
			s.take("h1", home(1))
			s.then(12 * sec)
			s.put(home(1), s.value("h1", as("h1#1")))
			s.then(sec)
		}, want: []string{"lost-write h1 33s"}},
		{name: "overwrite by a process that just ended", then: func(s *story) {
			s.restart("h1", sec)
			s.take("h1", home(1))
			s.put(home(1), s.value("h1", as("h1#1")))
			s.then(sec)
		}, want: []string{"lost-write h1 21s"}},
		{name: "creation under way when its process ended", then: func(s *story) {
			s.restart("h1", sec)
			s.take("h1", home(1))
			s.putLeased(home(8), s.value("h1", as("h1#1")))
			s.then(sec)
			s.del(home(8))
			s.then(sec)
		}},
		{name: "takeover from another address", then: func(s *story) {
			s.put(home(1), s.value("h1", at("198.18.0.77"), as("other")))
			s.then(sec)
		}, want: []string{"lost-write h1 20s"}},
		{name: "takeover right after the challenge", then: func(s *story) {
			s.put(home(1), s.value("h1", askedBy("other", "198.18.0.77")))
			s.then(sec / 2)
			s.put(home(1), s.value("h1", at("198.18.0.77"), as("other")))
			s.then(sec)
		}, want: []string{"lost-write h1 20.5s"}},
		{name: "takeover after a challenge and silence", then: func(s *story) {
			s.put(home(1), s.value("h1", askedBy("other", "198.18.0.77")))
			s.then(3 * sec)
			s.put(home(1), s.value("h1", at("198.18.0.77"), as("other")))
			s.then(sec)
		}},
		{name: "takeover soon after a challenge that was received late", then: func(s *story) {
			s.put(home(1), s.value("h1", askedBy("other", "198.18.0.77")))
			s.then(1200 * time.Millisecond)
			s.put(home(1), s.value("h1", at("198.18.0.77"), as("other")))
			s.then(sec)
		}},
		{name: "takeover soon after its process began", then: func(s *story) {
			s.put(home(1), s.value("h1", at("198.18.0.77")))
			s.restart("h1", sec)
			s.then(sec / 5)
			s.put(home(1), s.value("h1", at("198.18.0.77"), as("h1#1"), askedBy("h1#2", "198.18.0.1")))
			s.then(2700 * time.Millisecond)
			s.take("h1", home(1))
			s.then(sec)
		}, want: []string{"lost-write h1 23.9s"}},
		{name: "takeover soon after its process began, and its clock jumped", then: func(s *story) {
			s.put(home(1), s.value("h1", at("198.18.0.77")))
			s.restart("h1", sec)
			s.then(sec / 5)
			s.put(home(1), s.value("h1", at("198.18.0.77"), as("h1#1"), askedBy("h1#2", "198.18.0.1")))
			s.fault(0, Fault{Kind: FaultClock, To: []string{"h1"}})
			s.then(2700 * time.Millisecond)
			s.take("h1", home(1))
			s.then(sec)
		}},
		{name: "takeover in time after its process began", then: func(s *story) {
			s.put(home(1), s.value("h1", at("198.18.0.77")))
			s.restart("h1", sec)
			s.put(home(1), s.value("h1", at("198.18.0.77"), as("h1#1"), askedBy("h1#2", "198.18.0.1")))
			s.then(3 * sec)
			s.take("h1", home(1))
			s.then(sec)
		}},
		{name: "takeover after another's challenge", then: func(s *story) {
			s.put(home(1), s.value("h1", askedBy("another", "198.18.0.78")))
			s.then(3 * sec)
			s.put(home(1), s.value("h1", at("198.18.0.77"), as("other")))
			s.then(sec)
		}, want: []string{"lost-write h1 23s"}},
		{name: "challenge and answer", then: func(s *story) {
			s.put(home(1), s.value("h1", askedBy("other", "198.18.0.77")))
			s.then(sec)
			s.take("h1", home(1))
			s.then(sec)
		}},
		{name: "challenge that takes something", then: func(s *story) {
			s.put(home(1), s.value("h1", askedBy("other", "198.18.0.77"), at("198.18.0.77")))
			s.then(sec)
		}, want: []string{"lost-write h1 20s"}},
		{name: "challenge to another owner", then: func(s *story) {
			s.put(home(1), s.value("h2", askedBy("other", "198.18.0.77")))
			s.then(sec)
		}, want: []string{"lost-write h2 20s"}},
		{name: "takeover of flannel's key", then: func(s *story) {
			s.byOperator(func() { s.put(home(1), flannels) })
			s.then(sec)
			s.take("h1", home(1))
			s.then(sec)
		}},
		{name: "takeover of flannel's key of another host", then: func(s *story) {
			s.byOperator(func() { s.put(home(1), flannels) })
			s.then(sec)
			s.take("h2", home(1))
			s.then(sec)
		}, want: []string{"lost-write h2 21s"}},
		{name: "value without an owner", then: func(s *story) {
			s.put(home(1), flannels)
			s.then(sec)
		}, want: []string{"lost-write h1 20s"}},
		{name: "unreadable value", then: func(s *story) {
			s.put(home(1), "{")
			s.then(sec)
		}, want: []string{"lost-write 20s"}},
		{name: "node of nobody", then: func(s *story) {
			s.putLeased(home(8), stranger)
			s.then(sec)
		}, want: []string{"lost-write 20s"}},
		{name: "key that is no subnet", then: func(s *story) {
			s.putLeased("subnets/nonsense", s.value("h1"))
			s.then(sec)
		}, want: []string{"lost-write 20s"}},
		{name: "re-creation after a deletion", then: func(s *story) {
			s.byOperator(func() { s.del(home(1)) })
			s.create("h1", home(1))
			s.then(sec)
		}},
	} {
		c.run(t)
	}
}

func TestSilentRenewal(t *testing.T) {
	for _, c := range []tale{
		{name: "same value, same lease", then: func(s *story) { s.take("h1", home(1)) }, want: []string{"silent-renewal h1 20s"}},
		{name: "same value, new lease", then: func(s *story) {
			s.then(sec)
			s.create("h2", home(2))
		}, want: []string{"silent-renewal h2 21s"}},
		{name: "operator writes the same", then: func(s *story) {
			s.byOperator(func() { s.take("h1", home(1)) })
			s.byOperator(func() { s.putBare(home(2), s.value("h2")) })
			s.then(sec)
		}},
		{name: "new process, new address, new MAC", then: func(s *story) {
			s.restart("h1", sec)
			s.take("h1", home(1))
			s.put(home(1), s.value("h1", at("198.18.0.77")))
			s.then(sec)
		}},
	} {
		c.run(t)
	}
}

func TestLastingReservation(t *testing.T) {
	reserve := func(s *story) { s.byOperator(func() { s.putBare(home(1), s.value("h1")) }) }
	for _, c := range []tale{
		{name: "gets a lease at a takeover", then: func(s *story) {
			reserve(s)
			s.restart("h1", sec)
			s.create("h1", home(1))
			s.then(sec)
		}, want: []string{"lasting-reservation h1 21s"}},
		{name: "is released", then: func(s *story) {
			reserve(s)
			s.then(sec)
			s.del(home(1))
			s.create("h1", home(1))
			s.then(sec)
		}, want: []string{"lasting-reservation h1 21s"}},
		{name: "gets another owner", then: func(s *story) {
			reserve(s)
			s.then(sec)
			s.take("h2", home(1))
			s.then(sec)
		}, want: []string{"lasting-reservation h2 21s", "lost-write h2 21s"}},
		{name: "is made by a daemon", then: func(s *story) {
			s.putBare(home(8), s.value("h2"))
			s.putBare(home(3), s.value("h3", as("h3#2")))
			s.then(sec)
		}, want: []string{"lasting-reservation h2 20s", "lasting-reservation h3 20s"}},
		{name: "is taken for a lease", then: func(s *story) {
			reserve(s)
			s.hooks["h1"] = func(x *Sample) { x.Status = &HostStatus{Ready: true, LeaseState: "valid", Subnet: x.Status.Subnet} }
			s.then(10 * sec)
		}, want: []string{"lasting-reservation h1 25.5s"}},
		{name: "stays bare over restarts and renamed addresses", then: func(s *story) {
			reserve(s)
			s.restart("h1", sec)
			s.take("h1", home(1))
			s.put(home(1), s.value("h1", at("198.18.0.77")))
			s.then(sec)
		}},
		{name: "is released by the operator", then: func(s *story) {
			reserve(s)
			s.byOperator(func() { s.del(home(1)) })
			s.create("h1", home(1))
			s.then(10 * sec)
		}},
		{name: "of no owner goes to whom it was made for", then: func(s *story) {
			s.byOperator(func() { s.del(home(1)); s.putBare(home(1), `{"PublicIP":"198.18.0.1","BackendType":"vxlan"}`) })
			s.take("h1", home(1))
			s.then(10 * sec)
		}},
	} {
		c.run(t)
	}
}

func TestAllocation(t *testing.T) {
	foreign := func(s *story) {
		late("h4")(s)
		s.Hosts[3].Foreign = []netip.Prefix{netip.MustParsePrefix("10.5.4.64/26")}
	}
	newcomer := func(key string) func(*story) {
		return func(s *story) {
			s.start("h4")
			s.then(sec)
			s.create("h4", key)
			s.then(sec)
		}
	}
	for _, c := range []tale{
		{name: "below SubnetMin", hosts: 4, begin: late("h4"), then: newcomer("subnets/10.5.0.0-24"), want: []string{"allocation h4 21s"}},
		{name: "above SubnetMax", hosts: 4, begin: late("h4"), then: newcomer("subnets/10.5.10.0-24"), want: []string{"allocation h4 21s"}},
		{name: "another length", hosts: 4, begin: late("h4"), then: newcomer("subnets/10.5.4.0-25"), want: []string{"allocation h4 21s"}},
		{name: "over a route of the host's", hosts: 4, begin: foreign, then: newcomer(home(4)), want: []string{"allocation h4 21s"}},
		{name: "beside a route of the host's", hosts: 4, begin: foreign, then: newcomer(home(5))},
		{name: "last of the pool", hosts: 4, begin: late("h4"), then: newcomer(home(9))},
		{name: "by a config of the past", hosts: 4, begin: late("h4"), then: func(s *story) {
			s.byOperator(func() { s.put("config", `{"Network":"10.5.0.0/16","SubnetMin":"10.5.6.0","Backend":{"Type":"vxlan"}}`) })
			newcomer(home(4))(s)
		}, want: []string{"allocation h4 21s"}},
		{name: "by no config", hosts: 4, begin: late("h4"), then: func(s *story) {
			s.byOperator(func() { s.del("config") })
			newcomer(home(4))(s)
		}, want: []string{"allocation h4 21s"}},
		{name: "by an invalid config", hosts: 4, begin: late("h4"), then: func(s *story) {
			s.byOperator(func() { s.put("config", `{"Network":"10.5.0.0"}`) })
			newcomer(home(4))(s)
		}, want: []string{"allocation h4 21s"}},
		{name: "old keys outlive their config", then: func(s *story) {
			s.byOperator(func() { s.put("config", `{"Network":"10.5.0.0/16","SubnetMin":"10.5.6.0","Backend":{"Type":"vxlan"}}`) })
			s.then(30 * sec)
		}},
	} {
		c.run(t)
	}
}

func TestUnreadable(t *testing.T) {
	spoil := func(s *story, key string) { s.byOperator(func() { s.put(key, "{") }) }
	// h1 has lost home(1) and takes home(7).
	renumber := func(s *story) {
		spoil(s, home(1))
		s.then(sec)
		s.create("h1", home(7))
	}
	for _, c := range []tale{
		{name: "overwritten by its former owner", then: func(s *story) {
			spoil(s, home(1))
			s.then(sec)
			s.take("h1", home(1))
			s.then(sec)
		}, want: []string{"unreadable-occupies h1 21s"}},
		{name: "half of it is created", hosts: 4, begin: late("h4"), then: func(s *story) {
			s.byOperator(func() { s.putBare("subnets/10.5.4.0-22", "{") })
			s.then(13 * sec)
			s.start("h4")
			s.create("h4", home(5))
			s.then(sec)
		}, want: []string{"unreadable-occupies h4 33s"}},
		{name: "created before it could be seen", hosts: 4, begin: late("h4"), then: func(s *story) {
			s.start("h4")
			s.byOperator(func() { s.putBare("subnets/10.5.4.0-22", "{") })
			s.then(sec)
			s.create("h4", home(5))
			s.then(sec)
		}},
		{name: "spelt in another way", hosts: 4, begin: late("h4"), then: func(s *story) {
			s.byOperator(func() { s.putBare("subnets/10.5.5.9-24", stranger) })
			s.then(13 * sec)
			s.start("h4")
			s.create("h4", home(5))
			s.then(sec)
		}, want: []string{"unreadable-occupies h4 33s"}},
		{name: "its peer keeps the path", then: func(s *story) {
			renumber(s)
			s.then(20 * sec)
		}},
		{name: "its peer drops the path", then: func(s *story) {
			renumber(s)
			s.then(2 * sec)
			s.hooks["h2"] = func(x *Sample) {
				x.Routes = slices.DeleteFunc(x.Routes, func(r Route) bool { return r.Subnet == netip.MustParsePrefix("10.5.1.0/24") })
			}
			s.then(20 * sec)
		}, want: []string{"unreadable-occupies h2 24s"}},
		{name: "its peer drops the path at once", then: func(s *story) {
			renumber(s)
			s.hooks["h2"] = withoutRoute("10.5.1.0/24")
			s.then(sec)
			s.hooks["h2"] = nil
			s.then(sec)
		}, want: []string{"unreadable-occupies h2 22s"}},
		{name: "it was deleted before, and its peer drops the path", then: func(s *story) {
			s.byOperator(func() { s.del(home(1)) })
			s.then(sec)
			s.create("h1", home(1))
			renumber(s)
			s.hooks["h2"] = withoutRoute("10.5.1.0/24")
			s.then(sec)
			s.hooks["h2"] = nil
			s.then(sec)
		}},
		{name: "it was another's a moment ago", then: func(s *story) {
			s.byOperator(func() { s.put(home(1), stranger) })
			s.create("h1", home(7))
			s.byOperator(func() { s.put(home(1), "{") })
			s.hooks["h2"] = withoutRoute("10.5.1.0/24")
			s.then(5 * sec)
		}},
		{name: "it was another's for a moment", then: func(s *story) {
			s.byOperator(func() { s.put(home(1), stranger) })
			s.byOperator(func() { s.put(home(1), s.value("h1")) })
			renumber(s)
			s.hooks["h2"] = withoutRoute("10.5.1.0/24")
			s.then(5 * sec)
		}},
		{name: "its peer withdraws", then: func(s *story) {
			renumber(s)
			s.then(2 * sec)
			s.byOperator(func() { s.put(home(2), stranger) })
			s.hooks["h2"] = func(x *Sample) { x.Own, x.Routes = nil, nil }
			s.then(8 * sec)
		}},
		{name: "its peer restarts and never knew the path", then: func(s *story) {
			renumber(s)
			s.then(2 * sec)
			s.restart("h2", sec)
			s.take("h2", home(2))
			s.hooks["h2"] = func(x *Sample) {
				x.Routes = slices.DeleteFunc(x.Routes, func(r Route) bool { return r.Subnet == netip.MustParsePrefix("10.5.1.0/24") })
			}
			s.then(20 * sec)
		}},
	} {
		c.run(t)
	}
}

func TestStopsUsing(t *testing.T) {
	policy := func(p subnet.OnConflict) func(*story) {
		return func(s *story) { s.Hosts[0].Policy = p }
	}
	taken := func(s *story) { s.byOperator(func() { s.put(home(1), stranger) }) }
	withdrawn := func(x *Sample) { x.Own, x.Routes = nil, nil }
	for _, c := range []tale{
		{name: "renumbered, but the address stays", then: func(s *story) {
			taken(s)
			s.create("h1", home(7))
			s.hooks["h1"] = func(x *Sample) { x.Own = append(x.Own, netip.MustParsePrefix("10.5.1.0/32")) }
			s.then(30 * sec)
		}, want: []string{"stops-using h1 25.5s", "true-status h1 22s"}},
		{name: "fence does not withdraw", begin: policy(subnet.Fence), then: func(s *story) {
			taken(s)
			s.then(30 * sec)
		}, want: []string{"stops-using h1 25.5s"}},
		{name: "fence withdraws", begin: policy(subnet.Fence), then: func(s *story) {
			taken(s)
			s.hooks["h1"] = withdrawn
			s.then(30 * sec)
		}},
		{name: "keep goes on", begin: policy(subnet.Keep), then: func(s *story) {
			taken(s)
			s.then(30 * sec)
		}},
		{name: "in time", then: func(s *story) {
			taken(s)
			s.then(4 * sec)
			s.create("h1", home(7))
			s.then(30 * sec)
		}},
		{name: "nobody else's, but unreadable", then: func(s *story) {
			s.byOperator(func() { s.put(home(1), "{") })
			s.then(9 * sec)
			s.create("h1", home(7))
			s.then(sec)
		}},
		{name: "no other subnet", hosts: 9, then: func(s *story) {
			taken(s)
			s.then(30 * sec)
		}},
		{name: "cannot know", then: func(s *story) {
			s.cutOff(30*sec, "h1")
			taken(s)
			s.then(39 * sec)
			s.create("h1", home(7))
			s.then(sec)
		}},
		{name: "could know for long", then: func(s *story) {
			s.cutOff(30*sec, "h1")
			taken(s)
			s.then(45 * sec)
		}, want: []string{"leased h1 1m0s", "stops-using h1 1m0s", "whole-files h1 1m5s", "whole-files h1 1m5s"}},
	} {
		c.run(t)
	}
}

func TestRouteToOwner(t *testing.T) {
	old := Route{Subnet: netip.MustParsePrefix("10.5.1.0/24"), Via: netip.MustParseAddr("198.18.0.1")}
	stuck := func(s *story, host string) {
		s.hooks[host] = func(x *Sample) {
			x.Routes = slices.DeleteFunc(x.Routes, func(r Route) bool { return r.Subnet == old.Subnet })
			x.Routes = append(x.Routes, old)
		}
	}
	taken := func(s *story) {
		s.byOperator(func() { s.put(home(1), stranger) })
		s.create("h1", home(7))
	}
	for _, c := range []tale{
		{name: "to the former owner", then: func(s *story) {
			taken(s)
			stuck(s, "h2")
			s.then(30 * sec)
		}, want: []string{"route-to-owner h2 26s"}},
		{name: "to the former owner of what nobody has", then: func(s *story) {
			s.byOperator(func() { s.del(home(1)) })
			s.create("h1", home(7))
			stuck(s, "h2")
			s.then(30 * sec)
		}, want: []string{"route-to-owner h2 28s"}},
		{name: "for a while", then: func(s *story) {
			taken(s)
			stuck(s, "h2")
			s.then(5 * sec)
			s.hooks["h2"] = nil
			s.then(30 * sec)
		}},
		{name: "without etcd", then: func(s *story) {
			s.cutOff(30*sec, "h2")
			taken(s)
			stuck(s, "h2")
			s.then(39 * sec)
			s.hooks["h2"] = nil
			s.then(30 * sec)
		}},
		{name: "long after etcd is back", then: func(s *story) {
			s.cutOff(30*sec, "h2")
			taken(s)
			stuck(s, "h2")
			s.then(45 * sec)
		}, want: []string{"route-to-owner h2 1m0.5s"}},
		{name: "held while etcd has lost its past", then: func(s *story) {
			s.wipe()
			s.byOperator(func() { s.put("config", storyConfig) })
			for _, i := range []int{2, 3} {
				s.create(fmt.Sprintf("h%d", i), home(i))
			}
			s.end("h1", killed)
			stuck(s, "h2")
			stuck(s, "h3")
			s.then(14 * sec)
			s.hooks["h2"], s.hooks["h3"] = nil, nil
			s.then(sec)
		}},
		{name: "of a dead host, long after etcd has lost its past", then: func(s *story) {
			s.wipe()
			s.byOperator(func() { s.put("config", storyConfig) })
			for _, i := range []int{2, 3} {
				s.create(fmt.Sprintf("h%d", i), home(i))
			}
			s.end("h1", killed)
			stuck(s, "h2")
			s.hooks["h3"] = func(x *Sample) {
				if s.now < 30*sec {
					x.Routes = append(x.Routes, old)
				}
			}
			s.then(40 * sec)
		}, want: []string{"route-to-owner h2 36s"}},
	} {
		c.run(t)
	}
}
