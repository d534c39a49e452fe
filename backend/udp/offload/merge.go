package offload

import "encoding/binary"

// MaxParts bounds Joined.Parts, and so the packets of a join: the kernel takes
// no more datagrams in one (UDP_MAX_SEGMENTS was 64 before Linux 6.9).
const MaxParts = 64

const (
	// maxFlows is how many flows may have an open join at a time. One more
	// closes another's.
	maxFlows = 16
	// defaultPackets is Options.Packets if that is zero: eight times what
	// UDP_GRO hands over at once.
	defaultPackets = 512
)

// Protocols are those whose packets are joined.
type Protocols struct{ TCP, UDP bool }

// Options of a Merger.
type Options struct {
	Protocols
	Packets int // the most between two calls of Flush; 0: 512
}

// Joined is one packet for the device, which stands for one or several of the
// wire. It is valid until the next one.
type Joined struct {
	Header  Header   // to be put in front
	Parts   [][]byte // the first packet, then payloads
	Packets int
	Bytes   int // of all parts
}

// Merger joins wire packets. It belongs to one goroutine. Between calls of Flush
// it keeps references to the packets, which must not change but by its own hand.
type Merger struct {
	only   Protocols
	pieces []piece // the first taken ones are every packet since the last Flush, in order
	taken  int
	joins  []join // the first begun ones, in the order of their first packets
	begun  int
	flows  [maxFlows]flow // the first opened ones
	opened int
	victim int // which flow gives way next
	latest int // the flow that the last packet opened or continued, -1 without one
	parts  [MaxParts][]byte
	joined Joined // what Flush yields
}

// piece is one wire packet's part of a join.
type piece struct {
	data []byte
	next int32 // the next of the same join, if there is one
}

// flow is an open join, which the next packet of its flow may continue.
type flow struct {
	hash uint64
	join int32
}

// join is one packet for the device in the making.
type join struct {
	first, last int32 // pieces
	packets     int32
	bytes       int32 // the joined packet's length
	shape       shape // of the first packet
	next        uint32
	id          uint16 // IPv4 identification of the last packet
	step        uint16 // by which identifications grow, once packets is 2
	pseudo      Sum    // of the flow, once the first packet's sums were found right; then not zero
	push        bool
}

// NewMerger allocates all that a Merger ever needs.
func NewMerger(o Options) *Merger {
	if o.Packets == 0 {
		o.Packets = defaultPackets
	}
	return &Merger{only: o.Protocols, pieces: make([]piece, o.Packets), joins: make([]join, o.Packets), latest: -1}
}

// Join says what is joined from now on. It is called before the first Add after a Flush.
func (m *Merger) Join(only Protocols) { m.only = only }

// Add takes one wire packet, whose length must be what its IP header says and
// whose TTL is what its receiver shall see. The packet is lent until Flush has
// ended. It is false if the Merger is full: Flush, and add the packet again.
func (m *Merger) Add(packet []byte) bool {
	if m.taken == len(m.pieces) {
		return false
	}
	m.latest = -1
	s := &m.joins[m.begun].shape // there are no more joins than packets
	if m.only == (Protocols{}) {
		s.fate = foreign // all of them, in their order
	} else if s.parse(packet); s.proto == protoUDP && !m.only.UDP || s.proto == protoTCP && !m.only.TCP {
		s.fate = foreign
	}
	switch s.fate {
	case foreign:
	case unclear:
		m.opened = 0
	case alone:
		m.close(m.find(packet, s))
	case joinable:
		i := m.find(packet, s)
		if i >= 0 && m.extend(i, packet, s, 0) {
			return true
		}
		m.close(i)
		if !s.push {
			m.open(s.hash)
		}
	}
	m.begin(packet)
	return true
}

