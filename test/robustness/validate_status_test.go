package robustness

import (
	"net/netip"
	"testing"

	"github.com/flanneld-go/flanneld-go/subnet"
)

func TestTrueStatus(t *testing.T) {
	// From the 21st second on h1 looks as f makes it.
	hook := func(f func(*Sample)) func(*story) {
		return func(s *story) {
			s.then(sec)
			s.hooks["h1"] = f
			s.then(4 * sec)
		}
	}
	another := netip.MustParsePrefix("10.5.9.0/24")
	// cutOff keeps everybody from etcd: other validators excuse everything then.
	cutOff := func(then func(*story)) func(*story) {
		return func(s *story) {
			s.cutOff(20*sec, "h1", "h2", "h3")
			then(s)
		}
	}
	for _, c := range []tale{
		{name: "another subnet.env", then: cutOff(hook(func(x *Sample) { x.SubnetEnv = envOf(another) })), want: []string{"true-status h1 23s"}},
		{name: "another bip", then: cutOff(hook(func(x *Sample) { x.DockerConfig = dockerOf(another) })), want: []string{"true-status h1 23s"}},
		{name: "another bip, and it says so", then: cutOff(hook(func(x *Sample) {
			x.DockerConfig, x.Status.Problems = dockerOf(another), []string{"docker: no room"}
		}))},
		{name: "another bip, and it says something else", then: cutOff(hook(func(x *Sample) {
			x.DockerConfig, x.Status.Problems = dockerOf(another), []string{"cache: no room"}
		})), want: []string{"true-status h1 23s"}},
		{name: "another address", then: cutOff(hook(func(x *Sample) { x.Own = []netip.Prefix{netip.MustParsePrefix("10.5.9.0/32")} })), want: []string{"true-status h1 23s"}},
		{name: "an address of another length", then: cutOff(hook(func(x *Sample) { x.Own = []netip.Prefix{netip.MustParsePrefix("10.5.1.0/24")} })), want: []string{"true-status h1 23s"}},
		{name: "one address too many", then: cutOff(hook(func(x *Sample) { x.Own = append(x.Own, netip.MustParsePrefix("10.5.9.0/32")) })), want: []string{"true-status h1 23s"}},
		{name: "no address any more", then: hook(func(x *Sample) { x.Own = nil }), want: []string{"true-status h1 23s"}},
		{name: "no bip any more", then: hook(func(x *Sample) { x.DockerConfig.Text = `{"debug":true}` }), want: []string{"true-status h1 23s"}},
		{name: "no daemon.json any more", then: hook(func(x *Sample) { x.DockerConfig = File{} }), want: []string{"true-status h1 23s"}},
		{name: "says another subnet", then: cutOff(hook(func(x *Sample) { x.Status.Subnet = another })), want: []string{"true-status h1 23s", "true-status h1 23s", "true-status h1 23s"}},
		{name: "says another subnet every second", then: cutOff(hook(func(x *Sample) {
			x.Status.Subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(100 + x.From/sec), 0}), 24)
		}))},
		{name: "is silent at times", then: cutOff(func(s *story) {
			silent := false
			hook(func(x *Sample) {
				if x.SubnetEnv, silent = envOf(another), !silent; silent {
					x.Status = nil
				}
			})(s)
		}), want: []string{"true-status h1 24s"}},
		{name: "for a moment", then: func(s *story) {
			s.hooks["h1"] = func(x *Sample) { x.Own = nil }
			s.then(sec)
			s.hooks["h1"] = nil
			s.then(5 * sec)
		}},
		{name: "is not ready", then: hook(func(x *Sample) { x.Own, x.Status.Ready = nil, false })},
		{name: "starts anew again and again", then: hook(func(x *Sample) {
			x.Own = nil
			x.Status.PID = int(x.From / sec)
		})},
		{name: "has no lease", then: cutOff(hook(func(x *Sample) { x.Own, x.Status.LeaseState = nil, subnet.StateUnproven.String() }))},
		{name: "never had a tunnel or a bip", begin: func(s *story) {
			for _, h := range s.Hosts {
				s.hooks[h.Name] = func(x *Sample) { x.Own, x.DockerConfig = nil, File{Exists: true, Text: `{"debug":true}`} }
			}
		}, then: func(s *story) { s.then(5 * sec) }},
	} {
		c.run(t)
	}
}

