package subnet

import (
	"cmp"
	"sync"
	"time"
)

const (
	// spokenEvery is how often a watch in which nothing happens says so, where
	// hosts are not so many that they leave that to their keepers' renewals.
	spokenEvery = progressLeast
	// aftermath is for how long a store may take at the most, after it was silent,
	// to delete what ran out meanwhile: etcd revokes 1,000 leases a second and more.
	aftermath = time.Minute
)

// hearing is when the store was heard last, by this process or an earlier one of this
// host: when it answered, or told of what it answered others. A store that answers
// nobody keeps no lease alive, and sooner or later deletes those of hosts that live.
//
//	heard      heard                          heard
//	  |----------|------------------------------|--------------|------>
//	             |<------ silence or more ----->|<- aftermath ->|
//	                          |<------------ wary ------------>|
//
// One that is quiet and well speaks so often that it never counts as silent: a
// watch says something every 10 s, and a lease of seconds is renewed more often.
type hearing struct {
	ttl time.Duration

	mu sync.Mutex
	// The fields below are guarded by mu.

	// every is how often the store is heard while nothing is wrong; zero: this
	// process has not heard it yet.
	every time.Duration
	// last is when it was, until the end of the time after a silence.
	last, until time.Duration
}

// newHearing begins with the moment at which this process heard the store, or an
// earlier one of this host did.
func newHearing(ttl, last time.Duration) *hearing { return &hearing{ttl: ttl, last: last} }

// silence is how long a store must not have been heard to count as silent: half as
// long again as one that is well takes to speak, and half of a TTL. A lease was
// renewed a third of its TTL before at the most, and its owner asks again a sixth of
// it after at the latest. What the store was silent for less cannot make it run out.
func (h *hearing) silence() time.Duration { return max(h.ttl/2, h.every+h.every/2) }

// answered notes that the store answered who asks it so often. The watch speaks
// however seldom that is.
func (h *hearing) answered(now, every time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.note(now)
	h.every = min(every, spokenEvery)
}

// heard notes that the store was heard.
func (h *hearing) heard(now time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.note(now)
}

func (h *hearing) note(now time.Duration) {
	if now-h.last >= h.silence() {
		h.until = now + min(h.ttl, aftermath)
	}
	h.last, h.every = now, cmp.Or(h.every, spokenEvery)
}

// ago is how long the store has not been heard.
func (h *hearing) ago(now time.Duration) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return now - h.last
}

// wary reports whether what is deleted now may belong to hosts that live, and
// could not say so: the store is silent, or was until a moment ago.
func (h *hearing) wary(now time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return now < h.until || now-h.last >= h.silence()
}
