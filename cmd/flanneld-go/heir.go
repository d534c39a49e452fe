package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/cmd/internal/catalog"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// dropTimeout is how long the service manager may take to drop descriptors.
const dropTimeout = 5 * time.Second

// heirState is the data path as far as it goes on from an earlier process's.
type heirState struct {
	// backend is the one that inherited, by config; nil: none did, or what it
	// inherited was let go.
	backend backend.Heir
	config  *subnet.Config
	// also are the uplinks by which that process received beside the present one, until
	// etcd has that one's addresses.
	also []backend.Uplink
	// kept is what the service manager has, by name: the same Conn is the same
	// descriptor, nil is none that is open here.
	kept map[string]syscall.RawConn
	// said is the last complaint about the service manager.
	said string
}

// resume goes on forwarding from the descriptors that the service manager kept, by
// what the cache says of config, lease and peers, before etcd is asked: packets wait
// in them. Where none were kept it goes on from the device alone. No device, address or
// route is created or deleted, and nothing is said of the lease, until the rounds come
// to that.
func (l *loop) resume(ctx context.Context) {
	files, twice := l.inherited, map[string]bool{}
	for _, f := range files {
		_, twice[f.Name()] = l.heir.kept[f.Name()]
		l.heir.kept[f.Name()] = nil
	}
	in, err := l.inherit(ctx)
	if err != nil {
		in.Refused = append(in.Refused, err)
		for _, f := range files {
			in.Refused = append(in.Refused, f.Close())
		}
	}
	l.inherited = nil
	if err := errors.Join(in.Refused...); err != nil && len(files) > 0 {
		l.log.Warn("descriptors of the former process are not used", "error", err)
	}
	if in.Whole {
		l.startDataPath(ctx, l.heir.backend)
		l.log.Info("forwarding goes on from the former process", "subnet", l.cache.Own.Subnet, "peers", len(l.cache.Peers))
	}
	if l.heir.backend != nil && len(files) > 0 {
		for _, d := range l.heir.backend.Descriptors() {
			// Of two under one name we have one, and the other, which is still kept,
			// would go on taking packets. So that name is dropped, and kept anew.
			if _, came := l.heir.kept[d.Name]; came && !twice[d.Name] {
				l.heir.kept[d.Name] = d.Conn
			}
		}
	}
	if l.heir.backend != nil || len(files) > 0 {
		l.keepDescriptors(ctx, l.heir.backend)
	}
}

// inherit gives the descriptors to a backend by the cache, or lets it go on without.
// With an error they are the caller's still.
func (l *loop) inherit(ctx context.Context) (in backend.Inheritance, _ error) {
	if !l.cachedLease() {
		return in, errors.New("the cache holds no lease of this host's")
	}
	cfg, err := catalog.Parse(l.cache.Config.Text)
	if err != nil {
		return in, fmt.Errorf("network config in the cache: %w", err)
	}
	if !l.appliedLast(cfg) {
		return in, errors.New("the backend applied last is not that of the cache")
	}
	b, err := l.newBackend(cfg)
	if err != nil {
		return in, err
	}
	heir, ok := b.(backend.Heir)
	if !ok {
		return in, fmt.Errorf("backend %s forwards in the kernel", cfg.BackendType)
	}
	up, err := l.chooseUplink(ctx, cfg)
	if err != nil {
		return in, err
	}
	attrs, err := b.Attrs(up)
	if err != nil {
		return in, err
	}
	peers, _ := selectPeers(cfg, self{l.node, attrs.PublicIP, l.cache.Own.Subnet}, subnet.Each(l.cache.World().Leases))
	others, err := l.otherUplinks(ctx, up)
	if err != nil {
		return in, err
	}
	in = heir.Inherit(ctx, backend.Desired{Config: cfg, Uplink: up, Also: ownAddrs(others), Own: l.cache.Own, Peers: peers}, l.inherited)
	if in.Whole || len(l.inherited) > 0 { // else nothing is open
		l.heir.backend, l.heir.config = heir, cfg
	}
	for _, other := range others {
		if slices.ContainsFunc(ownAddrs([]backend.Uplink{other}), func(a netip.Addr) bool { return slices.Contains(in.Also, a) }) {
			l.heir.also = append(l.heir.also, other)
		}
	}
	l.heir.also = l.heir.also[max(0, len(l.heir.also)-backend.MostFormer):]
	return in, nil
}

