package lab

import (
	"encoding/binary"
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A series of requests, 10 ms apart, some of them answered: at and after when.
type answer struct {
	n   uint64
	rtt time.Duration
}

func TestPingResult(t *testing.T) {
	const ms = time.Millisecond
	for _, tc := range []struct {
		name    string
		sent    int
		answers []answer
		want    PingResult
	}{
		{"nothing sent", 0, nil, PingResult{}},
		{"all answered", 3, []answer{{0, 3 * ms}, {1, 1 * ms}, {2, 2 * ms}}, PingResult{Sent: 3, Received: 3, Min: ms, Median: 2 * ms, Max: 3 * ms}},
		{"answers twice and out of order", 2, []answer{{1, 2 * ms}, {1, 9 * ms}, {0, ms}}, PingResult{Sent: 2, Received: 2, Min: ms, Median: 2 * ms, Max: 2 * ms}},
		{"one lost between", 3, []answer{{0, ms}, {2, ms}}, PingResult{Sent: 3, Received: 2, Min: ms, Median: ms, Max: ms, Gap: 20 * ms}},
		{"longest of two losses", 8, []answer{{0, ms}, {2, ms}, {3, ms}, {7, ms}}, PingResult{Sent: 8, Received: 4, Min: ms, Median: ms, Max: ms, Gap: 40 * ms}},
		{"first ones lost", 4, []answer{{3, ms}}, PingResult{Sent: 4, Received: 1, Min: ms, Median: ms, Max: ms, Gap: 30 * ms}},
		{"last ones lost", 4, []answer{{0, ms}}, PingResult{Sent: 4, Received: 1, Min: ms, Median: ms, Max: ms, Gap: 30 * ms}},
		{"all lost", 4, nil, PingResult{Sent: 4, Gap: 30 * ms}},
		{"an answer to nothing", 1, []answer{{7, ms}}, PingResult{Sent: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := &Pinging{proto: icmpFor(netip.MustParseAddr("192.0.2.1")), nonce: 7}
			began := time.Now()
			for i := range tc.sent {
				p.sent = append(p.sent, began.Add(time.Duration(i)*10*ms))
				p.rtt = append(p.rtt, 0)
			}
			for _, a := range tc.answers {
				p.record(p.reply(a.n), began.Add(time.Duration(a.n)*10*ms+a.rtt))
			}
			if diff := cmp.Diff(tc.want, p.Since(time.Time{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestPingsSince(t *testing.T) {
	const ms = time.Millisecond
	p := &Pinging{proto: icmpFor(netip.MustParseAddr("192.0.2.1")), nonce: 7}
	began := time.Now()
	for i := range 10 {
		p.sent = append(p.sent, began.Add(time.Duration(i)*10*ms))
		p.rtt = append(p.rtt, 0)
	}
	// Requests 1, 2, 4, 5 and 6 are lost.
	for _, n := range []uint64{0, 3, 7, 8, 9} {
		p.record(p.reply(n), p.sent[n].Add(time.Duration(n+1)*ms))
	}
	for _, tc := range []struct {
		name string
		from time.Duration
		want PingResult
	}{
		{"all", 0, PingResult{Sent: 10, Received: 5, Min: 1 * ms, Median: 8 * ms, Max: 10 * ms, Gap: 40 * ms}},
		{"amid a loss", 45 * ms, PingResult{Sent: 5, Received: 3, Min: 8 * ms, Median: 9 * ms, Max: 10 * ms, Gap: 25 * ms}},
		{"the first is answered", 65 * ms, PingResult{Sent: 3, Received: 3, Min: 8 * ms, Median: 9 * ms, Max: 10 * ms}},
		{"none", time.Hour, PingResult{}},
		{"none any more", 95 * ms, PingResult{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got, want := p.Answered(began.Add(tc.from)), tc.want.Received > 0; got != want {
				t.Errorf("Answered = %t, want %t", got, want)
			}
			if diff := cmp.Diff(tc.want, p.Since(began.Add(tc.from))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestLostAt(t *testing.T) {
	const ms = time.Millisecond
	p := &Pinging{opts: PingOptions{Timeout: 50 * ms}, proto: icmpFor(netip.MustParseAddr("192.0.2.1")), nonce: 7}
	began := time.Now()
	for i := range 5 {
		p.sent = append(p.sent, began.Add(time.Duration(i)*10*ms))
		p.rtt = append(p.rtt, 0)
	}
	// Request 3 is answered late, 1 and 4 never.
	for _, a := range []answer{{0, ms}, {2, 50 * ms}, {3, 5000 * ms}} {
		p.record(p.reply(a.n), p.sent[a.n].Add(a.rtt))
	}
	if diff := cmp.Diff([]time.Time{p.sent[1], p.sent[4]}, p.LostAt()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// reply is what the pinged host makes of request n.
func (p *Pinging) reply(n uint64) []byte {
	b := p.request(n)
	b[0] = p.proto.reply
	return b
}

func TestPingIgnoresWhatIsNotAnAnswer(t *testing.T) {
	p := &Pinging{proto: icmpFor(netip.MustParseAddr("192.0.2.1")), nonce: 7, sent: make([]time.Time, 1), rtt: make([]time.Duration, 1)}
	foreign := p.reply(0)
	binary.BigEndian.PutUint64(foreign[icmpHeader:], 8)
	for name, packet := range map[string][]byte{
		"empty": nil, "short": p.reply(0)[:icmpHeader+15], "a request": p.request(0), "another series": foreign,
	} {
		if p.record(packet, time.Now()) {
			t.Errorf("%s counts as an answer", name)
		}
	}
	if !p.record(p.reply(0), time.Now()) {
		t.Error("an answer does not count")
	}
}

// The checksum's property, RFC 1071: a packet that carries its own sums to zero.
func TestRequestChecksum(t *testing.T) {
	for _, nonce := range []uint64{0, 1, 0xffff_ffff_ffff_ffff, 0x0102_0304_0506_0708} {
		p := &Pinging{proto: icmpFor(netip.MustParseAddr("192.0.2.1")), nonce: nonce}
		for _, n := range []uint64{0, 65535, 65536, 1 << 40} {
			if sum := checksum(p.request(n)); sum != 0 {
				t.Errorf("nonce %x, request %d: sums to %x", nonce, n, sum)
			}
		}
	}
}

// answersGot is how many answers to pings of a family the kernel has handed out in a node.
func answersGot(t *testing.T, n *Node, family int) (got int) {
	t.Helper()
	name := []string{"IcmpInEchoReps", "Icmp6InEchoReplies"}[family]
	out, err := n.Run(t.Context(), "nstat", "-asz", "--json", name)
	if err != nil {
		t.Fatal(err)
	}
	var all struct{ Kernel map[string]int }
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return all.Kernel[name]
}

// An answer that is there when the wait is over, and that nobody had time to read, is
// one: else a busy machine loses the last requests of a series.
func TestAnswersThatNobodyHadTimeToRead(t *testing.T) {
	l := newTestLab(t, 2, "sleep 60")
	from, to := l.Hosts[0], l.Hosts[1]
	for family, addr := range to.Addrs {
		wait := func() {
			t.Helper()
			if err := from.WaitPing(within(t, patience), addr.Addr()); err != nil {
				t.Fatal(err)
			}
		}
		wait() // the links of a new lab need not transmit yet
		o := PingOptions{To: addr.Addr(), Interval: time.Millisecond, Count: 3, Timeout: time.Millisecond}
		p, err := from.openPing(o)
		if err != nil {
			t.Fatal(err)
		}
		defer p.conn.Close()
		before := answersGot(t, from.Node, family)
		p.send(t.Context())
		got := func() (bool, error) { return answersGot(t, from.Node, family) >= before+o.Count, nil }
		if err := poll(within(t, patience), got); err != nil {
			t.Fatal(err)
		}
		p.await(nil)
		if r := p.Since(time.Time{}); r.Sent != 3 || r.Lost() > 0 {
			t.Errorf("family %d: %s, want 3 sent, 0 lost", family, r)
		}
	}
}
