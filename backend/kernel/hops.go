package kernel

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Nexthop objects (RTM_NEWNEXTHOP, Linux 5.3) hold a gateway and a link under a
// number, and routes refer to the number. They spare the kernel a search through
// all routes of a device for each new one.
//
// An object is named by what it holds: its number is a hash of gateway and link,
// moved on while another object stands there. So a restarted daemon finds its
// own without remembering, two routes through one gateway share one, and an
// object is never changed: whoever asks the kernel what stands under the number
// knows whether it is the right one.
//
//	route A --\
//	           >-- 2650800128 + hash: via 10.5.3.0 dev 4 onlink
//	route B --/
//
// That number is also how an object is known to be ours. Its protocol is the
// kernel's, not [Protocol]: when systemd-networkd starts it deletes all nexthop
// objects of its links that it did not make, and the routes through them go along;
// only those of the kernel it leaves, and no setting changes that before 256. The
// kernel makes none by itself. Each [Instance] has a range of numbers of its own: two of
// them never share an object, which one would delete under the other's routes.
//
// The kernel deletes the routes through an object that is deleted. Which routes
// refer to which object is therefore counted from complete dumps, and an object
// is deleted only after the last route.

// hop is what a nexthop object holds.
type hop struct {
	gateway netip.Addr
	link    int
	onLink  bool
}

const (
	// hopShift and hopSpace bound our numbers: they begin at the protocol number,
	// shifted. Others count from 1.
	hopShift = 24
	hopSpace = 1 << hopShift
	// hopProbes is how many numbers are tried for one hop.
	hopProbes = 16
	// hopProtocol is the protocol of our objects.
	hopProtocol = unix.RTPROT_KERNEL
	// spareRoutes is for how many more routes than before a list has room.
	spareRoutes = 64
	// sizeofNhmsg is the fixed header of nexthop messages (struct nhmsg):
	// family, scope, protocol, reserved, flags u32.
	sizeofNhmsg = 8
	// flag bits of nhmsg start here.
	hopFlags = 4
)

// id is the number that an instance gives the hop at a probe, counted from 0.
func (h hop) id(i Instance, probe int) int {
	sum := fnv.New32a()
	b := h.gateway.As16()
	_, _ = sum.Write(b[:]) // a hash does not fail
	_, _ = sum.Write(binary.BigEndian.AppendUint32(nil, uint32(h.link)))
	if h.onLink {
		_, _ = sum.Write([]byte{1})
	}
	// In 32 bits: where an int has no more, the number wraps to a negative one
	// and back on its way to the kernel.
	return int(uint32(i.Protocol())<<hopShift + (sum.Sum32()+uint32(probe))%hopSpace) //nolint:gosec // a protocol has 8 bits
}

// names reports whether an object that holds h has the number for it that an instance
// gives.
func (h hop) names(i Instance, id int) bool {
	for probe := range hopProbes + 1 {
		if h.id(i, probe) == id {
			return true
		}
	}
	return false
}

// hopOf is the hop of a route that can go through a nexthop object.
func hopOf(r Route) (hop, bool) {
	return hop{r.Gateway, r.Link, r.OnLink}, r.Gateway.IsValid() && r.Link != 0 && !r.Blackhole
}

// hopTable is what is known of nexthop objects.
type hopTable struct {
	// instance is who we are.
	instance Instance
	// probed says that unsupported is known: why objects cannot be used, or
	// nil.
	probed      bool
	unsupported error
	// loaded says that held is complete: it was read after the last doubt.
	loaded bool
	// held are our own objects.
	held map[int]hop
	// route says which object a route goes through, refs how many routes go
	// through an object. Both are renewed by each dump of the routes.
	route map[RouteKey]int
	refs  map[int]int
	// orphans are objects that may have lost their last route.
	orphans map[int]bool
}

// NexthopObjects says whether routes through a gateway are written with nexthop
// objects: nil, or an *UnsupportedError. Any other error is no answer, and the
// next call asks again.
func (n *Netlink) NexthopObjects(ctx context.Context) error {
	return n.use(ctx, func(c *conn) error { return n.probeHops(ctx, c) })
}

