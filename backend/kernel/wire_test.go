package kernel

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// fatal is what *testing.T and *rapid.T have in common here.
type fatal interface {
	Fatalf(format string, args ...any)
}

// encoded is one message as it would go out, read back.
func encoded(tb fatal, encode func(*encoder)) message {
	var e encoder
	encode(&e)
	e.end(7)
	m, rest, err := nextMessage(e.b)
	if err != nil || len(rest) != 0 || m.seq != 7 {
		tb.Fatalf("message %+v, rest %x, %v", m, rest, err)
	}
	return m
}

// TestRoundTrip: what is encoded for a put reads back as the same entry, for
// requests and answers have one form.
func TestRoundTrip(t *testing.T) {
	addr := func(t *rapid.T, six bool, name string) netip.Addr {
		n := 4
		if six {
			n = 16
		}
		a, _ := netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, name))
		return a
	}
	rapid.Check(t, func(t *rapid.T) {
		six := rapid.Bool().Draw(t, "six")
		link := rapid.IntRange(1, 1<<31-1).Draw(t, "link")
		dst := addr(t, six, "dst")
		bits := rapid.IntRange(0, dst.BitLen()).Draw(t, "bits")
		lladdr := MAC(rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, "mac"))
		n := &Netlink{}

		r := Route{
			Dst: netip.PrefixFrom(dst, bits).Masked(), Protocol: rapid.IntRange(1, 255).Draw(t, "protocol"),
			Metric: rapid.Map(rapid.Uint32(), func(m uint32) int { return int(m) }).Filter(func(i int) bool { return i != defaultMetric6 }).Draw(t, "metric"),
		}
		if r.Blackhole = rapid.Bool().Draw(t, "blackhole"); !r.Blackhole {
			r.Link = link
			if rapid.Bool().Draw(t, "gateway") {
				r.Gateway, r.OnLink = addr(t, six, "gateway"), rapid.Bool().Draw(t, "onlink")
			}
		}
		if rapid.Bool().Draw(t, "src") {
			r.Src = addr(t, six, "src")
		}
		got, ok, err := parseRoute(encoded(t, func(e *encoder) { encodeRoute(e, unix.RTM_NEWROUTE, 0, r, 0) }))
		same(t, listed{Route: r}, got, ok, err)

		a := Addr{Link: link, Prefix: netip.PrefixFrom(dst, bits)}
		as := n.Addrs(0).(*table[Addr])
		gotAddr, ok, err := as.parse(encoded(t, func(e *encoder) { as.encodePut(e, a) }))
		same(t, a, gotAddr, ok, err)

		nb := Neighbour{Link: link, Addr: dst, MAC: lladdr}
		nbs := n.Neighbours(link).(*table[Neighbour])
		gotNb, ok, err := nbs.parse(encoded(t, func(e *encoder) { nbs.encodePut(e, nb) }))
		same(t, nb, gotNb, ok, err)

		f := FDB{Link: link, MAC: lladdr, Dst: dst}
		fs := n.FDB(link).(*table[FDB])
		gotF, ok, err := fs.parse(encoded(t, func(e *encoder) { fs.encodePut(e, f) }))
		same(t, f, gotF, ok, err)

		h := hop{gateway: dst, link: link, onLink: rapid.Bool().Draw(t, "hop onlink")}
		i := rapid.SampledFrom(Instances()).Draw(t, "instance")
		gotH, ok, err := parseHop(encoded(t, func(e *encoder) {
			encodeHop(e, unix.RTM_NEWNEXTHOP, 0, h.id(i, 0), family(dst))
			e.setHop(h)
		}))
		same(t, object{hop: h, id: h.id(i, 0), protocol: hopProtocol}, gotH, ok, err)
		for _, other := range Instances() {
			if owns := (&hopTable{instance: other}).owns(gotH); owns != (other == i) {
				t.Fatalf("object %d of instance %d is one of instance %d's: %t", gotH.id, i, other, owns)
			}
			if id := h.id(other, 3); uint32(id)>>hopShift != uint32(other.Protocol()) {
				t.Fatalf("number %d of instance %d is out of its range", id, other)
			}
		}
	})
}

