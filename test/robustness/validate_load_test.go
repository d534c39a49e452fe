package robustness

import (
	"testing"
	"time"
)

func TestBoundedLoad(t *testing.T) {
	b := DefaultBounds(storyTTL)
	load := func(l Load) func(*story) {
		return func(s *story) {
			s.then(40 * sec)
			l.Host = "h2"
			s.Load = []Load{l}
		}
	}
	// course is what h2 costs in 5 minutes, told for every second.
	course := func(cost func(*Cost, time.Duration)) func(*story) {
		return func(s *story) {
			c := Cost{At: 20 * sec}
			l := Load{Host: "h2"}
			for ; c.At < 320*sec; c.At += sec {
				cost(&c, c.At)
				l.Course = append(l.Course, c)
			}
			l.Requests, l.CPU, l.LogLines = c.Requests, c.CPU, c.LogLines
			s.then(300 * sec)
			s.Load = []Load{l}
		}
	}
	busy := course(func(c *Cost, at time.Duration) {
		if at >= 100*sec && at < 120*sec {
			c.CPU += sec / 4
		}
	})
	for _, c := range []tale{
		{name: "quiet", then: course(func(c *Cost, _ time.Duration) { c.Requests, c.CPU = c.Requests+2, c.CPU+sec/50 })},
		{name: "a quarter of a core for 20 s of 5 min", then: busy, want: []string{"bounded-load h2 1m42s", "bounded-load h2 1m52s", "bounded-load h2 2m2s"}},
		{name: "the same after its start", then: func(s *story) {
			s.Runs = append(s.Runs, Run{Host: "h2", From: 98 * sec, Until: 98 * sec, Killed: true}, Run{Host: "h2", From: 99 * sec, Until: 99 * sec, Killed: true}, Run{Host: "h2", From: 100 * sec, Until: 100 * sec, Killed: true})
			busy(s)
		}, want: []string{"bounded-load h2 1m52s", "bounded-load h2 2m2s"}},
		{name: "a request loop for a few seconds", then: course(func(c *Cost, at time.Duration) {
			if at == 200*sec {
				c.Requests += 100
			}
		}), want: []string{"bounded-load h2 3m20s"}},
		{name: "what the kernel held up is told at once", then: func(s *story) {
			s.Faults = mute([]stretch{{175 * sec, 200 * sec}}, []string{"h1", "h2", "h3"})
			course(func(c *Cost, at time.Duration) {
				if at == 201*sec {
					c.Requests += 100
				}
			})(s)
		}},
		{name: "a request loop, long after the kernel held it up", then: func(s *story) {
			s.Faults = mute([]stretch{{155 * sec, 180 * sec}}, []string{"h1", "h2", "h3"})
			course(func(c *Cost, at time.Duration) {
				if at == 200*sec {
					c.Requests += 100
				}
			})(s)
		}, want: []string{"bounded-load h2 3m20s"}},
		{name: "lines in a burst", then: course(func(c *Cost, at time.Duration) {
			if at == 200*sec {
				c.LogLines += 14
			}
		}), want: []string{"bounded-load h2 3m20s"}},
		{name: "lines in a burst, of a fault of its own", then: func(s *story) {
			s.Faults = []Fault{{Kind: FaultCut, From: 190 * sec, Until: 190 * sec, To: []string{"h2"}}}
			course(func(c *Cost, at time.Duration) {
				if at == 200*sec {
					c.LogLines += 14
				}
			})(s)
		}},
		{name: "lines in a burst, long after a fault of etcd's", then: func(s *story) {
			s.Faults = []Fault{{Kind: FaultCompact, From: 178 * sec, Until: 178 * sec}}
			course(func(c *Cost, at time.Duration) {
				if at == 200*sec {
					c.LogLines += 14
				}
			})(s)
		}, want: []string{"bounded-load h2 3m20s"}},
		{name: "lines in a burst, and faults that are not its own", then: func(s *story) {
			s.Faults = []Fault{
				{Kind: FaultCut, From: 195 * sec, Until: 196 * sec, To: []string{"h1"}},
				{Kind: faultSilence, From: 195 * sec, Until: 196 * sec, Hosts: []string{"h2"}},
				{Kind: faultMachine, From: 195 * sec, Until: 196 * sec, Every: true},
			}
			course(func(c *Cost, at time.Duration) {
				if at == 200*sec {
					c.LogLines += 14
				}
			})(s)
		}, want: []string{"bounded-load h2 3m20s"}},
		{name: "within", then: load(Load{Requests: int(b.Requests.of(time.Minute, 0, 1)), CPU: 2 * sec, LogLines: 70})},
		{name: "requests", then: load(Load{Requests: int(b.Requests.of(time.Minute, 0, 1)) + 1}), want: []string{"bounded-load h2 1m0s"}},
		{name: "CPU", then: load(Load{CPU: 4 * sec}), want: []string{"bounded-load h2 1m0s"}},
		{name: "log", then: load(Load{LogLines: 71}), want: []string{"bounded-load h2 1m0s"}},
		{name: "all of them", then: load(Load{Requests: 1e6, CPU: time.Hour, LogLines: 1e6}), want: []string{"bounded-load h2 1m0s", "bounded-load h2 1m0s", "bounded-load h2 1m0s"}},
		{name: "faults and starts cost something", then: func(s *story) {
			s.restart("h2", sec)
			s.take("h2", home(2))
			s.fault(sec, Fault{Kind: "slow", To: []string{"h2"}})
			s.fault(sec, Fault{Kind: "compact"})
			s.to(time.Minute)
			s.Load = []Load{{Host: "h2", CPU: 4 * sec, LogLines: 20 + 10 + 2*15 + 2*40}}
		}},
	} {
		c.run(t)
	}
}