func (n *Netlink) probeHops(ctx context.Context, c *conn) error {
	if n.gates == GatewayClassic {
		return &UnsupportedError{Feature: "nexthop objects (turned off)", MinKernel: "5.3"}
	}
	if n.hops.probed {
		return n.hops.unsupported
	}
	// The last number there is: nobody has it, and a kernel that knows
	// nexthop objects says so.
	absent := uint32(math.MaxUint32)
	err := c.one(ctx, func(e *encoder) { encodeHop(e, unix.RTM_GETNEXTHOP, 0, int(absent), unix.AF_UNSPEC) }, nil)
	switch {
	case err == nil, code(err) == unix.ENOENT:
		err = nil
	case code(err) == unix.EOPNOTSUPP:
		err = &UnsupportedError{Feature: "nexthop objects", MinKernel: "5.3"}
	default:
		return fmt.Errorf("probe nexthop objects: %w", err)
	}
	n.hops.probed, n.hops.unsupported = true, err
	return err
}

// hopIDs are the nexthop objects for the routes of one Put; nil: none.
type hopIDs []int

func (ids hopIDs) of(i int) int {
	if ids == nil {
		return 0
	}
	return ids[i]
}

// nexthops ensures that there is an object for each route that can use one. What
// the kernel refuses is added to bad for all routes concerned.
func (n *Netlink) nexthops(ctx context.Context, c *conn, routes []Route, bad *errorList) (hopIDs, error) {
	got := map[hop]ensured{}
	var wanted []hop
	for _, r := range routes {
		if h, ok := hopOf(r); ok {
			if _, again := got[h]; !again {
				wanted = append(wanted, h)
				got[h] = ensured{}
			}
		}
	}
	if len(wanted) == 0 {
		return nil, nil
	}
	// Without an answer, as without support: the form that works everywhere.
	if err := n.probeHops(ctx, c); err != nil {
		return nil, ctx.Err()
	}
	n.hops.ensure(ctx, c, wanted, got)
	ids := make(hopIDs, len(routes))
	for i, r := range routes {
		if h, ok := hopOf(r); ok {
			ids[i] = got[h].id
			if err := got[h].err; err != nil {
				bad.add(i, err)
			}
		}
	}
	return ids, nil
}

// ensured is the number of a hop's object, or why there is none.
type ensured struct {
	id  int
	err error
}

// ensure fills out, creating objects where they are missing. It trusts no memory: an object
// dies silently with its link, so each is created anew, and one that exists is
// read and compared.
func (t *hopTable) ensure(ctx context.Context, c *conn, wanted []hop, out map[hop]ensured) {
	for probe := 0; len(wanted) > 0; probe++ {
		taken := t.create(ctx, c, wanted, probe, out)
		if len(taken) == 0 {
			break
		}
		wanted = t.compare(ctx, c, taken, probe, out)
		if probe == hopProbes {
			for _, h := range wanted {
				out[h] = ensured{err: fmt.Errorf("nexthop numbers %d to %d are taken", h.id(t.instance, 0), h.id(t.instance, probe))}
			}
			break
		}
	}
	for h, got := range out {
		if got.err == nil {
			t.held[got.id] = h
		}
	}
}

// create makes the objects and returns the hops whose numbers are taken.
func (t *hopTable) create(ctx context.Context, c *conn, wanted []hop, probe int, out map[hop]ensured) []hop {
	failed, sent, err := c.do(ctx, requests{
		n: len(wanted),
		encode: func(e *encoder, i int) {
			h := wanted[i]
			encodeHop(e, unix.RTM_NEWNEXTHOP, unix.NLM_F_CREATE|unix.NLM_F_EXCL, h.id(t.instance, probe), family(h.gateway))
			e.setHop(h)
		},
	})
	for i, h := range wanted {
		out[h] = ensured{id: h.id(t.instance, probe)}
		if i >= sent {
			out[h] = ensured{err: err}
		}
	}
	var taken []hop
	for _, f := range failed {
		if h := wanted[f.i]; code(f.err) == unix.EEXIST {
			taken = append(taken, h)
		} else {
			out[h] = ensured{err: f.err}
		}
	}
	return taken
}

