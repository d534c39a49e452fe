package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = time.Minute

// ours is a loopback address that nobody else uses.
var ours = netip.MustParseAddr("127.66.20.1")

// serve starts an agent on the loopback interface.
func serve(t *testing.T) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, Options{Socket: socket, Addr: ours}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	c := NewClient(socket)
	end := time.Now().Add(patience)
	for {
		_, err := c.Arrived(t.Context())
		if err == nil {
			return c
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("the agent ended: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
}

// When an agent has ended, its ports are another's.
func TestPortsAreFreeAtTheEnd(t *testing.T) {
	for range 10 {
		t.Run("an agent", func(t *testing.T) { serve(t) })
		sink := netip.AddrPortFrom(ours, sinkPort)
		datagrams, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(sink))
		if err != nil {
			t.Fatal(err)
		}
		streams, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(sink))
		if err := errors.Join(err, datagrams.Close()); err != nil {
			t.Fatal(err)
		}
		streams.Close()
	}
}

// arrived waits until the counters are as wanted.
func arrived(t *testing.T, c *Client, wanted func(Arrived) bool) Arrived {
	t.Helper()
	end := time.Now().Add(patience)
	for {
		a, err := c.Arrived(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if wanted(a) {
			return a
		}
		if time.Now().After(end) {
			t.Fatalf("only %+v arrived", a)
		}
		<-time.After(time.Millisecond)
	}
}

func TestStreams(t *testing.T) {
	c := serve(t)
	if err := c.Streams(t.Context(), Streams{To: ours, Count: 3, For: time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	// How much goes in a while is the machine's affair: these are sent until
	// enough is there.
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Streams(ctx, Streams{To: ours, Count: 3, For: time.Hour}) }()
	defer func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("streams ended with %v", err)
		}
	}()
	a := arrived(t, c, func(a Arrived) bool { return a.Bytes > 3*chunk })
	if a.Datagrams != 0 || a.At <= 0 {
		t.Errorf("got %+v", a)
	}
}

// A stream is sent for as long as it was asked for, or as somebody listens.
func TestStreamsEndWithWhoAsked(t *testing.T) {
	c := serve(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Streams(ctx, Streams{To: ours, Count: 1, For: time.Hour}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
}

func TestDatagrams(t *testing.T) {
	for _, tc := range []struct {
		name       string
		rate       float64
		within     time.Duration
		least, top uint64
	}{
		// Neither loses any: loopback hands each over at once.
		{"at a rate", 2000, 100 * time.Millisecond, 1, 200},
		{"full blast", 0, 20 * time.Millisecond, 32, 1 << 30},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := serve(t)
			d, err := c.Datagrams(t.Context(), Datagrams{To: ours, Size: 100, Rate: tc.rate, For: tc.within})
			if err != nil {
				t.Fatal(err)
			}
			if d.Count < tc.least || d.Count > tc.top || d.Took < tc.within {
				t.Errorf("sent %+v, want %d to %d in %s", d, tc.least, tc.top, tc.within)
			}
			if a := arrived(t, c, func(a Arrived) bool { return a.Datagrams > 0 }); a.Datagrams > d.Count {
				t.Errorf("%d sent, %d arrived", d.Count, a.Datagrams)
			}
		})
	}
}

// A rate that a machine cannot keep up with is caught up with, not exceeded.
func TestRateIsKept(t *testing.T) {
	c := serve(t)
	const rate = 5000
	d, err := c.Datagrams(t.Context(), Datagrams{To: ours, Size: 10, Rate: rate, For: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if d.Rate() > rate {
		t.Errorf("sent %.0f per second, want at most %d", d.Rate(), rate)
	}
}

func TestConnect(t *testing.T) {
	c := serve(t)
	d, err := c.Connect(t.Context(), Connects{To: ours, For: 50 * time.Millisecond})
	if err != nil || d.Count == 0 {
		t.Errorf("got %+v, %v", d, err)
	}
}

// However short the time, there is an answer if there can be one.
func TestPingWithoutTime(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: raw sockets")
	}
	e, err := serve(t).Ping(t.Context(), Pings{To: ours, Every: time.Millisecond, For: time.Nanosecond})
	if err != nil || len(e.RTT) != 1 {
		t.Errorf("got %+v, %v, want one answer", e, err)
	}
}

func TestPing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: raw sockets")
	}
	c := serve(t)
	e, err := c.Ping(t.Context(), Pings{To: ours, Every: time.Millisecond, For: 50 * time.Millisecond})
	if err != nil || len(e.RTT) == 0 || e.Lost > 0 {
		t.Errorf("got %+v, %v", e, err)
	}
	for _, rtt := range e.RTT {
		if rtt <= 0 {
			t.Errorf("round trip of %s", rtt)
		}
	}
}

// What the agent cannot do, it says.
func TestAgentSaysWhy(t *testing.T) {
	c := serve(t)
	_, err := c.Connect(t.Context(), Connects{To: ours.Next(), For: time.Second})
	if !errors.Is(err, ErrAgent) {
		t.Errorf("got %v, want %v", err, ErrAgent)
	}
	_, err = c.Datagrams(t.Context(), Datagrams{To: ours, Size: 1 << 20, For: time.Second})
	if !errors.Is(err, ErrAgent) {
		t.Errorf("got %v, want %v", err, ErrAgent)
	}
}

// The checksum of every request is that of RFC 1071.
func TestEchoPacket(t *testing.T) {
	for seq := range 1 << 16 {
		b := echoPacket(uint16(seq))
		var sum uint32
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		sum = sum>>16 + sum&0xffff
		sum += sum >> 16
		if sum != 0xffff {
			t.Fatalf("request %d sums up to %#x", seq, sum)
		}
	}
}

func TestIsReply(t *testing.T) {
	request := echoPacket(7)
	packet := append(make([]byte, 24), request[:]...)
	packet[0] = 0x46 // a header with options
	reply := func(change func([]byte) []byte) []byte {
		b := append([]byte(nil), packet...)
		b[24] = echoReply
		return change(b)
	}
	same := func(b []byte) []byte { return b }
	for name, tc := range map[string]struct {
		packet []byte
		want   bool
	}{
		"ours":             {reply(same), true},
		"a request":        {packet, false},
		"another's id":     {reply(func(b []byte) []byte { b[28]++; return b }), false},
		"an earlier one":   {reply(func(b []byte) []byte { b[31]--; return b }), false},
		"cut short":        {reply(func(b []byte) []byte { return b[:31] }), false},
		"shorter than IP":  {reply(func(b []byte) []byte { return b[:19] }), false},
		"nothing":          {nil, false},
		"header too short": {reply(func(b []byte) []byte { b[0] = 0x45; return b }), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := isReply(tc.packet, 7); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}
