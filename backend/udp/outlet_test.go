package udp

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"
)

// Sockets that are opened when a path is to end are another run's: nobody ends its reads of
// those, and it would wait for their packets for good.
func TestEndedPathReadsNothingNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		go func() { l.ended <- l.receiveLoop(ctx) }()
		synctest.Wait()
		select {
		case err := <-l.ended:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
		default:
			t.Error("it reads")
			l.conn.Close()
			<-l.ended
		}
	})
}

// A sender that waits for room in one socket goes on with the next, which has none either:
// closed one after the other, each would take a wait.
func TestOutletSetClosesAtOnce(t *testing.T) {
	const count, queues = 16, 2
	var tried atomic.Int64
	set, looked, ended := new(outletSet), make(chan struct{}, queues), make(chan struct{}, queues)
	for range queues {
		o, all := new(outlet), make([]*handle, count)
		for i := range all {
			all[i], _ = handles(t)
			o.senders = append(o.senders, &socket{raw: all[i]})
		}
		set.outlets = append(set.outlets, o)
		go func() {
			for i, h := range all {
				first := true
				_ = h.Write(func(fd uintptr) bool { // fills it, and then waits
					for err := error(nil); err == nil; {
						_, err = unix.Write(int(fd), []byte{1})
					}
					if first {
						first = false
						tried.Add(1)
						if i == 0 {
							looked <- struct{}{}
						}
					}
					return false
				})
			}
			ended <- struct{}{}
		}()
	}
	for range queues {
		<-looked
	}
	if err := set.close(); err != nil {
		t.Error(err)
	}
	for range queues {
		<-ended
	}
	if n := tried.Load(); n > count/2 {
		t.Errorf("%d of %d were tried", n, queues*count)
	}
}
