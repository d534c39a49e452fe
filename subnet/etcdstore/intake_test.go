package etcdstore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestIntake(t *testing.T) {
	type reads struct {
		count   int
		every   time.Duration
		bytes   int
		drained bool
	}
	const message = 300
	for name, tc := range map[string]struct {
		before, then reads
		// least and most is how long all of then take.
		least, most time.Duration
	}{
		"a start": {
			then: reads{count: readsAtOnce, bytes: message, drained: true},
		},
		"seldom": {
			then: reads{count: 1000, every: readEvery, bytes: message, drained: true},
			most: 1000 * readEvery,
		},
		"bulk that is there": {
			before: reads{count: readsAtOnce, drained: true},
			then:   reads{count: 1000, bytes: 32 << 10},
		},
		"bulk that arrives in parts": {
			before: reads{count: readsAtOnce, drained: true},
			then:   reads{count: 1000, every: time.Millisecond, bytes: bytesPerRead, drained: true},
			most:   time.Second,
		},
		"many small messages": {
			before: reads{count: readsAtOnce, bytes: message, drained: true},
			then:   reads{count: 100, bytes: message, drained: true},
			least:  80 * readEvery,
			most:   100 * readEvery,
		},
		"many small messages after a pause": {
			before: reads{count: 1000, every: time.Second, bytes: message, drained: true},
			then:   reads{count: readsAtOnce, bytes: message, drained: true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Now()
			var i intake
			do := func(r reads) time.Duration {
				begin := now
				for range r.count {
					now = now.Add(i.pause(now, r.bytes, r.drained) + r.every)
				}
				return now.Sub(begin)
			}
			do(tc.before)
			if took := do(tc.then); took < tc.least || took > tc.most {
				t.Errorf("took %s, want %s to %s", took, tc.least, tc.most)
			}
		})
	}
}

// Whatever comes when, nothing waits for longer than readEvery.
func TestIntakePause(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Now()
		var i intake
		for range rapid.IntRange(1, 300).Draw(t, "reads") {
			pause := i.pause(now, rapid.IntRange(0, 64<<10).Draw(t, "bytes"), rapid.Bool().Draw(t, "drained"))
			if pause < 0 || pause > readEvery {
				t.Fatalf("a pause of %s", pause)
			}
			now = now.Add(pause + time.Duration(rapid.IntRange(0, int(readEvery)).Draw(t, "idle")))
		}
	})
}

// connected returns a connection of a store's wire, and the other end.
func connected(t *testing.T) (*wireConn, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := newWire(time.Minute, nil, nil).dial(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = near.Close() })
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	return near.(*wireConn), far
}

// told is how much must be there for the kernel to tell of it.
func told(t *testing.T, c *wireConn) (bytes int) {
	t.Helper()
	var err error
	ended := c.raw.Control(func(fd uintptr) { bytes, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT) })
	if err := errors.Join(ended, err); err != nil {
		t.Fatal(err)
	}
	return bytes
}

// chat sends messages of a byte until ctx ends, and then the end.
func chat(ctx context.Context, far net.Conn) (sent []byte, err error) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		b := byte(len(sent))
		if _, err := far.Write([]byte{b}); err != nil {
			return sent, err
		}
		sent = append(sent, b)
		<-tick.C
	}
	return sent, far.Close()
}

// Of many messages in a row some are read together, none is lost, and the last comes too.
func TestMessagesAreReadTogether(t *testing.T) {
	c, far := connected(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	type outcome struct {
		sent []byte
		err  error
	}
	done := make(chan outcome, 1)
	go func() {
		sent, err := chat(ctx, far)
		done <- outcome{sent, err}
	}()
	var got []byte
	buf := make([]byte, 32<<10)
	reads, begin := 0, time.Now()
	for {
		n, err := c.Read(buf)
		got = append(got, buf[:n]...)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		reads++
	}
	chatted := <-done
	if chatted.err != nil || !bytes.Equal(got, chatted.sent) {
		t.Errorf("read %d bytes of %d, %v", len(got), len(chatted.sent), chatted.err)
	}
	if most := readsAtOnce + int(time.Since(begin)/readEvery) + 2; reads > most {
		t.Errorf("%d reads of %d messages, want at most %d", reads, len(chatted.sent), most)
	}
}

// While a connection rests the kernel does not tell of what comes, and does again when
// nothing has come.
func TestRestIsQuiet(t *testing.T) {
	for name, comes := range map[string]int{"nothing comes": 0, "a message comes": 1} {
		t.Run(name, func(t *testing.T) {
			c, far := connected(t)
			c.intake, c.drained = intake{spent: readsAtOnce, at: time.Now()}, true
			if _, err := far.Write(make([]byte, comes)); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			c.rest()
			if took := time.Since(began); took < readEvery/2 {
				t.Errorf("rested for %s", took)
			}
			want := unheard
			if comes == 0 {
				want = 1
			}
			if got := told(t, c); got != want || c.deaf != (comes > 0) {
				t.Errorf("the kernel tells of %d bytes, want %d; deaf: %t", got, want, c.deaf)
			}
			// A reader that waits now is woken by the next byte.
			heard := make(chan error, 1)
			go func() {
				var b [64]byte
				for n := 0; n <= comes; {
					more, err := c.Read(b[:])
					if n += more; err != nil {
						heard <- err
						return
					}
				}
				heard <- nil
			}()
			time.Sleep(3 * readEvery) // it waits
			if _, err := far.Write([]byte{1}); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-heard:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(10 * time.Second):
				t.Error("what came later is not heard")
			}
		})
	}
}

// Who closes a connection does not wait for the end of a rest.
func TestCloseEndsTheRest(t *testing.T) {
	c, _ := connected(t)
	c.intake, c.drained = intake{spent: 1e6, at: time.Now()}, true
	ended := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		ended <- err
	}()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the rest goes on")
	}
}
