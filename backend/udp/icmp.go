package udp

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// The protocol numbers that matter to ICMP errors.
const (
	protoHopByHop = 0
	protoICMP     = 1
	protoRouting  = 43
	protoFragment = 44
	protoICMPv6   = 58
	protoDestOpts = 60
)

// longestError bounds an ICMP error, quoted packet included, so that it passes
// everywhere unfragmented: 576 bytes for IPv4 (RFC 1812, 4.3.2.3), 1280 for IPv6
// (RFC 4443, 2.4 c).
func longestError(f subnet.Family) int {
	if f == subnet.IPv4 {
		return 576
	}
	return 1280
}

// icmpType is the type and code of an error.
type icmpType struct{ typ, code byte }

// errorFor returns the ICMP error that tells a sender of v; false: v is told to
// nobody.
func errorFor(v Verdict, f subnet.Family) (icmpType, bool) {
	switch v {
	case NoPeer: // net unreachable (RFC 792); no route to destination (RFC 4443)
		return [...]icmpType{{3, 0}, {1, 0}}[f], true
	case TooBig: // fragmentation needed (RFC 1191); packet too big (RFC 4443)
		return [...]icmpType{{3, 4}, {2, 0}}[f], true
	case Expired: // time to live, hop limit exceeded in transit
		return [...]icmpType{{11, 0}, {3, 0}}[f], true
	default:
		return icmpType{}, false
	}
}

// answerable reports whether an ICMP error may be sent about b, which parse
// accepted as h: RFC 1122, 3.2.2, and RFC 4443, 2.4 e. Not about an ICMP error,
// a fragment other than the first, or a packet to many or from nobody in
// particular.
func answerable(b []byte, h header) bool {
	if h.dst.multicast(h.family) || !single(h.src, h.family) {
		return false
	}
	proto, payload, first := upper(b, h.family)
	switch {
	case !first:
		return false
	case proto != protoICMP && proto != protoICMPv6:
		return true
	case len(payload) == 0:
		return false // nobody can say what it is
	case proto == protoICMPv6:
		return payload[0] >= 128 // below are errors
	}
	switch payload[0] {
	case 0, 8, 9, 10, 13, 14, 15, 16, 17, 18: // queries and their answers
		return true
	}
	return false // errors, redirects, and what nobody has defined
}

// single reports whether a names one host that can be answered.
func single(a address, f subnet.Family) bool {
	if a == (address{}) || a.multicast(f) {
		return false
	}
	if f == subnet.IPv4 {
		return a.lo>>24 != 0 && a.lo>>24 != 127 && a.lo>>28 != 0xf
	}
	return a != address{lo: 1}
}

// upper finds the transport protocol of b and its bytes; first is false for
// fragments other than the first, whose transport header is elsewhere.
func upper(b []byte, f subnet.Family) (proto byte, payload []byte, first bool) {
	if f == subnet.IPv4 {
		return b[9], b[int(b[0]&0xf)*4:], binary.BigEndian.Uint16(b[6:])&0x1fff == 0
	}
	proto, payload = b[6], b[ipv6Header:]
	for len(payload) >= 8 {
		size := 8 + 8*int(payload[1])
		switch proto {
		case protoFragment:
			if binary.BigEndian.Uint16(payload[2:])&^7 != 0 {
				return payload[0], nil, false
			}
			size = 8
		case protoHopByHop, protoRouting, protoDestOpts:
		default:
			return proto, payload, true
		}
		proto, payload = payload[0], payload[min(size, len(payload)):]
	}
	return proto, payload, true
}

// putError writes into dst the ICMP error t from src about the packet b, with
// its IP header, and returns the length. Mtu goes into the error's second word
// and is 0 for errors that have none. Dst must hold longestError bytes.
func putError(dst []byte, t icmpType, src netip.Addr, b []byte, h header, mtu uint32) int {
	start := ipv4Header
	if h.family == subnet.IPv6 {
		start = ipv6Header
	}
	be := binary.BigEndian
	icmp := dst[start:longestError(h.family)]
	n := 8 + copy(icmp[8:], b)
	icmp = icmp[:n]
	icmp[0], icmp[1] = t.typ, t.code
	be.PutUint16(icmp[2:], 0)
	be.PutUint32(icmp[4:], mtu)
	var acc uint32
	if h.family == subnet.IPv4 {
		putIPv4(dst, start+n, src, b[12:16])
	} else {
		putIPv6(dst, n, src, b[8:24])
		// The pseudo-header: both addresses, length, protocol.
		acc = sum(dst[8:ipv6Header], uint32(n)+protoICMPv6) //nolint:gosec // a length
	}
	be.PutUint16(icmp[2:], ^fold(sum(icmp, acc)))
	return start + n
}

