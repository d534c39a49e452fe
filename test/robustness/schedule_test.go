package robustness

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// anyOptions are options that a run could have.
func anyOptions(t *rapid.T) scheduleOptions {
	o := scheduleOptions{
		Hosts:    rapid.IntRange(2, 16).Draw(t, "hosts"),
		TTL:      time.Duration(rapid.IntRange(2, 10).Draw(t, "ttl")) * time.Second,
		Duration: time.Duration(rapid.IntRange(1, 600).Draw(t, "duration")) * time.Second,
	}
	if rapid.Bool().Draw(t, "small disks") {
		o.Small = []int{1, o.Hosts}
	}
	if rapid.Bool().Draw(t, "releasing") {
		o.Releasing = []int{o.Hosts}
	}
	return o
}

func TestScheduleIsAFunction(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o, seed := anyOptions(t), rapid.Uint64().Draw(t, "seed")
		if diff := cmp.Diff(newSchedule(seed, o), newSchedule(seed, o)); diff != "" {
			t.Errorf("two schedules of one seed:\n%s", diff)
		}
	})
}

func TestScheduleKeepsItsRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := anyOptions(t)
		steps := newSchedule(rapid.Uint64().Draw(t, "seed"), o)
		ends := map[int]time.Duration{}
		for i, s := range steps {
			if s.At < 0 || s.For < 0 || s.until() > o.Duration {
				t.Errorf("%s: outside of %s", s, o.Duration)
			}
			if i > 0 && s.At < steps[i-1].At {
				t.Errorf("%s: after %s", s, steps[i-1])
			}
			for j, h := range s.Hosts {
				if h < 1 || h > o.Hosts || j > 0 && h <= s.Hosts[j-1] {
					t.Errorf("%s: hosts %v of %d", s, s.Hosts, o.Hosts)
				}
				if s.Kind == FaultDisk && !slices.Contains(o.Small, h) {
					t.Errorf("%s: h%d has no disk of its own", s, h)
				}
				if s.Variant == variantRelease && !slices.Contains(o.Releasing, h) {
					t.Errorf("%s: h%d does not release", s, h)
				}
			}
			for _, other := range steps[:i] {
				if exclusive(s, other) {
					t.Errorf("%s: beside %s", s, other)
				}
			}
			ends[s.Round] = max(ends[s.Round], s.until())
		}
		for _, s := range steps {
			if end, ok := ends[s.Round-1]; ok && s.At < end+shortGap*o.TTL {
				t.Errorf("%s: round %d ended at %s", s, s.Round-1, end)
			}
		}
	})
}

// Most rounds of a long run leave the time in which everything is judged, some
// do not.
func TestScheduleLeavesTimeToJudge(t *testing.T) {
	o := scheduleOptions{Hosts: 8, TTL: leaseTTL, Duration: 10 * time.Minute, Small: []int{5, 6}, Releasing: []int{7}}
	short, all := 0, 0
	for seed := range uint64(50) {
		var begins, ends []time.Duration
		for _, s := range newSchedule(seed, o) {
			if s.Round == len(begins) {
				begins, ends = append(begins, s.At), append(ends, 0)
			}
			ends[s.Round] = max(ends[s.Round], s.until())
		}
		for i, end := range ends[:len(ends)-1] {
			all++
			if begins[i+1]-end < quiet(o.TTL)+beyondQuiet {
				short++
			}
		}
	}
	if short*oneInGaps < all/2 || short*oneInGaps > all*2 {
		t.Errorf("%d of %d gaps are short, want one of %d", short, all, oneInGaps)
	}
}

