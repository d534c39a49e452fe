package page

import (
	"errors"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBounds(t *testing.T) {
	for _, tc := range []struct {
		bound             Bound
		text              string
		below, at, beyond bool
	}{
		{AtLeast(0.5), "at least 0.5", false, true, true},
		{AtMost(0.5), "at most 0.5", true, true, false},
		{Under(0.5), "under 0.5", true, false, false},
		{Just(0.5), "just 0.5", false, true, false},
	} {
		if got := tc.bound.String(); got != tc.text {
			t.Errorf("got %q, want %q", got, tc.text)
		}
		for v, want := range map[float64]bool{0.499: tc.below, 0.5: tc.at, 0.501: tc.beyond} {
			if got := (Claim{Found: v, Bound: tc.bound}).Holds(); got != want {
				t.Errorf("%v %s: %t, want %t", v, tc.bound, got, want)
			}
		}
	}
}

func TestMissed(t *testing.T) {
	held := Claim{Title: "a", Found: 1, Bound: AtMost(2), Timed: true}
	slow := Claim{Title: "a start", Found: 0.7, Unit: "s", Bound: Under(0.6), Timed: true}
	fat := Claim{Title: "memory", Found: 65, Unit: "MB", Bound: Under(64)}
	none := Claim{Title: "nobody looked", Found: math.NaN(), Bound: AtLeast(1)}
	const slowly, fatly = "a start: 0.700 s, wanted under 0.6 s", "memory: 65.0 MB, wanted under 64 MB"
	for name, tc := range map[string]struct {
		claims  []Claim
		busy    bool
		missed  string
		excused []string
	}{
		"all hold":     {[]Claim{held, none}, false, "", nil},
		"both":         {[]Claim{slow, held, fat}, false, ErrMissed.Error() + ": " + slowly + "\n" + ErrMissed.Error() + ": " + fatly, nil},
		"while busy":   {[]Claim{slow, held, fat}, true, ErrMissed.Error() + ": " + fatly, []string{slowly}},
		"only excused": {[]Claim{slow}, true, "", []string{slowly}},
	} {
		t.Run(name, func(t *testing.T) {
			excused, missed := Missed(tc.claims, tc.busy)
			got := ""
			if missed != nil {
				got = missed.Error()
			}
			if got != tc.missed || missed != nil && !errors.Is(missed, ErrMissed) {
				t.Errorf("missed: got %q, want %q", got, tc.missed)
			}
			if d := cmp.Diff(tc.excused, excused); d != "" {
				t.Errorf("excused (-want +got):\n%s", d)
			}
		})
	}
}
