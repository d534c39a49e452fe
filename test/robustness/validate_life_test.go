package robustness

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// withoutRoute takes the routes to a subnet out of samples.
func withoutRoute(p string) func(*Sample) {
	return func(x *Sample) {
		x.Routes = slices.DeleteFunc(x.Routes, func(r Route) bool { return r.Subnet == netip.MustParsePrefix(p) })
	}
}

func TestRouteFollows(t *testing.T) {
	// h1 publishes another address, or another MAC.
	moved := func(s *story) { s.put(home(1), s.value("h1", at("198.18.0.77"))) }
	renamed := func(s *story) {
		s.put(home(1), s.value("h1", func(a *subnet.Attrs) { a.BackendData[subnet.IPv4] = `{"VtepMAC":"AA:00:00:00:00:FF"}` }))
	}
	// h2 goes on with what it had.
	stuck := func(s *story) {
		was := s.shown["h2"].Routes
		s.hooks["h2"] = func(x *Sample) { x.Routes = was }
	}
	for _, c := range []tale{
		{name: "former address", then: func(s *story) {
			stuck(s)
			moved(s)
			s.then(20 * sec)
		}, want: []string{"route-follows h2 26s"}},
		{name: "former MAC", then: func(s *story) {
			stuck(s)
			renamed(s)
			s.hooks["h3"] = func(x *Sample) {
				for i := range x.Routes {
					x.Routes[i].MAC = strings.ToLower(x.Routes[i].MAC)
				}
			}
			s.then(20 * sec)
		}, want: []string{"route-follows h2 26s"}},
		{name: "new lease", hosts: 4, begin: late("h4"), then: func(s *story) {
			s.start("h4")
			s.create("h4", home(4))
			s.then(sec)
			s.hooks["h2"] = withoutRoute("10.5.4.0/24")
			s.then(20 * sec)
		}, want: []string{"route-follows h2 26s"}},
		{name: "an operator's new lease", then: func(s *story) {
			s.byOperator(func() { s.putLeased(home(8), stranger) })
			s.hooks["h2"] = withoutRoute("10.5.8.0/24")
			s.then(20 * sec)
		}, want: []string{"route-follows h2 26s"}},
		{name: "next hop without an address", then: func(s *story) {
			s.then(sec)
			s.hooks["h3"] = func(x *Sample) { x.Routes[0].Via = netip.Addr{} }
			s.then(sec)
		}, want: []string{"route-follows h3 22s"}},
		{name: "one table was read in between", then: func(s *story) {
			s.then(sec)
			s.hooks["h3"] = func(x *Sample) { x.Routes = nil }
			s.then(sec / 2)
			s.hooks["h3"] = nil
			s.then(sec)
		}},
		{name: "in time", then: func(s *story) {
			stuck(s)
			moved(s)
			s.then(5 * sec)
			s.hooks["h2"] = nil
			s.then(20 * sec)
		}},
		{name: "after a gap", then: func(s *story) {
			s.cutOff(20*sec, "h2")
			stuck(s)
			moved(s)
			s.then(30 * sec)
			s.hooks["h2"] = nil
			s.then(20 * sec)
		}},
		{name: "long after a gap", then: func(s *story) {
			s.cutOff(20*sec, "h2")
			stuck(s)
			moved(s)
			s.then(35 * sec)
		}, want: []string{"route-follows h2 50.5s"}},
		{name: "before the recorder knows", then: func(s *story) {
			moved(s)
			s.then(2 * sec)
			events := s.Epochs[0].Events
			events[len(events)-1].At = s.now
			s.then(20 * sec)
		}},
		{name: "long before anybody can know", then: func(s *story) {
			moved(s)
			s.then(4 * sec)
			events := s.Epochs[0].Events
			events[len(events)-1].At = s.now
			s.then(20 * sec)
		}, want: []string{"route-to-owner h2 21s", "route-to-owner h3 21s"}},
		{name: "not ready", then: func(s *story) {
			s.hooks["h2"] = func(x *Sample) { x.Routes, x.Status.Ready = nil, false }
			s.then(5 * sec)
			s.hooks["h2"] = nil
			s.then(20 * sec)
		}},
		{name: "outside of a network that was in force", then: func(s *story) {
			s.byOperator(func() { s.put("config", `{"Network":"10.5.2.0/23","SubnetLen":26,"Backend":{"Type":"vxlan"}}`) })
			s.hooks["h2"] = withoutRoute("10.5.1.0/24")
			s.then(20 * sec)
		}},
		{name: "overlaps another", then: func(s *story) {
			s.byOperator(func() { s.putBare("subnets/10.5.1.128-25", stranger) })
			s.hooks["h2"] = withoutRoute("10.5.1.128/25")
			s.then(20 * sec)
		}},
		{name: "one route for all", then: func(s *story) {
			s.hooks["h2"] = func(x *Sample) { x.Routes = []Route{{Subnet: netip.MustParsePrefix("10.5.0.0/16")}} }
			s.then(20 * sec)
		}},
	} {
		c.run(t)
	}
}

