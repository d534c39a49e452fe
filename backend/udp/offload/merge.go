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

// Options of a Merger. The zero value joins TCP.
type Options struct {
	UDP     bool // the device takes joined datagrams (USO)
	Packets int  // the most between two calls of Flush; 0: 512
}

// Joined is one packet for the device, which stands for one or several of the
// wire.
type Joined struct {
	Header  Header   // to be put in front
	Parts   [][]byte // the first packet, then payloads; valid until the next one
	Packets int
	Bytes   int // of all parts
}

// Merger joins wire packets. It belongs to one goroutine. Between calls of Flush
// it keeps references to the packets, which must not change but by its own hand.
type Merger struct {
	udp    bool
	pieces []piece // every packet since the last Flush, in order
	joins  []join  // in the order of their first packets
	flows  [maxFlows]flow
	opened int // how many of flows are in use
	victim int // which gives way next
	parts  [MaxParts][]byte
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
	checked     bool   // the first packet's sums were found right
	push        bool
}

// NewMerger allocates all that a Merger ever needs.
func NewMerger(o Options) *Merger {
	if o.Packets == 0 {
		o.Packets = defaultPackets
	}
	return &Merger{udp: o.UDP, pieces: make([]piece, 0, o.Packets), joins: make([]join, 0, o.Packets)}
}

// Add takes one wire packet, whose length must be what its IP header says and
// whose TTL is what its receiver shall see. The packet is lent until Flush has
// ended. It is false if the Merger is full: Flush, and add the packet again.
func (m *Merger) Add(packet []byte) bool {
	if len(m.pieces) == cap(m.pieces) {
		return false
	}
	s := parse(packet)
	if s.proto == protoUDP && !m.udp {
		s.fate = foreign
	}
	switch s.fate {
	case foreign:
		m.begin(packet, s)
	case unclear:
		m.opened = 0
		m.begin(packet, s)
	case alone:
		m.close(m.find(packet, s))
		m.begin(packet, s)
	case joinable:
		i := m.find(packet, s)
		if i >= 0 && m.extend(i, packet, s) {
			break
		}
		m.close(i)
		m.begin(packet, s)
		if !s.push {
			m.open(s.hash)
		}
	}
	return true
}

// begin makes packet a join of its own.
func (m *Merger) begin(packet []byte, s shape) {
	n := int32(len(m.pieces))
	m.pieces = append(m.pieces, piece{data: packet})
	m.joins = append(m.joins, join{first: n, last: n, packets: 1, bytes: int32(len(packet)), shape: s})
	j := &m.joins[len(m.joins)-1]
	if s.fate == joinable {
		j.next = s.seq + uint32(len(packet)-int(s.head))
		if s.v4 {
			j.id = binary.BigEndian.Uint16(packet[4:])
		}
	}
}

// open lets the last join be continued.
func (m *Merger) open(hash uint64) {
	i := m.opened
	if i == maxFlows {
		i, m.victim = m.victim, (m.victim+1)%maxFlows
	} else {
		m.opened++
	}
	m.flows[i] = flow{hash, int32(len(m.joins) - 1)}
}

// close ends what flow i holds open; -1 is none.
func (m *Merger) close(i int) {
	if i >= 0 {
		m.opened--
		m.flows[i] = m.flows[m.opened]
	}
}

// find is the open flow of packet, or -1.
func (m *Merger) find(packet []byte, s shape) int {
	for i := range m.flows[:m.opened] {
		f := &m.flows[i]
		if f.hash == s.hash && sameFlow(m.pieces[m.joins[f.join].first].data, packet, s) {
			return i
		}
	}
	return -1
}