// Continue takes packets from the front of train, where they stand one after the other,
// each of size bytes but for a shorter last one, while each continues what Add took last:
// the next of its flow, to be joined to it. It is what Add would do with them, in less
// time. Their TTL is as it came, one more than the one that their receiver sees. It
// returns how many bytes it took; they are lent as those of Add are.
func (m *Merger) Continue(train []byte, size int) int {
	taken := 0
	for m.latest >= 0 && taken < len(train) && m.taken < len(m.pieces) {
		packet := train[taken:min(taken+size, len(train))]
		i := m.latest
		j := &m.joins[m.flows[i].join]
		s := j.shape // start, head, proto and v4 are alike
		if !s.reparse(packet) || !sameFlow(m.pieces[j.first].data, packet, &s) || !m.extend(i, packet, &s, 1) {
			break
		}
		taken += len(packet)
	}
	return taken
}

// take notes data, which is all or the payload of the next packet.
func (m *Merger) take(data []byte) int32 {
	n := m.taken
	m.pieces[n].data = data
	m.taken++
	return int32(n)
}

// begin makes packet, whose shape stands there already, a join of its own.
func (m *Merger) begin(packet []byte) {
	j, n := &m.joins[m.begun], m.take(packet)
	m.begun++
	j.first, j.last, j.packets, j.bytes, j.pseudo = n, n, 1, int32(len(packet)), 0
	if j.shape.fate != joinable {
		return
	}
	j.next, j.push = j.shape.seq+uint32(len(packet)-int(j.shape.head)), false
	if j.shape.v4 {
		j.id = binary.BigEndian.Uint16(packet[4:])
	}
}

// open lets the join that begins now be continued.
func (m *Merger) open(hash uint64) {
	i := m.opened
	if i == maxFlows {
		i, m.victim = m.victim, (m.victim+1)%maxFlows
	} else {
		m.opened++
	}
	m.flows[i] = flow{hash, int32(m.begun)}
	m.latest = i
}

// close ends what flow i holds open; -1 is none.
func (m *Merger) close(i int) {
	if i >= 0 {
		m.opened--
		m.flows[i] = m.flows[m.opened]
		m.latest = -1 // that flow, or one that stands elsewhere now
	}
}

// find is the open flow of packet, or -1.
func (m *Merger) find(packet []byte, s *shape) int {
	for i := range m.flows[:m.opened] {
		f := &m.flows[i]
		if f.hash == s.hash && sameFlow(m.pieces[m.joins[f.join].first].data, packet, s) {
			return i
		}
	}
	return -1
}

// extend continues the join of flow i with packet, whose TTL is by hops more than what
// its receiver sees. It is false if the two do not fit, or if either's sums are wrong:
// then both go as they came.
func (m *Merger) extend(i int, packet []byte, s *shape, hops int) bool {
	j := &m.joins[m.flows[i].join]
	first := m.pieces[j.first].data
	size := len(packet) - int(s.head)
	if int(j.bytes)+size > maxPacket || !j.fits(first, packet, s, hops) {
		return false
	}
	if j.pseudo == 0 {
		sum := pseudo(first, uint16(s.proto))
		if !sound(first, s, sum) {
			return false
		}
		j.pseudo = sum
	}
	if !sound(packet, s, j.pseudo) {
		return false
	}
	if s.v4 {
		id := binary.BigEndian.Uint16(packet[4:])
		j.step, j.id = id-j.id, id
	}
	n := m.take(packet[s.head:])
	m.pieces[j.last].next, j.last = n, n
	j.packets++
	j.bytes += int32(size)
	j.next += uint32(size)
	j.push = s.push
	m.latest = i
	if s.push || size < len(first)-int(s.head) || j.packets == MaxParts {
		m.close(i)
	}
	return true
}

