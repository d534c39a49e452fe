package page

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// Absent is what a table shows where there is no figure.
const Absent = "-"

// Disturbed stands above the figures of a machine that was busy before.
const Disturbed = "**The machine was busy with other programs before the run: these figures and ratios prove nothing.**\n\n"

// Median is the middle of values, or between the middle two; NaN of none.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	half := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[half]
	}
	return (sorted[half-1] + sorted[half]) / 2
}

// Percentile is the least of sorted values that p of 100 do not exceed (nearest
// rank). There must be one.
func Percentile[T cmp.Ordered](sorted []T, p int) T {
	rank := (len(sorted)*p + 99) / 100
	return sorted[max(0, rank-1)]
}

// Number shows three digits, or all before the point.
func Number(v float64) string {
	switch magnitude := math.Abs(v); {
	case math.IsNaN(v):
		return Absent
	case v == 0:
		return "0"
	case magnitude >= 99.95:
		return fmt.Sprintf("%.0f", v)
	case magnitude >= 9.995:
		return fmt.Sprintf("%.1f", v)
	case magnitude >= 0.9995:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.3f", v)
	}
}
