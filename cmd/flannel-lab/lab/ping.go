package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// PingOptions say whom to ping and how. To is needed.
type PingOptions struct {
	To netip.Addr
	// Interval is between requests; 5 ms when zero.
	Interval time.Duration
	// Count is the number of requests; 0: until Stop.
	Count int
	// Timeout is how long the last requests may take; 1 s when zero.
	Timeout time.Duration
}

// PingResult is what became of a series of requests.
type PingResult struct {
	Sent, Received int
	// Min, Median and Max are round-trip times, measured in user space.
	Min, Median, Max time.Duration
	// Gap is the longest time without an answered request, from the last one
	// answered before a loss to the first one after it; 0 when none was lost.
	Gap time.Duration
}

// Lost is the number of requests without an answer.
func (r PingResult) Lost() int { return r.Sent - r.Received }

// icmp are the numbers of ICMP for one family (RFC 792, RFC 4443).
type icmp struct {
	network        string
	any            netip.Addr
	request, reply byte
	// raw: packets are read with their IP header, and the checksum is ours to
	// compute. The kernel does it for ICMPv6, which covers a pseudo header.
	raw bool
}

func icmpFor(a netip.Addr) icmp {
	if a.Is4() {
		return icmp{network: "ip4:icmp", any: netip.IPv4Unspecified(), request: 8, reply: 0, raw: true}
	}
	return icmp{network: "ip6:ipv6-icmp", any: netip.IPv6Unspecified(), request: 128, reply: 129}
}

// The payload: a nonce that tells our series from others, and the request's
// number, which unlike ICMP's own does not wrap.
const (
	icmpHeader  = 8
	payloadSize = 56
)

// Pinging is a series of requests under way.
type Pinging struct {
	opts  PingOptions
	proto icmp
	conn  *net.IPConn
	nonce uint64
	stop  context.CancelFunc
	done  chan struct{}

	mu   sync.Mutex
	sent []time.Time
	rtt  []time.Duration // by request; 0: not answered
	got  int
}

// Ping sends Count requests and waits for the answers. Loss is no error.
func (n *Node) Ping(ctx context.Context, o PingOptions) (PingResult, error) {
	if o.Count < 1 {
		return PingResult{}, fmt.Errorf("ping %s: count: %d: must be at least 1", o.To, o.Count)
	}
	p, err := n.StartPing(ctx, o)
	if err != nil {
		return PingResult{}, err
	}
	<-p.done
	return p.Since(time.Time{}), ctx.Err()
}

// StartPing begins a series that lasts until its count, Stop or the end of ctx.
func (n *Node) StartPing(ctx context.Context, o PingOptions) (*Pinging, error) {
	p, err := n.openPing(o)
	if err != nil {
		return nil, fmt.Errorf("ping %s from %s: %w", o.To, n.Name, err)
	}
	ctx, p.stop = context.WithCancel(ctx)
	answered := make(chan struct{}, 1)
	received := make(chan struct{})
	go func() {
		defer close(received)
		p.receive(answered)
	}()
	go func() {
		defer close(p.done)
		defer p.stop()
		p.send(ctx)
		p.await(answered)
		_ = p.conn.Close() // ends receive
		<-received
	}()
	return p, nil
}

// openPing opens the socket of a series.
func (n *Node) openPing(o PingOptions) (*Pinging, error) {
	if o.Interval == 0 {
		o.Interval = 5 * time.Millisecond
	}
	if o.Timeout == 0 {
		o.Timeout = time.Second
	}
	p := &Pinging{opts: o, proto: icmpFor(o.To), nonce: rand.Uint64(), done: make(chan struct{})}
	err := n.Do(func() error {
		var err error
		p.conn, err = net.ListenIP(p.proto.network, &net.IPAddr{IP: p.proto.any.AsSlice()})
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := holdAnswers(p.conn); err != nil {
		return nil, errors.Join(err, p.conn.Close())
	}
	return p, nil
}

// answersHeld is the size of a series' receive buffer, in bytes as the kernel
// counts them: the socket gets all of its namespace's ICMP packets, and those of
// several seconds must wait there for a reader whom a busy machine gives no time.
const answersHeld = 8 << 20

// holdAnswers gives a socket that buffer.
func holdAnswers(conn *net.IPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var refused error
	err = raw.Control(func(fd uintptr) {
		refused = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, answersHeld)
	})
	return errors.Join(err, refused)
}

// Stop ends the series, waits for the last answers and returns the result.
func (p *Pinging) Stop() PingResult {
	p.stop()
	<-p.done
	return p.Since(time.Time{})
}

// Answered reports whether a request that was sent at or after a time has its answer.
// It may be called at any time.
func (p *Pinging) Answered(from time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := len(p.sent) - 1; i >= 0 && !p.sent[i].Before(from); i-- {
		if p.rtt[i] != 0 {
			return true
		}
	}
	return false
}

// LostAt returns when the requests were sent that were not answered. It is called
// after Stop. An answer that came late is one: on a busy machine it may be only
// its reader who was late.
func (p *Pinging) LostAt() []time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	var lost []time.Time
	for i, rtt := range p.rtt {
		if rtt == 0 {
			lost = append(lost, p.sent[i])
		}
	}
	return lost
}

