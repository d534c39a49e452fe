package storetest

import (
	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/internal/layout"
)

// condition is what is done to the store between the Load that a write was decided
// on and the write, and the sentinel that the write returns then.
type condition struct {
	name    string
	between []func(*env)
	want    error
}

// outdated tries a write of key under every condition that a World has, and under
// more: each time it returns the sentinel and changes nothing. Prepare does what
// comes before, and returns the write.
func (e *env) outdated(call string, key subnet.Subnet, prepare func(Store, subnet.World) func() error, more ...condition) {
	e.Helper()
	overwritten := func(e *env) { e.put(KV{Path: path(key), Value: flannel("192.0.2.9")}) }
	reconfigured := func(e *env) { e.put(KV{Path: layout.Config, Value: `{"Network":"10.6.0.0/16"}`}) }
	replaced := func(e *env) { e.put(KV{Path: layout.Identity, Value: "another"}) }
	for _, c := range append(more,
		condition{"config text", []func(*env){reconfigured}, subnet.ErrConfigChanged},
		condition{"config revision", []func(*env){func(e *env) { e.put(KV{Path: layout.Config, Value: configText}) }}, subnet.ErrConfigChanged},
		condition{"config deleted", []func(*env){func(e *env) { e.remove(layout.Config) }}, subnet.ErrConfigChanged},
		condition{"identity", []func(*env){replaced}, subnet.ErrStoreChanged},
		condition{"identity deleted", []func(*env){func(e *env) { e.remove(layout.Identity) }}, subnet.ErrStoreChanged},
		condition{"config before the key", []func(*env){overwritten, reconfigured}, subnet.ErrConfigChanged},
		condition{"identity before all", []func(*env){overwritten, reconfigured, replaced}, subnet.ErrStoreChanged},
	) {
		s, w := e.seeded()
		write := prepare(s, w)
		for _, f := range c.between {
			f(e)
		}
		before := e.get(path(key))
		e.is(c.name+": "+call, write(), c.want)
		e.diff(c.name+": the key", before, e.get(path(key)))
		e.remove(path(key))
		e.load(s)
	}
}

// staysBare does a write to a reservation, which has other attributes then and
// hangs on no lease.
func (e *env) staysBare(call string, write func(Store, subnet.Lease, subnet.World) (subnet.Lease, error)) {
	e.Helper()
	s, w := e.seeded()
	change := e.create(s, host(1, v4("10.5.1.0/24")), 0, w)
	change.Attrs = attrs(2)
	got, err := write(s, change, w)
	e.ok(err)
	want := change
	want.Modified = got.Modified
	e.diff(call, want, got)
	e.diff("Load", []subnet.Lease{want}, e.load(s).Leases)
}