// otherUplinks are all addresses of this host but those of up, each as an uplink.
func (l *loop) otherUplinks(ctx context.Context, up backend.Uplink) (others []backend.Uplink, _ error) {
	links, err := l.host.Links(ctx)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	addrs, err := l.host.Addrs(0).List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		at, addr := slices.IndexFunc(links, func(x kernel.Link) bool { return x.Index == a.Link }), a.Prefix.Addr()
		if at < 0 || slices.Contains(up.Addr[:], addr) {
			continue
		}
		other := backend.Uplink{Link: links[at]}
		f := subnet.FamilyOf(addr)
		other.Addr[f], other.Public[f] = addr, addr
		others = append(others, other)
	}
	return others, nil
}

// takeFormer has the uplinks by which an earlier process received count for a while still.
func (l *loop) takeFormer(now time.Duration) {
	for _, up := range l.heir.also {
		l.move.former = append(l.move.former, former[backend.Uplink]{up, now + moveLinger})
		l.move.wakeIn(moveLinger)
	}
}

// holdFormer has them count as if we had left them at uptime now, until etcd has the
// present one's addresses: peers cannot know another before.
func (l *loop) holdFormer(now time.Duration) {
	for i := range l.move.former {
		f := &l.move.former[i]
		if slices.ContainsFunc(l.heir.also, func(up backend.Uplink) bool { return sameWay(up, f.what) }) {
			f.until = now + moveLinger
		}
	}
	if k := l.lease.keeper; k != nil && k.Lease().Attrs.PublicIP == l.attrs.PublicIP {
		l.heir.also = nil
	}
}

// heirOf returns the backend that has inherited if it is what the config asks for, and
// else lets go of what it has; nil: there is none. Another uplink it follows.
func (l *loop) heirOf(ctx context.Context, cfg *subnet.Config) (backend.Backend, error) {
	h := l.heir.backend
	if h == nil {
		return nil, nil //nolint:nilnil // there is none, which is no error
	}
	if b, ok := h.(backend.Backend); ok && len(needsRestart(l.heir.config, cfg)) == 0 {
		return b, nil
	}
	l.log.Info("config is another than that of the former process, its descriptors are let go")
	l.heir.backend = nil
	l.endDataPath()
	err := h.Close()
	l.keepDescriptors(ctx, nil)
	return nil, err
}

// keepDescriptors makes the service manager keep what b has open, and nothing else.
// A kept one that is closed here would still hold a port, or a queue that nobody
// reads: so this comes before an Apply as well as after it.
func (l *loop) keepDescriptors(ctx context.Context, b any) {
	want := map[string]syscall.RawConn{}
	if h, ok := b.(backend.Heir); ok {
		for _, d := range h.Descriptors() {
			want[d.Name] = d.Conn
		}
	}
	var drop []string
	for name, conn := range l.heir.kept {
		if conn == nil || want[name] != conn {
			drop = append(drop, name)
		}
	}
	var errs []error
	if len(drop) > 0 {
		slices.Sort(drop)
		errs = append(errs, l.dropDescriptors(ctx, drop))
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		// One whose name could not be dropped comes when it is: the manager would keep
		// both, and we know of one name only what it keeps last.
		if _, there := l.heir.kept[name]; there {
			continue
		}
		err := l.notify.Keep(name, want[name])
		if err == nil {
			l.heir.kept[name] = want[name]
		}
		errs = append(errs, err)
	}
	said := ""
	if err := errors.Join(errs...); err != nil {
		if said = err.Error(); said != l.heir.said {
			l.complain(err)
		}
	}
	l.heir.said = said
}

// dropDescriptors makes the service manager close what it keeps under names.
func (l *loop) dropDescriptors(ctx context.Context, names []string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dropTimeout)
	defer cancel()
	if err := l.notify.Drop(ctx, names...); err != nil {
		return err
	}
	for _, name := range names {
		delete(l.heir.kept, name)
	}
	return nil
}
