package etcdstore

import (
	"errors"
	"syscall"
	"time"
)

const (
	// readEvery is how often a connection is read on which little comes again and
	// again: each time wakes the client, which costs more than what it brings.
	readEvery = 80 * time.Millisecond
	// readsAtOnce is how many reads may come at once before: more than a start makes.
	readsAtOnce = 64
	// bytesPerRead is for how much data a read is worth its cost.
	bytesPerRead = 4 << 10
	// unheard is how much may arrive before the kernel tells of it while a connection
	// rests. It tells again as soon as somebody waits.
	unheard = 32 << 10
)

// intake says when a connection is read. What comes after a pause is read at once, and so
// is what comes in bulk, but of many small messages in a row some wait together in the
// kernel, as a network card gathers packets for one interrupt.
//
//	   time / readEvery, bytes / bytesPerRead
//	                     |
//	                     v
//	[ 0 ... credit ... readsAtOnce ] ---- 1 ---> a read that left nothing behind
//
// It serves one reader. Its zero value is a new connection's.
type intake struct {
	// spent is what lacks of the full credit.
	spent float64
	// at is when the last read began.
	at time.Time
}

// pause is how long to wait before a read at now, behind one that brought n bytes.
// Drained: that one left nothing behind. It is never longer than readEvery.
func (i *intake) pause(now time.Time, n int, drained bool) time.Duration {
	earned := float64(now.Sub(i.at))/float64(readEvery) + float64(n)/bytesPerRead
	i.spent, i.at = max(0, i.spent-earned), now
	if !drained {
		return 0
	}
	i.spent++
	return time.Duration(max(0, i.spent-readsAtOnce) * float64(readEvery))
}

// resting is a connection that rests between reads. It belongs to the one who reads.
type resting struct {
	intake intake
	// raw is the socket; nil: what is beneath has none, and wakes us all the same.
	raw syscall.RawConn
	// last is how much was read last; drained: it left nothing behind.
	last    int
	drained bool
	// deaf: the kernel tells of no less than [unheard].
	deaf bool
	// closed ends the rest.
	closed chan struct{}
}

// rest waits until a read is worth its cost. It returns with a kernel that tells of
// whatever comes, or with something there to read.
func (r *resting) rest() {
	if pause := r.intake.pause(time.Now(), r.last, r.drained); pause > 0 {
		if !r.deaf {
			r.deaf = r.hear(unheard)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-r.closed:
			timer.Stop()
		}
	}
	if r.deaf && !r.waits() {
		// What comes before this is done the kernel tells then.
		r.deaf = !r.hear(1)
	}
}

// read notes what a read brought into so much space.
func (r *resting) read(n, space int) { r.last, r.drained = n, n < space }

// hear sets how much must be there for the kernel to tell of it. False: it cannot be set.
func (r *resting) hear(bytes int) bool {
	if r.raw == nil {
		return false
	}
	var err error
	ended := r.raw.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, bytes)
	})
	return ended == nil && err == nil
}

// waits reports whether a read has something to return, if only the end.
func (r *resting) waits() bool {
	var err error
	ended := r.raw.Control(func(fd uintptr) {
		var first [1]byte
		_, _, err = syscall.Recvfrom(int(fd), first[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	})
	return ended != nil || !errors.Is(err, syscall.EAGAIN)
}