func same[E comparable](t *rapid.T, want, got E, ok bool, err error) {
	if err != nil || !ok || got != want {
		t.Fatalf("read back %+v, %v, %v, want %+v", got, ok, err, want)
	}
}

func TestLinkRoundTrip(t *testing.T) {
	for _, want := range []Link{
		{Name: "br0", Type: "bridge", MTU: 1400, TxQueueLen: 500},
		{Name: "flannel.1", Type: "vxlan", MTU: 1450, MAC: MAC{2, 0, 0, 0, 0, 1}, VXLAN: VXLAN{
			VNI: 1<<24 - 1, Port: 8472, Local: netip.MustParseAddr("198.18.0.1"), Uplink: 2, Learning: true, GBP: true,
		}},
		{Name: "flannel-v6.1", Type: "vxlan", VXLAN: VXLAN{VNI: 1, Port: 8472, Local: netip.MustParseAddr("fd00::1")}},
	} {
		got, ok, err := parseLink(encoded(t, func(e *encoder) { encodeNewLink(e, want) }))
		if err != nil || !ok {
			t.Errorf("%s: %v, %v", want.Name, ok, err)
		}
		if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); d != "" {
			t.Errorf("%s (-want +got):\n%s", want.Name, d)
		}
	}
}

func TestNextMessageMalformed(t *testing.T) {
	var e encoder
	e.begin(unix.RTM_NEWLINK, 0, make([]byte, unix.SizeofIfInfomsg))
	e.end(1)
	for name, b := range map[string][]byte{
		"a part of a header":        e.b[:10],
		"a length beyond the end":   e.b[:20],
		"a length below the header": append([]byte{15, 0, 0, 0}, e.b[4:]...),
	} {
		if m, _, err := nextMessage(b); !errors.Is(err, errMalformed) {
			t.Errorf("%s: %+v, %v, want errMalformed", name, m, err)
		}
	}
	if err := eachAttr([]byte{9, 0, 1, 0, 1, 2, 3, 4}, func(uint16, []byte) {}); !errors.Is(err, errMalformed) {
		t.Errorf("an attribute beyond the end: %v, want errMalformed", err)
	}
}

// ack is an NLMSG_ERROR as the kernel sends it.
func ack(seq uint32, code int32, flags uint16, echo []byte, text string) []byte {
	var e encoder
	e.begin(unix.NLMSG_ERROR, 0, append(nativeU32(uint32(-code)), echo...))
	if text != "" {
		e.str(unix.NLMSGERR_ATTR_MSG, text)
		flags |= unix.NLM_F_ACK_TLVS
	}
	e.addFlags(flags)
	e.end(seq)
	return e.b
}

func nativeU32(v uint32) []byte {
	var e encoder
	e.u32(0, int(v))
	return e.b[4:8]
}