// fits reports whether packet, with a TTL as extend takes it, continues j, as the
// kernel's GRO would: nothing differs that cutting could not bring back.
func (j *join) fits(first, packet []byte, s *shape, hops int) bool {
	if s.seq != j.next && s.proto == protoTCP || len(packet) > len(first) {
		return false
	}
	le := binary.LittleEndian
	if s.v4 {
		if !j.follows(first, packet, hops) {
			return false
		}
	} else if le.Uint32(packet) != le.Uint32(first) || int(packet[7]) != int(first[7])+hops { // class and label, hop limit
		return false
	}
	if s.proto == protoUDP {
		return true
	}
	a, b := first[s.start:s.head], packet[s.start:s.head]
	if len(a) < tcpHeader || len(b) < tcpHeader {
		return false // never, but the compiler does not know
	}
	// Bytes 8 to 15 are acknowledgement, data offset, flags and window; then
	// there are the urgent pointer and options.
	const push = flagPSH << (8 * 5)
	return (le.Uint64(a[8:])^le.Uint64(b[8:]))&^push == 0 && le.Uint16(a[18:]) == le.Uint16(b[18:]) &&
		string(a[tcpHeader:]) == string(b[tcpHeader:])
}

// follows compares the IPv4 headers: version and TOS, fragment bits, TTL and
// protocol. Of the identifications either each follows the last, or, where
// nobody may fragment and so nobody reads them (RFC 6864), all are the same.
func (j *join) follows(first, packet []byte, hops int) bool {
	be, a, b := binary.BigEndian, first[:ipv4Header], packet[:ipv4Header]
	if be.Uint16(a) != be.Uint16(b) || be.Uint16(a[6:]) != be.Uint16(b[6:]) || int(a[8])+hops != int(b[8]) || a[9] != b[9] {
		return false
	}
	step := be.Uint16(b[4:]) - j.id
	if j.packets > 1 {
		return step == j.step
	}
	return step == 1 || step == 0 && be.Uint16(b[6:])&dontFragment != 0
}

// Flush yields what was added, joined, each flow in its order: range over
// m.Flush. Then the Merger is empty. What is not taken because the loop broke
// off is lost.
func (m *Merger) Flush(yield func(*Joined) bool) {
	for i := range m.begun {
		if !yield(m.finish(&m.joins[i])) {
			break
		}
	}
	m.taken, m.begun, m.opened, m.latest = 0, 0, 0, -1
}

// finish collects the parts of j and makes its first packet's header that of
// all.
func (m *Merger) finish(j *join) *Joined {
	at := j.first
	for i := range j.packets {
		m.parts[i] = m.pieces[at].data
		at = m.pieces[at].next
	}
	out := &m.joined
	out.Header, out.Parts, out.Packets, out.Bytes = Header{}, m.parts[:j.packets], int(j.packets), int(j.bytes)
	if j.packets > 1 {
		out.Header = j.seal(m.parts[0])
	}
	return out
}

// seal gives the first packet the joined one's lengths and a partial sum, and
// returns the header that says so.
func (j *join) seal(first []byte) Header {
	be, s := binary.BigEndian, &j.shape
	h := Header{Flags: NeedsSum, HeaderLen: s.head, SegmentSize: uint16(len(first)) - s.head, SumStart: s.start}
	total, transport := uint16(j.bytes), first[s.start:]
	if s.v4 {
		be.PutUint16(first[2:], total)
		be.PutUint16(first[10:], 0)
		be.PutUint16(first[10:], ^sumIPv4(first).Fold())
	} else {
		be.PutUint16(first[4:], total-ipv6Header)
	}
	length := total - s.start
	partial := j.pseudo.Add16(length).Fold()
	switch {
	case s.proto == protoUDP:
		h.GSO, h.SumOffset = UDP, udpSum
		be.PutUint16(transport[4:], length)
	case s.v4:
		h.GSO, h.SumOffset = TCP4, tcpSum
	default:
		h.GSO, h.SumOffset = TCP6, tcpSum
	}
	if j.push {
		transport[13] |= flagPSH
	}
	be.PutUint16(transport[h.SumOffset:], partial)
	return h
}
