package subnet

import "time"

const (
	// crowdLeast is how often others must have written while a host leased its
	// subnet for it to believe that many start together.
	crowdLeast = 16
	// crowdSpread is over how many times the time that this took the watches
	// of a crowd are spread.
	crowdSpread = 3
	// crowdLongest keeps the pause below what counts as a silence of the store.
	crowdLongest = 10 * time.Second
)

// CrowdPause is how long a host that has leased l in w, which took it so long from
// the beginning of its load, leaves the store alone before it runs its [View]. Random
// is of [0, 1).
//
// A store sends each watch each change by itself, so that hosts which start together
// and watch each other start cost it the square of their number. A watch that begins
// later gets all that has happened by then in a few large answers, which is a fraction of
// the work. A host alone does not wait: nobody else writes meanwhile. Nor does it for
// long where others write and the store has time for all of them.
func CrowdPause(w World, l Lease, took time.Duration, random float64) time.Duration {
	if l.Modified < w.Revision+crowdLeast {
		return 0
	}
	return min(took+time.Duration(random*crowdSpread*float64(took)), time.Duration((0.5+random/2)*float64(crowdLongest)))
}