func TestExclusive(t *testing.T) {
	at := func(kind FaultKind, from, until int, hosts ...int) Step {
		return Step{Kind: kind, At: time.Duration(from), For: time.Duration(until - from), Hosts: hosts}
	}
	for name, tc := range map[string]struct {
		a, b Step
		want bool
	}{
		"one host twice":                {at(FaultKill, 0, 5, 1), at(FaultPause, 5, 9, 1), true},
		"one after the other":           {at(FaultKill, 0, 5, 1), at(FaultPause, 6, 9, 1), false},
		"two hosts":                     {at(FaultKill, 0, 5, 1), at(FaultKill, 0, 5, 2), false},
		"one of several":                {at(FaultKill, 0, 5, 1, 2), at(FaultKill, 1, 2, 2, 3), true},
		"a daemon and its link":         {at(FaultKill, 0, 5, 1), at(FaultCut, 0, 5, 1), false},
		"etcd twice":                    {at(FaultWipe, 0, 5), at(FaultMajority, 4, 9), true},
		"etcd and its config":           {at(FaultWipe, 0, 5), at(FaultNoConfig, 4, 9), true},
		"config without etcd":           {at(FaultDown, 0, 5), at(FaultNoConfig, 4, 9), false},
		"restart of one that is killed": {at(FaultOffline, 0, 5, 1), at(FaultKill, 4, 9, 1), true},
		"compaction at any time":        {at(FaultWipe, 0, 5), at(FaultCompact, 4, 4), false},
	} {
		if exclusive(tc.a, tc.b) != tc.want || exclusive(tc.b, tc.a) != tc.want {
			t.Errorf("%s: got %v, want %v", name, !tc.want, tc.want)
		}
	}
}

// A run of ten minutes does everything that there is; a short one does not do
// the same things every time.
func TestScheduleLeavesNothingOut(t *testing.T) {
	o := scheduleOptions{Hosts: 8, TTL: 5 * time.Second, Duration: 10 * time.Minute, Small: []int{5, 6}, Releasing: []int{7}}
	for seed := range uint64(50) {
		seen := map[string]int{}
		for _, s := range newSchedule(seed, o) {
			seen[string(s.Kind)+" "+s.Variant]++
		}
		for _, s := range specs() {
			if seen[string(s.kind)+" "+s.variant] == 0 {
				t.Errorf("seed %d: no %s %s", seed, s.kind, s.variant)
			}
		}
	}
	o.Duration = 30 * time.Second
	seen := map[string]bool{}
	for seed := range uint64(300) {
		steps := newSchedule(seed, o)
		if len(steps) < leastFaults {
			t.Errorf("seed %d: %d faults in %s", seed, len(steps), o.Duration)
		}
		for _, s := range steps {
			seen[string(s.Kind)+" "+s.Variant] = true
		}
	}
	for _, s := range specs() {
		if seen[string(s.kind)+" "+s.variant] == s.long {
			t.Errorf("short runs know %s %s: %t", s.kind, s.variant, s.long)
		}
	}
}

// The long silence is one that a watch must notice by itself.
func TestLongSilence(t *testing.T) {
	const progress = 30 * time.Second // of subnet's view
	for _, s := range specs() {
		least := time.Duration(0)
		for _, r := range s.lasts {
			least = time.Duration(r.least * float64(leaseTTL))
		}
		if long := s.variant == variantLong; long != s.long || long && least <= progress {
			t.Errorf("%s %s lasts for %s at least, want more than %s", s.kind, s.variant, least, progress)
		}
	}
}

func TestScheduleOfSomeKinds(t *testing.T) {
	o := scheduleOptions{Hosts: 4, TTL: time.Second, Duration: time.Minute, Kinds: []FaultKind{FaultKill, FaultDisk}}
	for _, s := range newSchedule(1, o) {
		if s.Kind != FaultKill {
			t.Errorf("%s: not asked for, or not possible", s)
		}
	}
}

func TestStepString(t *testing.T) {
	for want, s := range map[string]Step{
		"   12.3s  partition in of h3 for 4.2s": {Kind: FaultPartition, Variant: variantIn, At: 12300 * time.Millisecond, For: 4200 * time.Millisecond, Hosts: []int{3}},
		"    0.0s  compact":                     {Kind: FaultCompact},
		"    1.0s  clock wall by -1h0m0s of h1, h2": {
			Kind: FaultClock, Variant: variantWall, At: time.Second, Amount: -time.Hour, Hosts: []int{1, 2},
		},
	} {
		if got := s.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if strings.Contains(s.String(), "\n") {
			t.Errorf("%q is not one line", s)
		}
	}
}
