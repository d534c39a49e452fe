package page

import (
	"math"
	"testing"
)

func TestMedian(t *testing.T) {
	for name, tc := range map[string]struct {
		values []float64
		want   float64
	}{
		"one":        {[]float64{3}, 3},
		"odd":        {[]float64{9, 1, 5}, 5},
		"even":       {[]float64{4, 1, 3, 2}, 2.5},
		"an outlier": {[]float64{1, 1, 1, 1, 1e9}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Median(tc.values); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
	if got := Median(nil); !math.IsNaN(got) {
		t.Errorf("of nothing: got %v", got)
	}
}

func TestPercentile(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = i + 1
	}
	for _, tc := range []struct {
		sorted []int
		p      int
		want   int
	}{
		{[]int{7}, 50, 7},
		{[]int{7}, 99, 7},
		{[]int{1, 2}, 50, 1},
		{[]int{1, 2, 3}, 50, 2},
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred[:50], 99, 50},
		{hundred, 0, 1},
	} {
		if got := Percentile(tc.sorted, tc.p); got != tc.want {
			t.Errorf("%d of %d: got %d, want %d", tc.p, len(tc.sorted), got, tc.want)
		}
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{
		math.NaN(): "-", 0: "0", 12345.6: "12346", 99.96: "100", 99.94: "99.9", 9.996: "10.0", 1.234: "1.23", 0.9996: "1.00", 0.0567: "0.057",
	} {
		if got := Number(v); got != want {
			t.Errorf("%v: got %q, want %q", v, got, want)
		}
	}
}
