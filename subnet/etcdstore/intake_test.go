package etcdstore

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
)

// stream are messages of some size, each so long after the one before.
type stream struct {
	count int
	every time.Duration
	bytes int
}

// space is what a read has, as gRPC reads, and record as TLS does for small messages.
const space, record = 32 << 10, 512

// outcome is what became of the last stream.
type outcome struct {
	reads int
	// waited is how long messages did all together, longest the one that did longest. All
	// of the last one must have been read.
	waited, longest time.Duration
}

// simulate reads streams, one after the other, as a connection does, into so much space at
// a time. A stream begins an interval after the one before has been read.
func simulate(i *intake, now time.Time, space int, streams ...stream) (time.Time, outcome) {
	n, drained := 0, false
	var o outcome
	for _, s := range streams {
		o = outcome{}
		begin, read := now, 0
		arrival := func(k int) time.Time { return begin.Add(time.Duration(k+1) * s.every) }
		for bytes := 0; read < s.count || bytes > 0; {
			now = now.Add(i.pause(now, n, drained))
			if next := arrival(read); read < s.count && bytes == 0 && now.Before(next) {
				now = next // the read waits for it
			}
			for ; read < s.count && !now.Before(arrival(read)); read++ {
				late := now.Sub(arrival(read))
				o.waited, o.longest = o.waited+late, max(o.longest, late)
				bytes += s.bytes
			}
			n = min(bytes, space)
			bytes, drained = bytes-n, n < space
			o.reads++
		}
		last := max(0, now.Sub(arrival(s.count-1)))
		o.waited, o.longest = o.waited+last, max(o.longest, last)
	}
	return now, o
}

func TestIntake(t *testing.T) {
	const (
		message = 400
		minute  = time.Minute
	)
	perSecond := func(rate int, lasts time.Duration) stream {
		every := time.Second / time.Duration(rate)
		return stream{count: int(lasts / every), every: every, bytes: message}
	}
	chatter := perSecond(100, 10*time.Second)
	for name, tc := range map[string]struct {
		streams []stream
		// space is what a read has; 0: as much as gRPC's.
		space int
		// atOnce: nothing of the last of them waits.
		atOnce bool
		// most is how often it is read at most; 0: as often as need be.
		most int
	}{
		"a start":                           {streams: []stream{{count: readsAtOnce, bytes: message}}, atOnce: true},
		"seldom":                            {streams: []stream{perSecond(5, minute)}, atOnce: true},
		"now and then":                      {streams: []stream{perSecond(20, 10*minute)}, atOnce: true},
		"steadily":                          {streams: []stream{perSecond(40, 10*minute)}, atOnce: true},
		"chatter":                           {streams: []stream{chatter, perSecond(100, minute)}, most: 60 * 15},
		"chatter of many":                   {streams: []stream{chatter, perSecond(500, minute)}, most: 60 * 30},
		"chatter from the beginning":        {streams: []stream{perSecond(100, 10*time.Second)}, most: 10*15 + 2*readsAtOnce},
		"chatter in records":                {streams: []stream{chatter, perSecond(100, minute)}, space: record, most: 60 * 100},
		"bulk in records":                   {streams: []stream{{count: 1000, bytes: space}, {count: 1000, bytes: space}}, space: record, atOnce: true},
		"bulk that is there":                {streams: []stream{{count: 1000, bytes: space}, {count: 1000, bytes: space}}, atOnce: true},
		"a pause":                           {streams: []stream{chatter, {count: 1, every: readEvery + steadyEvery, bytes: message}, perSecond(20, minute)}, atOnce: true},
		"a pause after bulk":                {streams: []stream{chatter, {count: 100, bytes: space}, perSecond(20, minute)}, atOnce: true},
		"now and then where chatter was":    {streams: []stream{chatter, perSecond(20, chatterFor+time.Second), perSecond(20, minute)}, atOnce: true},
		"steadily where chatter was":        {streams: []stream{chatter, perSecond(35, chatterFor+time.Second), perSecond(35, minute)}, atOnce: true},
		"a little of it after a long while": {streams: []stream{chatter, {count: 1, every: time.Hour, bytes: message}, {count: 4, every: time.Millisecond, bytes: message}}, atOnce: true},
	} {
		t.Run(name, func(t *testing.T) {
			var i intake
			_, got := simulate(&i, time.Now(), cmp.Or(tc.space, space), tc.streams...)
			if tc.atOnce && got.waited > 0 {
				t.Errorf("messages waited for %s in all, one for %s", got.waited, got.longest)
			}
			if got.longest > readEvery {
				t.Errorf("a message waited for %s", got.longest)
			}
			if tc.most > 0 && got.reads > tc.most {
				t.Errorf("%d reads, want at most %d", got.reads, tc.most)
			}
		})
	}
}