func TestWholeFiles(t *testing.T) {
	// Two samples are wrong.
	hook := func(host string, f func(*Sample)) func(*story) {
		return func(s *story) {
			s.then(sec)
			s.hooks[host] = f
			s.then(sec)
			s.hooks[host] = nil
			s.then(20 * sec)
		}
	}
	// The files of h1 stay as they are while its lease goes.
	old := func(s *story, mark func(*Sample)) {
		was := s.shown["h1"]
		s.byOperator(func() { s.put(home(1), stranger) })
		s.create("h1", home(7))
		s.hooks["h1"] = func(x *Sample) {
			x.SubnetEnv, x.DockerConfig = was.SubnetEnv, was.DockerConfig
			mark(x)
		}
	}
	// It believes that nothing has happened.
	unmarked := func(x *Sample) {
		x.Own, x.Status.Subnet = []netip.Prefix{netip.MustParsePrefix("10.5.1.0/32")}, netip.MustParsePrefix("10.5.1.0/24")
	}
	for _, c := range []tale{
		{name: "half of subnet.env", then: hook("h1", func(x *Sample) { x.SubnetEnv.Text = x.SubnetEnv.Text[:40] }), want: []string{"whole-files h1 21.5s"}},
		{name: "subnet.env without its last line", then: hook("h1", func(x *Sample) {
			x.SubnetEnv.Text, _, _ = strings.Cut(x.SubnetEnv.Text, "FLANNEL_IPMASQ")
		}), want: []string{"whole-files h1 21.5s"}},
		{name: "empty subnet.env", then: hook("h2", func(x *Sample) { x.SubnetEnv.Text = "" }), want: []string{"whole-files h2 21.5s"}},
		{name: "no subnet.env", then: hook("h3", func(x *Sample) { x.SubnetEnv = File{} }), want: []string{"whole-files h3 22s"}},
		{name: "half of daemon.json", then: hook("h1", func(x *Sample) { x.DockerConfig.Text = x.DockerConfig.Text[:20] }), want: []string{"whole-files h1 21.5s"}},
		{name: "bip without a host", then: hook("h1", func(x *Sample) { x.DockerConfig.Text = `{"bip":"10.5.1.0/24"}` }), want: []string{"whole-files h1 21.5s"}},
		{name: "bip of another", then: hook("h1", func(x *Sample) { x.DockerConfig = dockerOf(netip.MustParsePrefix("10.5.2.0/24")) }), want: []string{"whole-files h1 21.5s"}},
		{name: "mtu of another", then: hook("h1", func(x *Sample) {
			x.DockerConfig.Text = strings.Replace(x.DockerConfig.Text, "1450", "1500", 1)
		}), want: []string{"whole-files h1 21.5s"}},
		{name: "no keys of ours", then: hook("h1", func(x *Sample) { x.DockerConfig.Text = `{"debug":true}` })},
		{name: "no daemon.json", then: hook("h1", func(x *Sample) { x.DockerConfig = File{} })},
		{name: "former subnet", then: func(s *story) {
			old(s, unmarked)
			s.then(20 * sec)
		}, want: []string{"stops-using h1 25.5s", "whole-files h1 25.5s", "whole-files h1 25.5s"}},
		{name: "former subnet, not for long", then: func(s *story) {
			old(s, unmarked)
			s.then(5 * sec)
			s.hooks["h1"] = nil
			s.then(20 * sec)
		}},
		{name: "former subnet, marked", then: func(s *story) {
			old(s, func(x *Sample) { x.Status.Ready = false })
			s.then(15 * sec)
			s.hooks["h1"] = nil
			s.then(20 * sec)
		}},
		{name: "former subnet, marked for too long", then: func(s *story) {
			old(s, func(x *Sample) { x.Status.LeaseState = "conflict" })
			s.then(20 * sec)
		}, want: []string{"timely-ready h1 35.5s", "whole-files h1 35.5s", "whole-files h1 35.5s"}},
		{name: "former subnet, silent", then: func(s *story) {
			old(s, func(x *Sample) { x.Status = nil })
			s.then(20 * sec)
		}, want: []string{"timely-ready h1 35.5s", "whole-files h1 25.5s", "whole-files h1 25.5s"}},
		{name: "former subnet, no other and marked", hosts: 9, then: func(s *story) {
			s.byOperator(func() { s.put(home(1), stranger) })
			s.then(30 * sec)
		}},
		{name: "former subnet, by policy and marked", begin: func(s *story) { s.Hosts[0].Policy = subnet.Keep }, then: func(s *story) {
			s.byOperator(func() { s.put(home(1), stranger) })
			s.then(30 * sec)
		}},
		{name: "former subnet, and cannot know", then: func(s *story) {
			s.cutOff(30*sec, "h1")
			old(s, unmarked)
			s.then(39 * sec)
			s.hooks["h1"] = nil
			s.then(20 * sec)
		}},
		{name: "dead", then: func(s *story) {
			s.end("h1", killed)
			s.then(9 * sec)
			s.del(home(1))
			s.then(30 * sec)
		}},
	} {
		c.run(t)
	}
}

