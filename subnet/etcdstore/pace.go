package etcdstore

import (
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// patienceFactor is by how much an answer may be slower than the slowest of
	// late before it counts as lost.
	patienceFactor = 10
	// mostPatience bounds that. Whoever is gone is noticed much earlier: the
	// connection is asked whether it lives.
	mostPatience = time.Minute
	// paceFalls is the part of the way by which a faster answer makes the pace
	// faster: one of many that was served out of turn says little.
	paceFalls = 4
)

// pace is how long etcd takes to answer at the moment. Where thousands of hosts start
// together that is seconds, and who gives up in the middle of the queue and asks again
// makes it longer: the answer that it does not wait for is made all the same. So a
// deadline is longer than what answers took, and after one that passed longer still.
type pace struct {
	mu sync.Mutex
	// slow is guarded by mu.
	slow time.Duration
}

// patience is how long to wait for an answer, and never less than least.
func (p *pace) patience(least time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(least, min(patienceFactor*p.slow, mostPatience))
}

// note takes in how a call that took so long ended.
func (p *pace) note(took time.Duration, err error) {
	code := status.Code(err)
	if code == codes.Canceled || code == codes.Unavailable {
		return // Nobody waited for an answer, or nobody was there to give one.
	}
	if code == codes.DeadlineExceeded {
		p.missed(took)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if took > p.slow {
		p.slow = took
	}
	p.slow -= (p.slow - took) / paceFalls
}

// missed takes in that there was no answer in so long: the next one gets twice the
// time.
func (p *pace) missed(waited time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slow = max(p.slow, 2*waited/patienceFactor)
}
