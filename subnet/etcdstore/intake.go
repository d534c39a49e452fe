package etcdstore

import (
	"errors"
	"os"
	"syscall"
	"time"
)

const (
	// readEvery is how often a connection is read on which little comes again and
	// again: each time wakes the client, which costs more than what it brings.
	readEvery = 80 * time.Millisecond
	// readsAtOnce is how many reads may come at once before: more than a start makes.
	readsAtOnce = 64
	// steadyEvery is how far apart messages must be on average to be read at once for
	// ever: those that are followed one by one, too. Closer ones are chatter in the end.
	steadyEvery = 25 * time.Millisecond
	// chatterFor is how long chatter is taken to go on, unless there is a pause or bulk.
	// What comes now and then instead is read at once after that, and chatter shows
	// itself by readsToTell reads and what is earned meanwhile.
	chatterFor  = 5 * time.Second
	readsToTell = 2
	// bytesPerRead is for how much data a read is worth its cost.
	bytesPerRead = 4 << 10
	// unheard is how much may arrive before the kernel tells of it while a connection
	// rests. It tells again as soon as somebody waits. So much at a time is bulk.
	unheard = 32 << 10
)

// intake says when a connection is read. What comes now and then is read at once, and so
// is what comes in bulk, but of many small messages in a row some wait together in the
// kernel, as a network card gathers packets for one interrupt.
//
//	time / steadyEvery, bytes / bytesPerRead
//	                  |
//	                  v
//	[ 0 ... credit ... readsAtOnce ] ---- 1 ---> a read that left nothing behind
//	  |                         ^
//	spent: chatter, a read each |
//	readEvery --- chatterFor, or a pause, or bulk
//
// What it costs a single change: up to 40 a second go out at once for ever, and for the
// first seconds more do. Faster ones wait for up to readEvery and for half of it on
// average, and so does what comes within chatterFor after them without a pause.
//
// It serves one reader. Its zero value is a new connection's.
type intake struct {
	// spent is what lacks of the full credit.
	spent float64
	// at is when the last read began that was to be worth its cost.
	at time.Time
	// brought is what has been read since then.
	brought int
	// chatter is until when it is taken to go on; zero: there is none.
	chatter time.Time
}

// pause is how long to wait before a read at now, behind one that brought n bytes.
// Drained: that one left nothing behind. It is 0 or readEvery.
func (i *intake) pause(now time.Time, n int, drained bool) time.Duration {
	if i.brought += n; !drained {
		return 0
	}
	since, brought := now.Sub(i.at), i.brought
	i.at, i.brought = now, 0
	if now.Before(i.chatter) && since < readEvery+steadyEvery && brought < unheard {
		return readEvery
	}
	earned := float64(since)/float64(steadyEvery) + float64(brought)/bytesPerRead
	i.spent = max(0, i.spent-earned) + 1
	if i.chatter = (time.Time{}); i.spent <= readsAtOnce {
		return 0
	}
	i.spent, i.chatter = readsAtOnce-readsToTell, now.Add(chatterFor)
	return readEvery
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
// whatever comes, or with something there to read. With an error nothing would ever
// be heard of.
func (r *resting) rest() error {
	if pause := r.intake.pause(time.Now(), r.last, r.drained); pause > 0 {
		if !r.deaf {
			r.deaf = r.hear(unheard) == nil
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
		if err := r.hear(1); err != nil {
			return err
		}
		r.deaf = false
	}
	return nil
}

// read notes what a read brought into so much space.
func (r *resting) read(n, space int) { r.last, r.drained = n, n < space }

// hear sets how much must be there for the kernel to tell of it. Of more than the half
// of what it has room for it makes that.
func (r *resting) hear(bytes int) error {
	if r.raw == nil {
		return errors.ErrUnsupported
	}
	var err error
	ended := r.raw.Control(func(fd uintptr) {
		err = os.NewSyscallError("setsockopt", syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, bytes))
	})
	return errors.Join(ended, err)
}

// waits reports whether a read has something to return, if only the end. Not to know is
// no.
func (r *resting) waits() bool {
	var err error
	ended := r.raw.Control(func(fd uintptr) {
		var first [1]byte
		_, _, err = syscall.Recvfrom(int(fd), first[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	})
	return ended == nil && err == nil
}