// compare reads the objects under the hops' numbers and returns the hops that
// are not what stands there.
func (t *hopTable) compare(ctx context.Context, c *conn, taken []hop, probe int, out map[hop]ensured) []hop {
	same := make([]bool, len(taken))
	failed, sent, err := c.do(ctx, requests{
		n: len(taken),
		encode: func(e *encoder, i int) {
			encodeHop(e, unix.RTM_GETNEXTHOP, 0, taken[i].id(t.instance, probe), unix.AF_UNSPEC)
		},
		reply: func(i int, m message) {
			o, ok, err := parseHop(m)
			same[i] = err == nil && ok && t.owns(o) && o.hop == taken[i]
		},
	})
	for _, f := range failed {
		out[taken[f.i]] = ensured{err: f.err}
		same[f.i] = true
	}
	var others []hop
	for i, h := range taken {
		switch {
		case i >= sent:
			out[h] = ensured{err: err}
		case !same[i]:
			others = append(others, h)
		}
	}
	return others
}

// readRoutes dumps the routes and counts who refers to what. There are as many as last
// time, as a rule. The list is not kept: it is made rarely, and is large.
func (t *hopTable) readRoutes(ctx context.Context, c *conn) ([]listed, error) {
	all, err := list(ctx, c, make([]listed, 0, len(t.route)+spareRoutes), []dump{encodeRouteDump(unix.AF_INET), encodeRouteDump(unix.AF_INET6)}, parseRoute)
	if err != nil {
		return nil, err
	}
	if err := t.resolve(ctx, c, all); err != nil {
		return nil, err
	}
	if t.route == nil {
		t.route, t.refs = make(map[RouteKey]int), make(map[int]int)
	}
	clear(t.route)
	clear(t.refs)
	out := all[:0]
	for _, r := range all {
		if r.nhid != 0 {
			t.route[r.Key()] = r.nhid
			t.refs[r.nhid]++
		}
		if r.Protocol != unix.RTPROT_KERNEL {
			out = append(out, r)
		}
	}
	return out, nil
}

// resolve fills in the gateways that the kernel left out: with
// net.ipv4.nexthop_compat_mode off it gives only the object's number.
func (t *hopTable) resolve(ctx context.Context, c *conn, all []listed) error {
	var objects map[int]hop
	for i, r := range all {
		if r.nhid == 0 || r.Link != 0 || r.Blackhole {
			continue
		}
		if objects == nil {
			found, err := listHops(ctx, c)
			if err != nil {
				return err
			}
			objects = make(map[int]hop, len(found))
			for _, o := range found {
				objects[o.id] = o.hop
			}
		}
		h := objects[r.nhid]
		all[i].Gateway, all[i].Link, all[i].OnLink = h.gateway, h.link, h.onLink
	}
	return nil
}

// load reads everything once, and again after a doubt. Objects of ours that no
// route uses then are orphans, of a daemon that died between object and route.
func (t *hopTable) load(ctx context.Context, c *conn) error {
	if t.loaded {
		return nil
	}
	found, err := listHops(ctx, c)
	if err != nil && code(err) != unix.EOPNOTSUPP {
		return err
	}
	if _, err := t.readRoutes(ctx, c); err != nil {
		return err
	}
	t.held = make(map[int]hop, len(found))
	t.orphans = make(map[int]bool)
	for _, o := range found {
		if t.owns(o) {
			t.held[o.id] = o.hop
			t.orphans[o.id] = t.refs[o.id] == 0
		}
	}
	t.loaded = true
	return nil
}