func TestStatus(t *testing.T) {
	var request encoder
	request.begin(unix.RTM_NEWROUTE, 0, make([]byte, unix.SizeofRtMsg))
	request.end(1)
	header := request.b[:unix.SizeofNlMsghdr]
	for name, tc := range map[string]struct {
		b    []byte
		want error
	}{
		"acknowledged":             {ack(1, 0, unix.NLM_F_CAPPED, header, ""), nil},
		"refused":                  {ack(1, int32(unix.EPERM), unix.NLM_F_CAPPED, header, ""), &Error{Code: unix.EPERM}},
		"refused, with a reason":   {ack(1, int32(unix.EINVAL), unix.NLM_F_CAPPED, header, "why"), &Error{unix.EINVAL, "why"}},
		"refused, with the echo":   {ack(1, int32(unix.EINVAL), 0, request.b, "why"), &Error{unix.EINVAL, "why"}},
		"refused, with a cut echo": {ack(1, int32(unix.EINVAL), 0, request.b[:4], "why"), &Error{Code: unix.EINVAL}},
	} {
		m, _, err := nextMessage(tc.b)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(tc.want, m.status()); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

func TestErrorIs(t *testing.T) {
	sentinels := []error{ErrNotFound, ErrExists, ErrPermission}
	for code, want := range map[unix.Errno]error{
		unix.ENODEV: ErrNotFound, unix.ENOENT: ErrNotFound, unix.ESRCH: ErrNotFound, unix.EADDRNOTAVAIL: ErrNotFound,
		unix.EEXIST: ErrExists, unix.EPERM: ErrPermission, unix.EACCES: ErrPermission, unix.EROFS: ErrPermission,
		unix.EINVAL: errors.New("none of them"),
	} {
		err := error(&Error{Code: code, Message: "text"})
		for _, s := range sentinels {
			if got := errors.Is(err, s); got != errors.Is(s, want) {
				t.Errorf("%v is %v: %v", err, s, got)
			}
		}
		if !errors.Is(err, code) {
			t.Errorf("%v is not its errno", err)
		}
	}
}

// FuzzParse feeds the parsers what no kernel would send. They must end, not
// panic, and give valid entries only.
func FuzzParse(f *testing.F) {
	n := &Netlink{}
	gw := netip.MustParseAddr("10.5.3.0")
	r := Route{Dst: netip.MustParsePrefix("10.5.3.0/24"), Gateway: gw, Link: 4, OnLink: true}
	for _, encode := range []func(*encoder){
		func(e *encoder) { encodeRoute(e, unix.RTM_NEWROUTE, 0, r, 0) },
		func(e *encoder) { encodeRoute(e, unix.RTM_DELROUTE, 0, r, 5) },
		func(e *encoder) { encodeNewLink(e, Link{Name: "vx", Type: "vxlan", VXLAN: VXLAN{VNI: 1, Port: 8472}}) },
		func(e *encoder) { encodeHop(e, unix.RTM_NEWNEXTHOP, 0, 5, unix.AF_INET) },
		func(e *encoder) { n.FDB(4).(*table[FDB]).encodePut(e, FDB{Link: 4, Dst: gw}) },
		func(e *encoder) { n.Addrs(4).(*table[Addr]).encodePut(e, Addr{4, r.Dst}) },
	} {
		var e encoder
		encode(&e)
		e.end(1)
		f.Add(e.b)
	}
	f.Add(ack(1, 22, unix.NLM_F_CAPPED, make([]byte, unix.SizeofNlMsghdr), "why"))
	f.Fuzz(func(t *testing.T, b []byte) {
		class := newClassifier(nil, nil, nil)
		for len(b) > 0 {
			m, rest, err := nextMessage(b)
			if err != nil {
				return
			}
			if len(rest) >= len(b) || !bytes.HasSuffix(b, rest) {
				t.Fatalf("%d bytes left of %d", len(rest), len(b))
			}
			b = rest
			_ = m.status()
			class.event(m)
			if r, ok, err := parseRoute(m); ok && (err != nil || !r.Dst.IsValid()) {
				t.Errorf("route %+v, %v", r, err)
			}
			if a, ok, err := parseAddr(m); ok && (err != nil || !a.Prefix.IsValid()) {
				t.Errorf("address %+v, %v", a, err)
			}
			for _, parse := range []func(message) (bool, error){
				func(m message) (bool, error) { _, ok, err := parseLink(m); return ok, err },
				func(m message) (bool, error) { _, ok, err := parseNeighbour(m); return ok, err },
				func(m message) (bool, error) { _, ok, err := parseHop(m); return ok, err },
			} {
				if ok, err := parse(m); ok && err != nil {
					t.Errorf("both read and not: %v", err)
				}
			}
		}
	})
}