func TestLivingProcess(t *testing.T) {
	asked := func(s *story, host string) {
		i := slices.IndexFunc(s.Runs, func(r Run) bool { return r.Host == host && r.Until == 0 })
		s.Runs[i].Asked, s.Runs[i].Killed = s.now, true
	}
	for _, c := range []tale{
		{name: "panics", then: func(s *story) {
			s.then(sec)
			s.end("h1", func(r *Run) { r.Status, r.Tail = 2, "panic: oh" })
			s.then(sec)
		}, want: []string{"living-process h1 21s"}},
		{name: "gives up", then: func(s *story) { s.end("h3", func(r *Run) { r.Status = 1 }) }, want: []string{"living-process h3 20s"}},
		{name: "is killed", then: func(s *story) { s.end("h2", killed) }},
		{name: "is asked to end", then: func(s *story) {
			asked(s, "h2")
			s.then(3 * sec)
			s.end("h2", killed)
		}},
		{name: "is asked to end, and takes long", then: func(s *story) {
			asked(s, "h2")
			s.then(4 * sec)
			s.end("h2", killed)
		}, want: []string{"living-process h2 23s"}},
		{name: "is asked to end, and the kernel lets it not", then: func(s *story) {
			asked(s, "h2")
			s.Faults = mute([]stretch{{s.now + sec, s.now + 10*sec}}, []string{"h1", "h2", "h3"})
			s.then(20 * sec)
			s.end("h2", func(r *Run) { r.Killed, r.Status = true, -1 })
		}},
		{name: "is asked to end, and the kernel had let it", then: func(s *story) {
			s.Faults = mute([]stretch{{s.now - 9*sec, s.now - sec}}, []string{"h1", "h2", "h3"})
			asked(s, "h2")
			s.then(4 * sec)
			s.end("h2", killed)
		}, want: []string{"living-process h2 23s"}},
		{name: "is asked to end, and releases", begin: func(s *story) { s.Hosts[1].Releases = true }, then: func(s *story) {
			asked(s, "h2")
			s.then(8 * sec)
			s.end("h2", killed)
		}},
		{name: "is asked to end, and releases for long", begin: func(s *story) { s.Hosts[1].Releases = true }, then: func(s *story) {
			asked(s, "h2")
			s.then(9 * sec)
			s.end("h2", killed)
		}, want: []string{"living-process h2 28s"}},
		{name: "is asked to end, and never does", then: func(s *story) {
			asked(s, "h2")
			s.then(5 * sec)
		}, want: []string{"living-process h2 23s"}},
		{name: "is asked to end, and fails", then: func(s *story) {
			asked(s, "h2")
			s.end("h2", func(r *Run) { r.Killed, r.Status = true, 1 })
		}, want: []string{"living-process h2 20s"}},
		{name: "is asked to end, and the signal ends it", then: func(s *story) {
			asked(s, "h2")
			s.end("h2", func(r *Run) { r.Killed, r.Status = true, -1 })
		}, want: []string{"living-process h2 20s"}},
		{name: "is asked to end while it starts", then: func(s *story) {
			s.restart("h2", sec)
			asked(s, "h2")
			s.end("h2", func(r *Run) { r.Killed, r.Status = true, -1 })
		}},
	} {
		c.run(t)
	}
}