// idOf is the object that r goes through, if it is as r says; 0: none is known.
func (t *hopTable) idOf(r Route) int {
	id := t.route[r.Key()]
	if h, ok := hopOf(r); ok && t.held[id] == h {
		return id
	}
	return 0
}

// refer notes that a route goes through object id now; 0: none.
func (t *hopTable) refer(k RouteKey, id int) {
	if old := t.route[k]; old == id {
		return
	} else if old != 0 {
		t.refs[old]--
		t.orphans[old] = t.refs[old] <= 0
		delete(t.route, k)
	}
	if id != 0 {
		t.route[k] = id
		t.refs[id]++
		delete(t.orphans, id)
	}
}

// abandon notes that no route came to go through object id; 0: none.
func (t *hopTable) abandon(id int) {
	if id != 0 && t.refs[id] <= 0 {
		t.orphans[id] = true
	}
}

// sweep deletes our objects that no route refers to. A failure means a doubt,
// and the next Put or Delete reads everything again.
func (t *hopTable) sweep(ctx context.Context, c *conn) {
	var ids []int
	for id, orphan := range t.orphans {
		if _, ours := t.held[id]; ours && orphan && t.refs[id] <= 0 {
			ids = append(ids, id)
		}
	}
	clear(t.orphans)
	failed, sent, err := c.do(ctx, requests{
		n:      len(ids),
		encode: func(e *encoder, i int) { encodeHop(e, unix.RTM_DELNEXTHOP, 0, ids[i], unix.AF_UNSPEC) },
	})
	for _, id := range ids[:sent] {
		delete(t.held, id)
		delete(t.refs, id)
	}
	for _, f := range failed {
		if !gone(code(f.err)) {
			t.loaded = false
		}
	}
	if err != nil {
		t.loaded = false
	}
}

func encodeHop(e *encoder, typ, flags uint16, id int, family byte) {
	fixed := [sizeofNhmsg]byte{0: family}
	if typ == unix.RTM_NEWNEXTHOP {
		fixed[2] = hopProtocol
	}
	e.begin(typ, flags, fixed[:])
	e.u32(unix.NHA_ID, id)
}

// setHop completes an RTM_NEWNEXTHOP.
func (e *encoder) setHop(h hop) {
	if h.onLink {
		e.setFixed(hopFlags, unix.RTNH_F_ONLINK)
	}
	e.u32(unix.NHA_OIF, h.link)
	e.addr(unix.NHA_GATEWAY, h.gateway)
}

// object is a nexthop object as listed.
type object struct {
	hop
	id       int
	protocol int
}

// owns reports whether an object is ours.
func (t *hopTable) owns(o object) bool {
	// Earlier versions gave theirs the protocol of routes.
	return o.protocol == t.instance.Protocol() || o.protocol == hopProtocol && o.names(t.instance, o.id)
}

func listHops(ctx context.Context, c *conn) ([]object, error) {
	found, err := list[object](ctx, c, nil, []dump{{encode: func(e *encoder) {
		e.begin(unix.RTM_GETNEXTHOP, 0, make([]byte, sizeofNhmsg))
	}}}, parseHop)
	if err != nil {
		return nil, fmt.Errorf("list nexthops: %w", err)
	}
	return found, nil
}

// parseHop reads an RTM_NEWNEXTHOP.
func parseHop(m message) (o object, ok bool, err error) {
	if m.typ != unix.RTM_NEWNEXTHOP {
		return o, false, nil
	}
	if len(m.data) < sizeofNhmsg {
		return o, false, fmt.Errorf("%w: short nexthop", errMalformed)
	}
	o.onLink = u32(m.data[hopFlags:])&unix.RTNH_F_ONLINK != 0
	err = eachAttr(m.data[sizeofNhmsg:], func(typ uint16, v []byte) {
		switch typ {
		case unix.NHA_ID:
			o.id = u32(v)
		case unix.NHA_OIF:
			o.link = u32(v)
		case unix.NHA_GATEWAY:
			o.gateway = ip(v)
		}
	})
	o.protocol = int(m.data[2])
	return o, err == nil, err
}
