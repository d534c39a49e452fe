package robustness

import "testing"

func TestKeptLease(t *testing.T) {
	expired := func(s *story) {
		s.del(home(1))
		s.create("h1", home(1))
		s.then(sec)
	}
	const flannels = `{"PublicIP":"198.18.0.1","BackendType":"vxlan","BackendData":{"VtepMAC":"aa:00:00:00:00:01"}}`
	for _, c := range []tale{
		{name: "expired, and created again at once", then: expired, want: []string{"kept-lease h1 20s"}},
		{name: "expired every time", then: func(s *story) {
			for range 3 {
				s.then(storyTTL)
				expired(s)
			}
		}, want: []string{"kept-lease h1 30s", "kept-lease h1 41s", "kept-lease h1 52s"}},
		{name: "deleted by an operator", then: func(s *story) { s.byOperator(func() { s.del(home(1)) }); s.create("h1", home(1)); s.then(sec) }},
		{name: "deleted by an operator who did not hear of it", then: func(s *story) {
			s.fault(0, Fault{Kind: FaultDelete, To: []string{"h3", "h1"}})
			s.then(sec)
			expired(s)
		}},
		{name: "while another's key was deleted", then: func(s *story) {
			s.fault(0, Fault{Kind: FaultDelete, To: []string{"h2"}})
			s.then(sec)
			expired(s)
		}, want: []string{"kept-lease h1 21s"}},
		{name: "long after its key was revoked", then: func(s *story) {
			s.fault(0, Fault{Kind: FaultRevoke, To: []string{"h1"}})
			s.then(13 * sec)
			expired(s)
		}, want: []string{"kept-lease h1 33s"}},
		{name: "cut off for a TTL", then: func(s *story) {
			s.cutOff(15*sec, "h1")
			s.then(storyTTL)
			s.del(home(1))
			s.then(6 * sec)
			s.create("h1", home(1))
			s.then(sec)
		}},
		{name: "just back from being cut off", then: func(s *story) {
			s.cutOff(6*sec, "h1")
			s.then(9 * sec)
			expired(s)
		}},
		{name: "cut off long ago", then: func(s *story) {
			s.cutOff(6*sec, "h1")
			s.then(19 * sec)
			expired(s)
		}, want: []string{"kept-lease h1 39s"}},
		{name: "released when it was stopped", then: func(s *story) {
			s.Hosts[0].Releases = true
			s.fault(2*sec, Fault{Kind: FaultStop, To: []string{"h1"}})
			expired(s)
		}},
		{name: "stopped, and does not release", then: func(s *story) {
			s.fault(2*sec, Fault{Kind: FaultStop, To: []string{"h1"}})
			expired(s)
		}, want: []string{"kept-lease h1 20s"}},
		{name: "while another was cut off", then: func(s *story) {
			s.cutOff(6*sec, "h2")
			s.then(sec)
			expired(s)
		}, want: []string{"kept-lease h1 21s"}},
		{name: "clocks jump", then: func(s *story) {
			s.fault(0, Fault{Kind: FaultClock, To: []string{"h1"}})
			s.then(sec)
			expired(s)
		}, want: []string{"kept-lease h1 21s"}},
		{name: "down for a TTL", then: func(s *story) {
			s.end("h1", killed)
			s.then(9 * sec)
			s.del(home(1))
			s.then(2 * sec)
			s.start("h1")
			s.frozen["h1"] = false
			s.create("h1", home(1))
			s.then(sec)
		}},
		{name: "given up for another of its own", then: func(s *story) {
			s.byOperator(func() { s.putBare(home(7), s.value("h1")) })
			s.del(home(1))
			s.then(sec)
		}},
		{name: "given up since it is ruled out", then: func(s *story) {
			s.byOperator(func() { s.put("config", `{"Network":"10.5.0.0/16","SubnetMin":"10.5.2.0","Backend":{"Type":"vxlan"}}`) })
			s.del(home(1))
			s.create("h1", home(7))
			s.then(sec)
		}},
		{name: "hung on a short lease by an operator", then: func(s *story) {
			s.byOperator(func() { s.putLeased(home(1), flannels) })
			s.then(9 * sec)
			expired(s)
		}},
		{name: "taken over from an operator, and not kept", then: func(s *story) {
			s.byOperator(func() { s.putLeased(home(1), flannels) })
			s.then(sec)
			s.take("h1", home(1))
			s.then(9 * sec)
			expired(s)
		}, want: []string{"kept-lease h1 30s"}},
		{name: "a stranger's", then: func(s *story) {
			s.byOperator(func() { s.putLeased(home(8), stranger) })
			s.then(storyTTL)
			s.del(home(8))
			s.then(sec)
		}},
		{name: "etcd lost its past", then: func(s *story) {
			s.cutOff(0, "h1", "h2", "h3")
			s.wipe()
			s.byOperator(func() { s.put("config", storyConfig) })
			for i, h := range s.Hosts {
				s.create(h.Name, home(i+1))
			}
			s.then(sec)
		}},
	} {
		c.run(t)
	}
}