func TestLeased(t *testing.T) {
	full := `{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.3.0","Backend":{"Type":"vxlan"}}`
	lose := func(s *story) { s.byOperator(func() { s.del(home(1)) }) }
	for _, c := range []tale{
		{name: "lost and not created again", then: func(s *story) {
			lose(s)
			s.then(sec)
			s.hooks["h1"] = func(x *Sample) { x.Status.Ready = false }
			s.then(10 * sec)
		}, want: []string{"leased h1 30s"}},
		{name: "created again in time", then: func(s *story) {
			lose(s)
			s.then(9 * sec)
			s.create("h1", home(1))
			s.then(sec)
		}},
		{name: "exhausted pool does not resolve itself", hosts: 4, begin: late("h4"), then: func(s *story) {
			s.byOperator(func() { s.put("config", full) })
			s.start("h4")
			s.then(20 * sec)
			s.byOperator(func() { s.put("config", storyConfig) })
			s.then(20 * sec)
		}, want: []string{"leased h4 50s"}},
		{name: "exhausted pool resolves itself", hosts: 4, begin: late("h4"), then: func(s *story) {
			s.byOperator(func() { s.put("config", full) })
			s.start("h4")
			s.then(20 * sec)
			s.byOperator(func() { s.put("config", storyConfig) })
			s.then(9 * sec)
			s.create("h4", home(4))
			s.then(20 * sec)
		}},
		{name: "room only where the host has a route", hosts: 4, begin: func(s *story) {
			late("h4")(s)
			s.Hosts[3].Foreign = []netip.Prefix{netip.MustParsePrefix("10.5.4.0/22"), netip.MustParsePrefix("10.5.8.0/23")}
		}, then: func(s *story) {
			s.start("h4")
			s.then(30 * sec)
		}},
		{name: "no config", hosts: 4, begin: late("h4"), then: func(s *story) {
			s.byOperator(func() { s.del("config") })
			s.start("h4")
			s.then(30 * sec)
		}},
		{name: "cut off again and again", then: func(s *story) {
			lose(s)
			s.hooks["h1"] = func(x *Sample) { x.Status.Ready = false }
			for range 4 {
				s.cutOff(sec, "h1")
				s.then(9 * sec)
			}
			s.create("h1", home(1))
			s.then(sec)
		}},
		{name: "fence waits for its own", begin: func(s *story) { s.Hosts[0].Policy = subnet.Fence }, then: func(s *story) {
			s.byOperator(func() { s.put(home(1), stranger) })
			s.hooks["h1"] = func(x *Sample) { x.Own = nil }
			s.then(30 * sec)
			s.byOperator(func() { s.del(home(1)) })
			s.then(15 * sec)
		}, want: []string{"leased h1 1m0s"}},
	} {
		c.run(t)
	}
}