// extend continues the join of flow i with packet. It is false if the two do
// not fit, or if either's sums are wrong: then both go as they came.
func (m *Merger) extend(i int, packet []byte, s shape) bool {
	j := &m.joins[m.flows[i].join]
	first := m.pieces[j.first].data
	size := len(packet) - int(s.head)
	if int(j.bytes)+size > maxPacket || !j.fits(first, packet, s) {
		return false
	}
	if !j.checked && !sound(first, j.shape) || !sound(packet, s) {
		return false
	}
	j.checked = true
	if s.v4 {
		id := binary.BigEndian.Uint16(packet[4:])
		j.step, j.id = id-j.id, id
	}
	n := int32(len(m.pieces))
	m.pieces = append(m.pieces, piece{data: packet[s.head:]})
	m.pieces[j.last].next, j.last = n, n
	j.packets++
	j.bytes += int32(size)
	j.next += uint32(size)
	j.push = s.push
	if s.push || size < len(first)-int(s.head) || j.packets == MaxParts {
		m.close(i)
	}
	return true
}

// fits reports whether packet continues j, as the kernel's GRO would: nothing
// differs that cutting could not bring back.
func (j *join) fits(first, packet []byte, s shape) bool {
	f := j.shape
	if s.head != f.head || s.start != f.start || len(packet) > len(first) {
		return false
	}
	if s.v4 {
		if !j.follows(first, packet) {
			return false
		}
	} else if string(packet[:4]) != string(first[:4]) || packet[7] != first[7] { // class and label, hop limit
		return false
	}
	if s.proto == protoUDP {
		return true
	}
	const flags = 13
	a, b := first[s.start:s.head], packet[s.start:s.head]
	return s.seq == j.next &&
		string(a[8:flags]) == string(b[8:flags]) && // acknowledgement, data offset
		string(a[14:tcpSum]) == string(b[14:tcpSum]) && // window
		string(a[tcpSum+2:]) == string(b[tcpSum+2:]) // urgent pointer, options
}

// follows compares the IPv4 headers: version and TOS, fragment bits, TTL. Of the
// identifications either each follows the last, or, where nobody may fragment
// and so nobody reads them (RFC 6864), all are the same.
func (j *join) follows(first, packet []byte) bool {
	if string(packet[:2]) != string(first[:2]) || string(packet[6:9]) != string(first[6:9]) {
		return false
	}
	be := binary.BigEndian
	step := be.Uint16(packet[4:]) - j.id
	if j.packets > 1 {
		return step == j.step
	}
	return step == 1 || step == 0 && be.Uint16(packet[6:])&dontFragment != 0
}

// Flush yields what was added, joined, each flow in its order. Then the Merger
// is empty. What is not taken because the loop broke off is lost.
func (m *Merger) Flush(yield func(Joined) bool) {
	for i := range m.joins {
		if !yield(m.finish(&m.joins[i])) {
			break
		}
	}
	m.pieces, m.joins, m.opened = m.pieces[:0], m.joins[:0], 0
}

// finish collects the parts of j and makes its first packet's header that of
// all.
func (m *Merger) finish(j *join) Joined {
	at := j.first
	for i := range j.packets {
		m.parts[i] = m.pieces[at].data
		at = m.pieces[at].next
	}
	out := Joined{Parts: m.parts[:j.packets], Packets: int(j.packets), Bytes: int(j.bytes)}
	if j.packets > 1 {
		out.Header = j.seal(m.parts[0])
	}
	return out
}

// seal gives the first packet the joined one's lengths and a partial sum, and
// returns the header that says so.
func (j *join) seal(first []byte) Header {
	be, s := binary.BigEndian, j.shape
	h := Header{Flags: NeedsSum, HeaderLen: s.head, SegmentSize: uint16(len(first)) - s.head, SumStart: s.start}
	total, transport := uint16(j.bytes), first[s.start:]
	if s.v4 {
		be.PutUint16(first[2:], total)
		be.PutUint16(first[10:], 0)
		be.PutUint16(first[10:], ^Sum(0).Add(first[:ipv4Header]).Fold())
	} else {
		be.PutUint16(first[4:], total-ipv6Header)
	}
	length := total - s.start
	partial := pseudo(first, uint16(s.proto)).Add16(length).Fold()
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