// Bulk that arrives in parts while a connection rests is held up once at most.
func TestIntakeOfParts(t *testing.T) {
	var i intake
	now, _ := simulate(&i, time.Now(), space, stream{count: 1000, every: 10 * time.Millisecond, bytes: 400})
	if !now.Before(i.chatter) {
		t.Fatal("it does not rest")
	}
	parts := stream{count: 1000, every: time.Millisecond, bytes: bytesPerRead}
	end, got := simulate(&i, now, space, parts)
	if late := end.Sub(now) - 1000*time.Millisecond; late > 0 || got.reads < 1000-int(readEvery/parts.every) {
		t.Errorf("%d parts took %d reads, the last was %s late", parts.count, got.reads, late)
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

// chatters makes a connection one on which much comes until its next read, however late
// a busy machine makes that: it rests.
func chatters(c *wireConn) {
	later := time.Now().Add(time.Hour)
	c.intake, c.drained = intake{spent: readsAtOnce, at: later, chatter: later}, true
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

// counted counts reads.
type counted struct {
	net.Conn
	reads int
}

func (c *counted) Read(b []byte) (int, error) {
	c.reads++
	return c.Conn.Read(b)
}

// secured has both ends speak TLS.
func secured(t *testing.T, near, far net.Conn) (client, server net.Conn) {
	t.Helper()
	pki, err := etcdtest.WritePKI(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(pki.ServerCert, pki.ServerKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Client(near, &tls.Config{InsecureSkipVerify: true}), tls.Server(far, &tls.Config{Certificates: []tls.Certificate{pair}})
}

// Of many messages in a row some are read together, none is lost, and the last comes too,
// whatever is above the connection: of TLS, one read may take a part of what is there.
func TestMessagesAreReadTogether(t *testing.T) {
	for name, layer := range map[string]func(t *testing.T, near, far net.Conn) (net.Conn, net.Conn){
		"plain": func(_ *testing.T, near, far net.Conn) (net.Conn, net.Conn) { return near, far },
		"TLS":   secured,
	} {
		t.Run(name, func(t *testing.T) {
			c, far := connected(t)
			socket := &counted{Conn: c.Conn}
			c.Conn = socket
			near, far := layer(t, c, far)
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
			begin := time.Now()
			got, err := io.ReadAll(near)
			if err != nil {
				t.Error(err)
			}
			took := time.Since(begin)
			chatted := <-done
			if chatted.err != nil || !bytes.Equal(got, chatted.sent) {
				t.Errorf("read %d bytes of %d, %v", len(got), len(chatted.sent), chatted.err)
			}
			// What is there after a rest is one read, or some of what TLS has room for.
			const part, record = 512, 32
			most := 2*readsAtOnce + int(took/steadyEvery) + int(took/readEvery) + len(got)*record/part
			if socket.reads > most {
				t.Errorf("%d reads of %d messages, want at most %d", socket.reads, len(got), most)
			}
		})
	}
}

// While a connection rests the kernel does not tell of what comes, and does again when
// nothing has come.
func TestRestIsQuiet(t *testing.T) {
	for name, comes := range map[string]int{"nothing comes": 0, "a message comes": 1} {
		t.Run(name, func(t *testing.T) {
			c, far := connected(t)
			chatters(c)
			if _, err := far.Write(make([]byte, comes)); err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(time.Minute); comes > 0 && !c.waits(); await(t, time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("nothing arrives")
				}
			}
			began := time.Now()
			if err := c.rest(); err != nil {
				t.Fatal(err)
			}
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
			case <-time.After(time.Minute):
				t.Error("what came later is not heard")
			}
		})
	}
}

// Who closes a connection does not wait for the end of a rest.
func TestCloseEndsTheRest(t *testing.T) {
	c, _ := connected(t)
	chatters(c)
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
	case <-time.After(time.Minute):
		t.Error("the rest goes on")
	}
}

// spoiled is a socket of which some uses fail.
type spoiled struct {
	syscall.RawConn
	// fails says of each use, from the first on, whether it does.
	fails []bool
}

var errSpoiled = errors.New("spoiled")

func (s *spoiled) Control(f func(uintptr)) error {
	fails := len(s.fails) > 0 && s.fails[0]
	s.fails = s.fails[min(1, len(s.fails)):]
	if fails {
		return errSpoiled
	}
	return s.RawConn.Control(f)
}

// Whatever a kernel refuses, who reads hears of what comes, or of the refusal.
func TestRefusalsLeaveNobodyDeaf(t *testing.T) {
	for name, tc := range map[string]struct {
		// fails are the uses of the socket: to tell of no less, to look, to tell of all.
		fails []bool
		want  error
	}{
		"it always tells of all":           {fails: []bool{true}},
		"it cannot be looked":              {fails: []bool{false, true}},
		"it does not tell of all any more": {fails: []bool{false, false, true}, want: errSpoiled},
		"nor can it be looked":             {fails: []bool{false, true, true}, want: errSpoiled},
	} {
		t.Run(name, func(t *testing.T) {
			c, far := connected(t)
			chatters(c)
			c.raw = &spoiled{c.raw, tc.fails}
			heard := make(chan error, 1)
			go func() {
				_, err := c.Read(make([]byte, 1))
				heard <- err
			}()
			if tc.want == nil { // a refusal is heard although nothing comes
				time.Sleep(3 * readEvery) // it waits
				if _, err := far.Write([]byte{1}); err != nil {
					t.Fatal(err)
				}
			}
			select {
			case err := <-heard:
				if !errors.Is(err, tc.want) {
					t.Errorf("read: %v, want %v", err, tc.want)
				}
			case <-time.After(time.Minute):
				t.Error("what came is not heard")
			}
		})
	}
}

// However a connection ends while it rests, or while it waits after a rest, the end is
// heard, and what came before it.
func TestEndsAreHeard(t *testing.T) {
	reset := func(c *net.TCPConn) error { return errors.Join(c.SetLinger(0), c.Close()) }
	for name, tc := range map[string]struct {
		end func(near *wireConn, far *net.TCPConn) error
		// is is what the reader is told; nil: anything.
		is error
	}{
		"closed":       {func(_ *wireConn, far *net.TCPConn) error { return far.Close() }, io.EOF},
		"half-closed":  {func(_ *wireConn, far *net.TCPConn) error { return far.CloseWrite() }, io.EOF},
		"reset":        {func(_ *wireConn, far *net.TCPConn) error { return reset(far) }, nil},
		"no time left": {func(near *wireConn, _ *net.TCPConn) error { return near.SetReadDeadline(time.Now()) }, os.ErrDeadlineExceeded},
	} {
		for when, wait := range map[string]time.Duration{"while it rests": 0, "while it waits": 3 * readEvery} {
			t.Run(name+" "+when, func(t *testing.T) {
				c, far := connected(t)
				chatters(c)
				if _, err := far.Write([]byte{1}); err != nil {
					t.Fatal(err)
				}
				type end struct {
					bytes int
					err   error
				}
				heard := make(chan end, 1)
				go func() {
					var e end
					for buf := make([]byte, 8); e.err == nil; {
						var n int
						n, e.err = c.Read(buf)
						e.bytes += n
					}
					heard <- e
				}()
				time.Sleep(wait)
				if err := tc.end(c, far.(*net.TCPConn)); err != nil {
					t.Fatal(err)
				}
				select {
				case e := <-heard:
					if tc.is != nil && !errors.Is(e.err, tc.is) {
						t.Errorf("the end is %v, want %v", e.err, tc.is)
					}
					if errors.Is(tc.is, io.EOF) && e.bytes != 1 {
						t.Errorf("%d bytes before the end, want 1", e.bytes)
					}
				case <-time.After(time.Minute):
					t.Error("the end is not heard")
				}
			})
		}
	}
}

// A connection with less room than what the kernel is to wait for gets all of a bulk that
// comes while it rests.
func TestLittleRoom(t *testing.T) {
	c, far := connected(t)
	if err := c.Conn.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	chatters(c)
	if err := c.hear(unheard); err != nil {
		t.Fatal(err)
	}
	if got := told(t, c); got < 1 || got >= unheard {
		t.Errorf("the kernel tells of no less than %d bytes, which do not fit", got)
	}
	c.deaf = true
	want := make([]byte, 2*unheard)
	for i := range want {
		want[i] = byte(i % 251)
	}
	sent := make(chan error, 1)
	go func() {
		_, err := far.Write(want)
		sent <- errors.Join(err, far.Close())
	}()
	got, err := io.ReadAll(c)
	if err := errors.Join(err, <-sent); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes of %d: %v", len(got), len(want), err)
	}
}