func TestSameSubnet(t *testing.T) {
	for _, c := range []tale{
		{name: "another one", then: func(s *story) {
			s.restart("h1", 3*sec)
			s.del(home(1))
			s.create("h1", home(7))
			s.then(sec)
		}, want: []string{"same-subnet h1 23s"}},
		{name: "another one beside its own", then: func(s *story) {
			s.restart("h2", sec)
			s.create("h2", home(8))
			s.then(sec)
		}, want: []string{"same-subnet h2 21s"}},
		{name: "another one of its own", then: func(s *story) {
			s.byOperator(func() { s.putLeased(home(7), s.value("h1", as(""))) })
			s.end("h1", killed)
			s.byOperator(func() { s.del(home(7)) })
			s.then(sec)
			s.byOperator(func() { s.putLeased(home(7), s.value("h1", as(""))) })
			s.start("h1")
			s.take("h1", home(7))
			s.del(home(1))
			s.then(sec)
		}, want: []string{"same-subnet h1 21s"}},
		{name: "another one of its own, and the former is gone", then: func(s *story) {
			s.end("h1", killed)
			s.byOperator(func() { s.del(home(1)); s.putLeased(home(7), s.value("h1", as(""))) })
			s.then(sec)
			s.start("h1")
			s.take("h1", home(7))
			s.then(sec)
		}},
		{name: "its own", then: func(s *story) {
			s.restart("h1", 3*sec)
			s.take("h1", home(1))
			s.then(sec)
		}},
		{name: "its own, created again", then: func(s *story) {
			s.end("h1", killed)
			s.then(sec)
			s.del(home(1))
			s.then(sec)
			s.start("h1")
			s.frozen["h1"] = false
			s.create("h1", home(1))
			s.then(sec)
		}},
		{name: "another's by now", then: func(s *story) {
			s.end("h1", killed)
			s.byOperator(func() { s.put(home(1), stranger) })
			s.then(sec)
			s.start("h1")
			s.frozen["h1"] = false
			s.create("h1", home(7))
			s.then(sec)
		}},
		{name: "ruled out by now", then: func(s *story) {
			s.end("h1", killed)
			s.byOperator(func() { s.put("config", `{"Network":"10.5.0.0/16","SubnetMin":"10.5.2.0","Backend":{"Type":"vxlan"}}`) })
			s.then(sec)
			s.start("h1")
			s.frozen["h1"] = false
			s.create("h1", home(7))
			s.del(home(1))
			s.then(sec)
		}},
		{name: "a reservation is better", then: func(s *story) {
			s.end("h1", killed)
			s.byOperator(func() { s.putBare(home(7), `{"PublicIP":"198.18.0.1","BackendType":"vxlan"}`) })
			s.then(sec)
			s.start("h1")
			s.frozen["h1"] = false
			s.take("h1", home(7))
			s.del(home(1))
			s.then(sec)
		}},
		{name: "after more than a TTL", then: func(s *story) {
			s.end("h1", killed)
			s.del(home(1))
			s.then(11 * sec)
			s.start("h1")
			s.frozen["h1"] = false
			s.create("h1", home(7))
			s.then(sec)
		}},
	} {
		c.run(t)
	}
}

