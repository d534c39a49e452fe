package page

import (
	"errors"
	"fmt"
	"math"
)

// ErrMissed: a run found something that is not as wanted.
var ErrMissed = errors.New("not as wanted")

// Bound is what a figure has to keep to.
type Bound struct {
	words string
	limit float64
	holds func(v, limit float64) bool
}

// AtLeast is a bound that a figure may not fall below.
func AtLeast(limit float64) Bound {
	return Bound{"at least", limit, func(v, limit float64) bool { return v >= limit }}
}

// AtMost is a bound that a figure may not exceed.
func AtMost(limit float64) Bound {
	return Bound{"at most", limit, func(v, limit float64) bool { return v <= limit }}
}

// Under is a bound that a figure must stay below.
func Under(limit float64) Bound {
	return Bound{"under", limit, func(v, limit float64) bool { return v < limit }}
}

// Just is a bound that only one figure keeps: a count.
func Just(limit float64) Bound {
	return Bound{"just", limit, func(v, limit float64) bool { return v == limit }}
}

// String reads as "at least 0.5".
func (b Bound) String() string { return fmt.Sprintf("%s %g", b.words, b.limit) }

// Claim is something that a run is to show, and what it found.
type Claim struct {
	Title string
	// Found is NaN where the run did not measure it.
	Found float64
	// Unit is "" for a ratio or a count.
	Unit  string
	Bound Bound
	// Timed: it is about time, and so about what else the machine did. What is not, such
	// as a count, must hold however busy that was.
	Timed bool
}

// Measured reports whether the run is about the claim.
func (c Claim) Measured() bool { return !math.IsNaN(c.Found) }

// Holds reports whether what was found is as wanted. What was not measured is.
func (c Claim) Holds() bool { return !c.Measured() || c.Bound.holds(c.Found, c.Bound.limit) }

// Cells are what was found and what is wanted, as in a table.
func (c Claim) Cells() (found, wanted string) {
	found, wanted = Number(c.Found), c.Bound.String()
	if c.Unit != "" {
		found, wanted = found+" "+c.Unit, wanted+" "+c.Unit
	}
	return found, wanted
}

// String reads as "memory: 65.0 MB, wanted under 64 MB".
func (c Claim) String() string {
	found, wanted := c.Cells()
	return fmt.Sprintf("%s: %s, wanted %s", c.Title, found, wanted)
}

// Missed returns an [ErrMissed] for each claim that does not hold, joined. On a machine
// that was busy with other programs what is about time proves nothing either way: that is
// in excused instead, a line each.
func Missed(claims []Claim, busy bool) (excused []string, missed error) {
	var errs []error
	for _, c := range claims {
		switch {
		case c.Holds():
		case busy && c.Timed:
			excused = append(excused, c.String())
		default:
			errs = append(errs, fmt.Errorf("%w: %s", ErrMissed, c))
		}
	}
	return excused, errors.Join(errs...)
}