// WaitPing pings until the first answer.
func (n *Node) WaitPing(ctx context.Context, to netip.Addr) error {
	for {
		r, err := n.Ping(ctx, PingOptions{To: to, Count: 1, Timeout: 50 * time.Millisecond})
		if r.Received > 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s waits for an answer of %s: %w", n.Name, to, err)
		}
	}
}

func (p *Pinging) send(ctx context.Context) {
	tick := time.NewTicker(p.opts.Interval)
	defer tick.Stop()
	to := &net.IPAddr{IP: p.opts.To.AsSlice(), Zone: p.opts.To.Zone()}
	for n := 0; p.opts.Count == 0 || n < p.opts.Count; n++ {
		packet := p.request(uint64(n))
		p.mu.Lock()
		p.sent = append(p.sent, time.Now())
		p.rtt = append(p.rtt, 0)
		p.mu.Unlock()
		// A request that the kernel refuses (no route, say) is a lost one.
		_, _ = p.conn.WriteTo(packet, to)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// request builds echo request n.
func (p *Pinging) request(n uint64) []byte {
	b := make([]byte, icmpHeader+payloadSize)
	b[0] = p.proto.request
	binary.BigEndian.PutUint16(b[4:], uint16(p.nonce))
	binary.BigEndian.PutUint16(b[6:], uint16(n))
	binary.BigEndian.PutUint64(b[icmpHeader:], p.nonce)
	binary.BigEndian.PutUint64(b[icmpHeader+8:], n)
	if p.proto.raw {
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	return b
}

// checksum is the Internet checksum of RFC 1071 over an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	sum = sum>>16 + sum&0xffff
	sum += sum >> 16
	return ^uint16(sum)
}

// receive records answers until the socket is closed.
func (p *Pinging) receive(answered chan<- struct{}) {
	buf := make([]byte, 2048)
	for {
		// Unlike Read, ReadFrom strips the IPv4 header.
		size, _, err := p.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		if !p.record(buf[:size], time.Now()) {
			continue
		}
		select {
		case answered <- struct{}{}:
		default:
		}
	}
}

// record notes an answer to one of our requests. A second answer to the same
// request is not counted.
func (p *Pinging) record(b []byte, now time.Time) bool {
	if len(b) < icmpHeader+16 || b[0] != p.proto.reply || binary.BigEndian.Uint64(b[icmpHeader:]) != p.nonce {
		return false
	}
	n := binary.BigEndian.Uint64(b[icmpHeader+8:])
	p.mu.Lock()
	defer p.mu.Unlock()
	if n >= uint64(len(p.sent)) || p.rtt[n] != 0 {
		return false
	}
	p.rtt[n] = max(1, now.Sub(p.sent[n]))
	p.got++
	return true
}

// await waits for the answers that are still missing.
func (p *Pinging) await(answered <-chan struct{}) {
	late := time.NewTimer(p.opts.Timeout)
	defer late.Stop()
	for {
		p.mu.Lock()
		complete := p.got == len(p.sent)
		p.mu.Unlock()
		if complete {
			return
		}
		select {
		case <-answered:
		case <-late.C:
			p.drain()
			return
		}
	}
}

// drain takes the answers that the socket holds. Where a machine has given this
// process no time, the timer is over before their reader had a chance, and those to
// the last requests of a series would count as lost.
func (p *Pinging) drain() {
	raw, err := p.conn.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 2048)
	_ = raw.Control(func(fd uintptr) {
		for {
			size, _, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
			switch {
			case errors.Is(err, unix.EINTR):
			case err != nil:
				return
			default:
				p.record(p.proto.packet(buf[:size]), time.Now())
			}
		}
	})
}

// packet returns what a socket read without its IP header.
func (i icmp) packet(b []byte) []byte {
	if !i.raw || len(b) == 0 {
		return b
	}
	const words = 4 // the header's length is counted in them, RFC 791
	return b[min(len(b), int(b[0]&0x0f)*words):]
}

// Since is what became of the requests sent at or after a time, and of none before
// them: a gap begins there at the earliest. It is called after Stop.
func (p *Pinging) Since(from time.Time) PingResult {
	p.mu.Lock()
	defer p.mu.Unlock()
	var r PingResult
	var answered []time.Duration
	last := from  // when the last answered request was sent
	lost := false // since last
	for i, rtt := range p.rtt {
		if p.sent[i].Before(from) {
			continue
		}
		r.Sent++
		if last.IsZero() {
			last = p.sent[i]
		}
		if rtt == 0 {
			lost = true
			r.Gap = max(r.Gap, p.sent[i].Sub(last))
			continue
		}
		if lost {
			r.Gap = max(r.Gap, p.sent[i].Sub(last))
		}
		answered = append(answered, rtt)
		last, lost = p.sent[i], false
	}
	r.Received = len(answered)
	if len(answered) > 0 {
		slices.Sort(answered)
		r.Min, r.Median, r.Max = answered[0], answered[len(answered)/2], answered[len(answered)-1]
	}
	return r
}

// String reads as "200 sent, 3 lost, longest gap 25ms".
func (r PingResult) String() string {
	s := fmt.Sprintf("%d sent, %d lost", r.Sent, r.Lost())
	if r.Lost() > 0 {
		s += ", longest gap " + r.Gap.String()
	}
	return s
}