// Our own packets start with the usual hop count, and IPv4 ones with the
// precedence "internetwork control" (RFC 1812, 4.3.2.5).
const (
	ownHops    = 64
	ownService = 0xc0
)

func putIPv4(dst []byte, length int, src netip.Addr, to []byte) {
	clear(dst[:ipv4Header])
	dst[0], dst[1], dst[8], dst[9] = 0x45, ownService, ownHops, protoICMP
	binary.BigEndian.PutUint16(dst[2:], uint16(length)) //nolint:gosec // at most longestError
	a := src.As4()
	copy(dst[12:], a[:])
	copy(dst[16:20], to)
	binary.BigEndian.PutUint16(dst[10:], ^fold(sum(dst[:ipv4Header], 0)))
}

func putIPv6(dst []byte, payload int, src netip.Addr, to []byte) {
	clear(dst[:8])
	dst[0], dst[6], dst[7] = 0x60, protoICMPv6, ownHops
	binary.BigEndian.PutUint16(dst[4:], uint16(payload)) //nolint:gosec // at most longestError
	a := src.As16()
	copy(dst[8:], a[:])
	copy(dst[24:40], to)
}

// Injector sends whole IP packets of this host to wherever its routes lead.
type Injector interface {
	// Inject sends packet, which it does not keep, to dst.
	Inject(packet []byte, dst netip.Addr) error
}

// answers tells senders why their packets were dropped. It is the slow path:
// what comes here takes a lock. It may be used concurrently.
//
// The errors leave by a raw socket, not through the TUN device. What the kernel
// receives there with one of its own addresses as the source it drops as martian
// unless accept_local is set (measured: so fare flannel's net unreachables); and
// errors about a peer's packets have to be routed anyway.
type answers struct {
	sent, suppressed atomic.Uint64

	mu     sync.Mutex // guards what follows
	out    Injector
	bucket bucket
	buf    [1280]byte
}

// setOut replaces the way out.
func (a *answers) setOut(out Injector) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.out = out
}

// tell answers the sender of b, dropped with verdict v, if v is one to tell, if
// own has an address to speak from, and if the rate allows.
func (a *answers) tell(b []byte, h header, v Verdict, mtu int, own netip.Addr) {
	t, ok := errorFor(v, h.family)
	if !ok || !own.IsValid() || !answerable(b, h) {
		return
	}
	var word uint32
	if v == TooBig {
		word = uint32(mtu) //nolint:gosec // between 68 and 65535
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.bucket.take(time.Now()) {
		a.suppressed.Add(1)
		return
	}
	n := putError(a.buf[:], t, own, b, h, word)
	if err := a.out.Inject(a.buf[:n], h.sender(b)); err != nil {
		a.suppressed.Add(1)
		return
	}
	a.sent.Add(1)
}

// sender is the source address of b.
func (h header) sender(b []byte) netip.Addr {
	from, to := 12, 16
	if h.family == subnet.IPv6 {
		from, to = 8, 24
	}
	a, _ := netip.AddrFromSlice(b[from:to])
	return a
}

// The rate of ICMP errors, as Linux limits its own (icmp_msgs_per_sec,
// icmp_msgs_burst).
const (
	answersPerSecond = 1000
	answersBurst     = 50
)

// bucket is a token bucket. The zero bucket is full.
type bucket struct {
	spent float64
	last  time.Time
}

// take takes a token at the time now, if there is one.
func (k *bucket) take(now time.Time) bool {
	k.spent = max(0, k.spent-answersPerSecond*now.Sub(k.last).Seconds())
	k.last = now
	if k.spent > answersBurst-1 {
		return false
	}
	k.spent++
	return true
}
