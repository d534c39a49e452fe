package robustness

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// furnished adds what a story lacks that a run has: pings, costs, and an end.
func furnished(s *story) {
	s.Pairs = []Pair{
		{From: "h1", To: "h2", Began: 0, Ended: s.now, Interval: sec / 50, Sent: 50 * int(s.now/sec)},
		{From: "h2", To: "h3", Began: 0, Ended: s.now, Interval: sec / 50, Sent: 10}, // The machine was slow.
	}
	s.Load = []Load{{Host: "h1", Course: []Cost{{At: sec}, {At: 11 * sec}, {At: 12 * sec}, {At: 21 * sec}}}}
	in := map[string]time.Duration{"h1": 0, "h2": 0, "h3": 0}
	s.Final = Final{Healed: s.now - sec, Leased: in, Ready: in}
}

// counts are those of one validator.
func counts(all Verdicts, name string) [2]int {
	i := slices.IndexFunc(all, func(v Verdict) bool { return v.Validator == name })
	return [2]int{all[i].Judged, all[i].Excused}
}

// What was not looked at is not counted as looked at.
func TestJudged(t *testing.T) {
	down := func(s *story, kinds ...FaultKind) {
		for _, k := range kinds {
			s.Faults = append(s.Faults, Fault{Kind: k, Unreachable: []string{"h1", "h2", "h3"}, Every: true, Until: time.Hour})
		}
	}
	for _, tc := range []struct {
		name string
		then func(*story)
		want map[string][2]int
		idle []string
	}{
		{"nothing happens", func(s *story) { s.to(40 * sec) }, map[string][2]int{
			WholeRecord: {4, 0}, OneOwner: {3, 0}, LostWrite: {3, 0}, Allocation: {3, 0}, LivingProcess: {3, 0},
			// 81 samples of three hosts, from the start of the record; a third of
			// a host's time does not count until it has been able for Heal.
			StopsUsing: {3 * 61, 3 * 19}, WholeFiles: {6 * 61, 6 * 19}, RouteToOwner: {6 * 61, 6 * 19}, Leased: {3, 0}, KeptLease: {9, 0},
			TrueStatus: {240, 0}, TimelyReady: {3 * 60, 3 * 20},
			NoLoss: {2010, 0}, BoundedLoad: {2, 0}, Recovery: {3, 0},
			SilentRenewal: {0, 0}, SameSubnet: {0, 0}, StoreIdentity: {0, 0}, Unreadable: {0, 0},
		}, nil},
		{"a restart", func(s *story) {
			s.restart("h1", sec)
			s.take("h1", home(1))
			s.to(40 * sec)
		}, map[string][2]int{SilentRenewal: {1, 0}, SameSubnet: {1, 0}, LivingProcess: {4, 0}}, nil},
		{"a restart that nobody can judge", func(s *story) {
			s.end("h1", killed)
			s.byOperator(func() { s.del(home(1)) })
			s.then(sec)
			s.start("h1")
			s.frozen["h1"] = false
			s.create("h1", home(1))
			s.to(40 * sec)
		}, map[string][2]int{SameSubnet: {0, 1}}, nil},
		{"a fault from the beginning to the end", func(s *story) {
			down(s, FaultDown)
			s.to(40 * sec)
		}, map[string][2]int{
			StopsUsing: {0, 240}, WholeFiles: {0, 480}, RouteToOwner: {0, 480}, Leased: {0, 0}, KeptLease: {0, 0}, NoLoss: {0, 2010},
		}, []string{KeptLease, StopsUsing, RouteToOwner, RouteFollows, WholeFiles, TimelyReady, Leased, NoLoss}},
		{"a fault for a while", func(s *story) {
			s.fault(5*sec, Fault{Kind: FaultPartition, Hosts: []string{"h1"}, Unreachable: []string{"h1"}})
			s.to(40 * sec)
		}, map[string][2]int{Leased: {4, 0}, KeptLease: {7, 0}, NoLoss: {1210, 800}, StopsUsing: {3*61 - 30, 3*19 + 30}}, nil},
		{"etcd lost its past", func(s *story) {
			s.wipe()
			s.byOperator(func() { s.put("config", storyConfig) })
			for i, h := range s.Hosts {
				s.create(h.Name, home(i+1))
			}
			s.to(40 * sec)
		}, map[string][2]int{StoreIdentity: {3 + 6*20, 0}}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := narrate(t, 3)
			tc.then(s)
			furnished(s)
			r := s.record()
			all := Validate(r, Validators(DefaultBounds(r.TTL)))
			for name, want := range tc.want {
				if diff := cmp.Diff(want, counts(all, name)); diff != "" {
					t.Errorf("%s (-want +got):\n%s", name, diff)
				}
			}
			if diff := cmp.Diff(tc.idle, all.Idle(), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("idle (-want +got):\n%s", diff)
			}
		})
	}
}

func TestConclude(t *testing.T) {
	verdicts := Verdicts{{Validator: LostWrite, Judged: 1}, {Validator: SameSubnet, Occasional: true}}
	excused := append(slices.Clone(verdicts), Verdict{Validator: StoreIdentity, Occasional: true, Excused: byChance + 1})
	chance := append(slices.Clone(verdicts), Verdict{Validator: StoreIdentity, Occasional: true, Excused: byChance})
	none := append(slices.Clone(verdicts), Verdict{Validator: NoLoss})
	broken := append(slices.Clone(none), Verdict{Validator: OneOwner, Judged: 1, Violations: []Violation{{Validator: OneOwner, Message: "oh"}}})
	for _, tc := range []struct {
		name string
		long time.Duration
		all  Verdicts
		want string
	}{
		{"well", fullRun, verdicts, ""},
		{"everything excused", fullRun, excused, "by store-identity"},
		{"everything excused, and that was little", fullRun, chance, ""},
		{"nothing judged", fullRun, none, "by no-loss"},
		{"nothing judged in a short run", fullRun - 1, none, ""},
		{"a violation", sec, broken, "one-owner at 0s: oh"},
	} {
		err := conclude(&Record{Duration: tc.long}, tc.all)
		if (err != nil) != (tc.want != "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}