func TestStoreIdentity(t *testing.T) {
	// Every host but some returns to where it was.
	returned := func(s *story, but ...string) {
		s.byOperator(func() { s.put("config", storyConfig) })
		for i, h := range s.Hosts {
			if !slices.Contains(but, h.Name) {
				s.create(h.Name, home(i+1))
			}
		}
	}
	// What was known stays for a while.
	held := func(s *story, hosts ...string) {
		for _, h := range hosts {
			was := s.shown[h].Routes
			s.hooks[h] = func(x *Sample) { x.Routes = was }
		}
	}
	for _, c := range []tale{
		{name: "everybody returns", then: func(s *story) {
			s.wipe()
			returned(s)
			s.then(30 * sec)
		}},
		{name: "returns elsewhere", then: func(s *story) {
			held(s, "h2", "h3")
			s.wipe()
			returned(s, "h1")
			s.create("h1", home(7))
			s.then(sec)
		}, want: []string{"store-identity h1 20s"}},
		{name: "to what it uses, not to a key beside", then: func(s *story) {
			// A hook sees what etcd would make of it: this host has lost its own
			// key a moment ago, and has a reservation elsewhere.
			was := s.shown["h1"]
			s.byOperator(func() { s.putBare(home(7), s.value("h1")) })
			s.byOperator(func() { s.del(home(1)) })
			s.hooks["h1"] = func(x *Sample) {
				x.Own, x.SubnetEnv, x.DockerConfig, x.Status = was.Own, was.SubnetEnv, was.DockerConfig, nil
			}
			s.then(sec)
			held(s, "h2", "h3")
			s.wipe()
			returned(s)
			s.hooks["h1"], s.hooks["h2"], s.hooks["h3"] = nil, nil, nil
			s.then(sec)
		}},
		{name: "to where another had been", then: func(s *story) {
			s.wipe()
			s.byOperator(func() { s.put("config", storyConfig) })
			s.create("h1", home(2))
			s.create("h2", home(7))
			s.create("h3", home(3))
		}, want: []string{"store-identity h1 20s"}},
		{name: "to where a newcomer was first", hosts: 4, begin: late("h4"), then: func(s *story) {
			held(s, "h2", "h3")
			s.wipe()
			s.start("h4")
			s.byOperator(func() { s.put("config", storyConfig) })
			s.create("h4", home(1))
			for _, i := range []int{2, 3} {
				s.create(fmt.Sprintf("h%d", i), home(i))
			}
			s.create("h1", home(7))
			s.hooks["h2"], s.hooks["h3"] = nil, nil
			s.then(sec)
		}},
		{name: "by another config", then: func(s *story) {
			s.wipe()
			s.byOperator(func() { s.put("config", `{"Network":"10.5.0.0/16","SubnetMin":"10.5.2.0","Backend":{"Type":"vxlan"}}`) })
			s.create("h2", home(2))
			s.create("h3", home(3))
			s.create("h1", home(7))
		}},
		{name: "peers are dropped", then: func(s *story) {
			held(s, "h1", "h2")
			s.wipe()
			s.then(5 * sec)
			returned(s)
			s.hooks["h1"], s.hooks["h2"] = nil, nil
			s.then(5 * sec)
		}, want: []string{"store-identity h3 21s", "store-identity h3 21s"}},
		{name: "peers are dropped by a host whose clock jumped", then: func(s *story) {
			held(s, "h1", "h2")
			s.wipe()
			s.then(sec / 4)
			s.fault(0, Fault{Kind: FaultClock, To: []string{"h3"}})
			s.then(5 * sec)
			returned(s)
			s.hooks["h1"], s.hooks["h2"] = nil, nil
			s.then(5 * sec)
		}},
		{name: "peers are dropped, and its own clock did not jump", then: func(s *story) {
			held(s, "h1", "h2")
			s.wipe()
			s.fault(sec, Fault{Kind: FaultOverwrite, Hosts: []string{"h3"}, To: []string{"h3"}})
			s.fault(sec, Fault{Kind: FaultClock, To: []string{"h2"}})
			s.then(5 * sec)
			returned(s)
			s.hooks["h1"], s.hooks["h2"] = nil, nil
			s.then(5 * sec)
		}, want: []string{"store-identity h3 21s", "store-identity h3 21s"}},
		{name: "peers are dropped after a TTL", then: func(s *story) {
			held(s, "h1", "h2", "h3")
			s.wipe()
			s.then(8 * sec)
			s.hooks["h1"], s.hooks["h2"], s.hooks["h3"] = nil, nil, nil
			s.then(5 * sec)
			returned(s)
			s.then(5 * sec)
		}},
		{name: "a peer that moved is dropped", then: func(s *story) {
			held(s, "h2", "h3")
			s.wipe()
			s.byOperator(func() { s.put("config", storyConfig) })
			s.byOperator(func() { s.putBare("subnets/10.5.1.0-24", stranger) })
			s.create("h2", home(2))
			s.create("h3", home(3))
			s.create("h1", home(7))
			s.hooks["h2"], s.hooks["h3"] = nil, nil
			s.then(20 * sec)
		}},
		{name: "restored, and everybody goes on", then: func(s *story) {
			snapshot, rev := cloneKeys(s.keys), s.rev
			s.byOperator(func() { s.del(home(1)) })
			s.create("h1", home(1))
			s.then(10 * sec)
			s.restore(snapshot, rev)
			s.then(20 * sec)
		}},
		{name: "restored to before a host came, and it goes elsewhere", hosts: 4, begin: late("h4"), then: func(s *story) {
			snapshot, rev := cloneKeys(s.keys), s.rev
			s.start("h4")
			s.create("h4", home(4))
			s.then(20 * sec)
			held(s, "h1", "h2", "h3")
			s.restore(snapshot, rev)
			s.create("h4", home(8))
			s.then(sec)
		}, want: []string{"store-identity h4 40s"}},
	} {
		c.run(t)
	}
}

