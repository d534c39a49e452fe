package storetest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/internal/layout"
)

// long is a TTL that outlives every case.
const long = time.Hour

const configText = `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`

// env is what a case works with.
type env struct {
	testing.TB
	Harness
	ctx context.Context
}

// store opens one more store.
func (e *env) store() Store { return e.Open(e.TB) }

// seeded opens a store on a network that has a config, and loads it.
func (e *env) seeded() (Store, subnet.World) {
	e.Helper()
	e.put(KV{Path: layout.Config, Value: configText})
	s := e.store()
	return s, e.load(s)
}

func (e *env) load(s Store) subnet.World {
	e.Helper()
	w, err := s.Load(e.ctx)
	if err != nil {
		e.Fatalf("Load: %v", err)
	}
	return w
}

func (e *env) create(s Store, l subnet.Lease, ttl time.Duration, w subnet.World) subnet.Lease {
	e.Helper()
	got, err := s.Create(e.ctx, l, ttl, w)
	if err != nil {
		e.Fatalf("Create(%s): %v", l.Subnet, err)
	}
	return got
}

func (e *env) put(kvs ...KV) subnet.Revision {
	e.Helper()
	rev, err := e.Put(e.ctx, kvs...)
	e.ok(err)
	return rev
}

func (e *env) remove(paths ...string) subnet.Revision {
	e.Helper()
	rev, err := e.Delete(e.ctx, paths...)
	e.ok(err)
	return rev
}

func (e *env) get(path string) KV {
	e.Helper()
	kv, err := e.Get(e.ctx, path)
	e.ok(err)
	return kv
}

func (e *env) grant(ttl time.Duration) subnet.LeaseID {
	e.Helper()
	id, err := e.Grant(e.ctx, ttl)
	e.ok(err)
	return id
}

func (e *env) ok(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

// sentinels are the errors that decisions are made on.
func sentinels() []error {
	return []error{subnet.ErrTaken, subnet.ErrConfigChanged, subnet.ErrStoreChanged, subnet.ErrLeaseLost, subnet.ErrCompacted}
}

func sentinel(err error) bool {
	return slices.ContainsFunc(sentinels(), func(s error) bool { return errors.Is(err, s) })
}

// is checks that what ended in err, and in no other of the sentinels.
func (e *env) is(what string, err, want error) {
	e.Helper()
	for _, s := range sentinels() {
		if got := errors.Is(err, s); got != errors.Is(want, s) {
			e.Errorf("%s = %v, want %v", what, err, want)
			return
		}
	}
	if !errors.Is(err, want) {
		e.Errorf("%s = %v, want %v", what, err, want)
	}
}

func (e *env) diff(what string, want, got any, opts ...cmp.Option) {
	e.Helper()
	if d := cmp.Diff(want, got, append(opts, equal)...); d != "" {
		e.Errorf("%s (-want +got):\n%s", what, d)
	}
}

// eventually waits until f is true.
func (e *env) eventually(what string, f func() bool) {
	e.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-e.ctx.Done():
			e.Fatalf("%s: never", what)
		}
	}
}

// pause lets d pass.
func (e *env) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-e.ctx.Done():
	}
}

// equal compares worlds and batches: an error only by being there.
var equal = cmp.Options{
	cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}),
	cmpopts.EquateEmpty(),
	cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Err" },
		cmp.Comparer(func(a, b error) bool { return (a == nil) == (b == nil) })),
}

// errUnread stands for any error of a key that cannot be read.
var errUnread = errors.New("any error")

func v4(s string) subnet.Subnet { return subnet.Subnet{subnet.IPv4: netip.MustParsePrefix(s)} }

func dual(s4, s6 string) subnet.Subnet {
	return subnet.Subnet{netip.MustParsePrefix(s4), netip.MustParsePrefix(s6)}
}

// path is where s has its key.
func path(s subnet.Subnet) string { return layout.Subnets + s.Key() }

// host returns what host n would create for s.
func host(n int, s subnet.Subnet) subnet.Lease {
	return subnet.Lease{Subnet: s, Attrs: attrs(n)}
}

func attrs(n int) subnet.Attrs {
	return subnet.Attrs{
		PublicIP:    subnet.ByFamily[netip.Addr]{subnet.IPv4: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)})},
		BackendType: "vxlan",
		BackendData: subnet.ByFamily[subnet.RawJSON]{subnet.IPv4: `{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}`},
		Owner:       subnet.NodeID(fmt.Sprintf("node-%d", n)),
		Instance:    fmt.Sprintf("instance-%d", n),
	}
}

// flannel is the value that flannel writes on a host with the given address,
// and flannelAttrs how it reads.
func flannel(addr string) string {
	return `{"PublicIP":"` + addr + `","PublicIPv6":null,"BackendType":"host-gw"}`
}

func flannelAttrs(addr string) subnet.Attrs {
	return subnet.Attrs{
		PublicIP:    subnet.ByFamily[netip.Addr]{subnet.IPv4: netip.MustParseAddr(addr)},
		BackendType: "host-gw",
	}
}

// asListed is l as a Load returns it: nobody knows the time of a peer's lease.
func asListed(l subnet.Lease) subnet.Lease {
	l.TTL = 0
	return l
}