func TestTimelyReady(t *testing.T) {
	unready := func(x *Sample) { x.Status.Ready = false }
	never := func(s *story) { s.hooks["h4"] = unready }
	newcomer := func(s *story) {
		s.start("h4")
		s.create("h4", home(4))
		s.then(30 * sec)
	}
	for _, c := range []tale{
		{name: "never", hosts: 4, begin: func(s *story) { late("h4")(s); never(s) }, then: newcomer, want: []string{"timely-ready h4 35.5s"}},
		{name: "never, but it is cut off all the time", hosts: 4, begin: func(s *story) { late("h4")(s); never(s) }, then: func(s *story) {
			s.cutOff(40*sec, "h4")
			newcomer(s)
		}},
		{name: "never, and it has no lease", hosts: 4, begin: func(s *story) { late("h4")(s); never(s) }, then: func(s *story) {
			s.byOperator(func() {
				s.put("config", `{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.3.0","Backend":{"Type":"vxlan"}}`)
			})
			s.start("h4")
			s.then(30 * sec)
		}},
		{name: "not while there is no config", hosts: 4, begin: func(s *story) { late("h4")(s); never(s) }, then: func(s *story) {
			s.byOperator(func() { s.del("config") })
			s.start("h4")
			s.byOperator(func() { s.putLeased(home(4), s.value("h4", as(""))) })
			s.then(30 * sec)
		}},
		{name: "not while something overlaps its subnet", hosts: 4, begin: func(s *story) { late("h4")(s); never(s) }, then: func(s *story) {
			s.byOperator(func() { s.putBare("subnets/10.5.4.128-25", stranger) })
			s.byOperator(func() { s.putLeased(home(4), s.value("h4", as(""))) })
			s.start("h4")
			s.then(30 * sec)
		}},
		{name: "not any more", then: func(s *story) {
			s.hooks["h1"] = unready
			s.then(10 * sec)
		}, want: []string{"timely-ready h1 26s"}},
		{name: "not for a moment", then: func(s *story) {
			s.hooks["h1"] = unready
			s.then(5 * sec)
			s.hooks["h1"] = nil
			s.then(10 * sec)
		}},
		{name: "says nothing", then: func(s *story) {
			s.hooks["h1"] = func(x *Sample) { x.Status = nil }
			s.then(20 * sec)
		}, want: []string{"timely-ready h1 31s"}},
		{name: "says nothing for a moment", then: func(s *story) {
			s.hooks["h1"] = func(x *Sample) { x.Status = nil }
			s.then(5 * sec)
			s.hooks["h1"] = nil
			s.then(20 * sec)
		}},
		{name: "in time after a restart", then: func(s *story) {
			s.restart("h1", sec)
			s.take("h1", home(1))
			s.hooks["h1"] = unready
			s.then(14 * sec)
			s.hooks["h1"] = nil
			s.then(sec)
		}},
		{name: "in time after it got its lease", hosts: 4, begin: func(s *story) { late("h4")(s); never(s) }, then: func(s *story) {
			s.start("h4")
			s.then(9 * sec)
			s.create("h4", home(4))
			s.then(14 * sec)
			s.hooks["h4"] = nil
			s.then(sec)
		}},
		{name: "late after a restart", then: func(s *story) {
			s.restart("h1", sec)
			s.take("h1", home(1))
			s.hooks["h1"] = unready
			s.then(17 * sec)
		}, want: []string{"timely-ready h1 36.5s"}},
	} {
		c.run(t)
	}
}