func TestRecovery(t *testing.T) {
	final := func(change func(*story)) func(*story) {
		return func(s *story) {
			in := map[string]time.Duration{"h1": 0, "h2": sec, "h3": 9 * sec}
			s.Final = Final{Healed: 20 * sec, Leased: in, Ready: in, Mesh: 9 * sec}
			change(s)
		}
	}
	for _, c := range []tale{
		{name: "all well", then: final(func(*story) {})},
		{name: "one late", then: final(func(s *story) { s.Final.Leased["h2"] = 11 * sec }), want: []string{"recovery h2 30s", "recovery h2 30s"}},
		{name: "one never ready", then: final(func(s *story) { s.Final.Ready = map[string]time.Duration{"h1": 1, "h2": -1, "h3": 1} }), want: []string{"recovery h2 30s"}},
		{name: "one not seen", then: final(func(s *story) { delete(s.Final.Leased, "h3") }), want: []string{"recovery h3 30s", "recovery h3 30s"}},
		{name: "mesh late", then: final(func(s *story) { s.Final.Mesh = 11 * sec }), want: []string{"recovery 30s"}},
		{name: "pairs silent", then: final(func(s *story) { s.Final.Mesh, s.Final.Silent = -1, []string{"h1 -> h2", "h3 -> h1"} }), want: []string{"recovery h1 30s", "recovery h3 30s"}},
		{name: "dead host", then: final(func(s *story) {
			s.end("h3", killed)
			s.Runs[2].Until = 15 * sec
			delete(s.Final.Leased, "h3")
			s.Final.Mesh, s.Final.Silent = -1, []string{"h1 -> h3"}
		})},
		{name: "pool too small", hosts: 4, begin: late("h4"), then: func(s *story) {
			s.byOperator(func() {
				s.put("config", `{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.3.0","Backend":{"Type":"vxlan"}}`)
			})
			s.start("h4")
			s.then(5 * sec)
			final(func(s *story) {
				s.Final.Healed = 25 * sec
				s.Final.Leased["h4"] = -1
				s.Final.Mesh, s.Final.Silent = -1, []string{"h1 -> h4"}
			})(s)
		}},
		{name: "pool large enough", hosts: 4, begin: late("h4"), then: func(s *story) {
			s.start("h4")
			s.then(5 * sec)
			final(func(s *story) {
				s.Final.Healed = 25 * sec
				s.Final.Leased["h4"] = -1
				s.Final.Mesh, s.Final.Silent = -1, []string{"h1 -> h4"}
			})(s)
		}, want: []string{"recovery h1 35s", "recovery h4 35s", "recovery h4 35s"}},
	} {
		c.run(t)
	}
}
