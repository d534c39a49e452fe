package reconcile

import "slices"

// Plan is the difference between what should be and what is.
type Plan[E any] struct {
	// Put are the entries that are missing or have another value, in the
	// order in which they were desired.
	Put []E
	// Delete are our entries that nobody desires, in the order listed.
	Delete []E
	// Conflicts are the entries that were not planned, because an earlier one
	// of the same key has another value.
	Conflicts []Conflict[E]
}

// Conflict is a pair of desired entries of one key: the first is planned, the
// second is not.
type Conflict[E any] struct{ First, Second E }

// Differ makes diffs with buffers that it keeps: once they have grown, a diff
// allocates nothing. A diff of which all is missing, as a start's, needs none for that.
// The zero Differ is ready; it must not be used concurrently.
type Differ[E Entry[K], K comparable] struct {
	// index says where in desired a key stands.
	index map[K]int32
	// state says, per desired entry, what was found of it.
	state []found
	// put and plan's other slices are the buffers.
	put  []E
	plan Plan[E]
}

// found is what a diff knows of one desired entry.
type found uint8

const (
	missing  found = iota // nothing of its key
	changed               // one entry of its key, with another value
	repeated              // several entries of its key, none equal
	present               // an equal entry
	skipped               // stands in desired already, or in conflict
)

// wanting reports whether an entry has to be put.
func (s found) wanting() bool { return s == missing || s == changed || s == repeated }

// Diff plans how actual becomes desired, in time linear in both. It changes
// neither, and a nil owned claims every entry. The plan, whose Put may be desired
// itself, is valid until the next call.
//
// Desired is a set: an entry that stands there twice counts once. Several
// actual entries may have one key (a MAC with two VTEPs, say); at most one of
// them equals a desired one, and the others are deleted when they are ours.
func (d *Differ[E, K]) Diff(desired, actual []E, owned func(E) bool) Plan[E] {
	d.reset(len(desired))
	d.indexDesired(desired)
	for _, a := range actual {
		if i, ok := d.index[a.Key()]; ok {
			d.state[i] = next(d.state[i], a == desired[i])
		}
	}
	d.plan.Put = d.wanting(desired)
	for _, a := range actual {
		if !d.keeps(desired, a) && (owned == nil || owned(a)) {
			d.plan.Delete = append(d.plan.Delete, a)
		}
	}
	return d.plan
}

// wanting returns the desired entries that have to be put.
func (d *Differ[E, K]) wanting(desired []E) []E {
	n := 0
	for _, s := range d.state {
		if s.wanting() {
			n++
		}
	}
	if n == len(desired) {
		return desired
	}
	d.put = slices.Grow(d.put, n)
	for i, e := range desired {
		if d.state[i].wanting() {
			d.put = append(d.put, e)
		}
	}
	return d.put
}

// next is the one transition of a desired entry's state: an actual entry of its
// key was seen, equal to it or not.
//
//	missing --other--> changed --other--> repeated
//	   any  --equal--> present
func next(s found, equal bool) found {
	switch {
	case equal || s == present:
		return present
	case s == missing:
		return changed
	default:
		return repeated
	}
}

// keeps reports whether the actual entry a stays or is replaced by a put. Of
// several entries of one key a put replaces one, and nobody can tell which: all
// are deleted then, by value, after the put, and the one replaced is gone
// already.
func (d *Differ[E, K]) keeps(desired []E, a E) bool {
	i, ok := d.index[a.Key()]
	if !ok {
		return false
	}
	return a == desired[i] || d.state[i] == changed
}

func (d *Differ[E, K]) indexDesired(desired []E) {
	for i, e := range desired {
		k := e.Key()
		first, ok := d.index[k]
		if !ok {
			d.index[k] = int32(i)
			continue
		}
		d.state[i] = skipped
		if desired[first] != e {
			d.plan.Conflicts = append(d.plan.Conflicts, Conflict[E]{desired[first], e})
		}
	}
}

// reset empties the buffers. They are cleared and not only cut, for entries may
// hold pointers.
func (d *Differ[E, K]) reset(n int) {
	if d.index == nil {
		d.index = make(map[K]int32, n)
	}
	clear(d.index)
	if cap(d.state) < n {
		d.state = make([]found, n)
	}
	d.state = d.state[:n]
	clear(d.state)
	clear(d.put)
	clear(d.plan.Delete)
	clear(d.plan.Conflicts)
	d.put = d.put[:0]
	d.plan = Plan[E]{nil, d.plan.Delete[:0], d.plan.Conflicts[:0]}
}
