package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/cmd/internal/catalog"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// configState is the network config in force and the latest seen.
type configState struct {
	// current is nil until a valid config came.
	current *subnet.Config
	doc     subnet.Document
	// seen is the document judged last, and verdict why it is not in force.
	seen    subnet.Document
	verdict error
}

// followStore starts the view, once, and says whether etcd answers. Nothing
// else depends on that: a host with a lease goes on without.
func (l *loop) followStore(ctx context.Context) error {
	if l.view == nil {
		// What the view starts from is judged first: it may be a config that
		// the store has lost.
		l.firstLoad = l.startView(ctx)
		l.snap = l.firstSnap
	} else {
		l.catchUp(ctx)
		if l.snap != l.firstSnap {
			l.firstSnap = nil // it would keep leases that are long gone
		}
	}
	l.board.Update(func(s *status.Status) {
		s.Etcd.Endpoints = l.store.Endpoints()
		s.Etcd.Connected = l.snap.Synced
		s.Etcd.Revision = int64(l.snap.Revision)
		s.Etcd.Traffic = status.Traffic(l.store.Stats())
		s.BadKeys = badKeys(l.snap.Bad)
	})
	if l.snap.Synced {
		return nil
	}
	err := l.firstLoad
	if l.snap != l.firstSnap {
		err = l.snap.Err
	}
	if err == nil {
		return nil // it answered, and has lost the config
	}
	return withHint(err, "%s", l.etcdHint(err))
}

// startView loads everything once, for the view and for the lease. If etcd is
// silent the view starts from the cache, or from nothing. From the cache as well
// if etcd has lost the config: a host that ran on keeps what it has then.
func (l *loop) startView(ctx context.Context) error {
	// The view gets no log: what it would say is the problem of a stage, which
	// is said once.
	l.began = l.clock.Uptime()
	o := subnet.ViewOptions{Store: l.store, Clock: l.clock, Node: l.node, TTL: l.opts.leaseTTL}
	o.Unheard, o.Holding = l.recallTimes()
	loadCtx, cancel := context.WithTimeout(ctx, cacheAfter)
	defer cancel()
	world, err := l.store.Load(loadCtx)
	if c := l.cache; err == nil && c.Identity != "" && (c.Identity != world.Identity || c.Revision > world.Revision) {
		l.log.Warn("etcd was replaced or restored while this host was down", "hint", l.etcdHint(subnet.ErrStoreChanged))
	}
	switch {
	case err == nil && world.Config.Modified == 0 && l.cachedLease():
		o.World, o.Cached, o.Found = l.recall(ctx), true, world
		l.log.Warn("etcd holds no network config, starting from the cache", "subnet", l.cache.Own.Subnet, "peers", len(l.cache.Peers))
	case err == nil:
		o.World, o.Former = world, l.formerWorld(ctx, world.Config)
	case l.cache.Identity != "":
		o.World, o.Cached = l.recall(ctx), true
		l.log.Warn("etcd cannot be read, starting from the cache", "subnet", l.cache.Own.Subnet, "peers", len(l.cache.Peers), "error", err)
	}
	l.view = subnet.NewView(o)
	l.cache.Peers = nil // the view has them
	l.firstSnap = l.view.Snapshot()
	if !l.firstSnap.Synced {
		l.runView(ctx, 0)
	}
	return err
}

// runView follows etcd from now on, or after a pause, once. A start leases its subnet
// before that: who starts together with many others learns of them in one answer then.
func (l *loop) runView(ctx context.Context, pause time.Duration) {
	if l.following {
		return
	}
	l.following = true
	l.group.Go(func() error {
		timer := l.clock.Timer(pause)
		defer timer.Stop()
		select {
		case <-timer.C:
			return l.view.Run(ctx)
		case <-ctx.Done():
			return nil
		}
	})
}

// formerWorld is what the earlier process of this host knew of its peers, if they
// still mean the same by the config doc. Their keys may have run out together with
// ours, after etcd was silent, and they are about to be created again.
func (l *loop) formerWorld(ctx context.Context, doc subnet.Document) subnet.World {
	then, err := catalog.Parse(l.cache.Config.Text)
	if err != nil {
		return subnet.World{}
	}
	now, err := catalog.Parse(doc.Text)
	if err != nil || len(needsRestart(then, now)) > 0 {
		return subnet.World{}
	}
	former := l.cache
	former.Own = subnet.Lease{}
	former.Peers, _ = l.recallPeers(ctx)
	return former.World()
}

// takeConfig judges the latest config document once. The first valid one comes
// into force; later ones may change what a running host can change.
func (l *loop) takeConfig(ctx context.Context) error {
	if l.snap.Config == l.config.seen && l.config.current != nil {
		return l.complainOnly(l.config.verdict)
	}
	if l.snap.Config.Modified == 0 && !l.snap.Synced {
		if l.config.current != nil {
			return nil
		}
		return errors.New("waiting for etcd: there is no config yet")
	}
	l.config.seen = l.snap.Config
	l.config.verdict = l.judge(l.snap.Config)
	if l.config.verdict == nil && l.lease.keeper == nil {
		l.config.verdict = l.takeNetwork(ctx)
	}
	if l.config.current == nil {
		return l.config.verdict
	}
	return l.complainOnly(l.config.verdict)
}

// complainOnly turns a config that is refused into a problem that does not end
// the round: the old config stays in force.
func (l *loop) complainOnly(verdict error) error {
	if verdict == nil {
		return nil
	}
	return &harmless{verdict}
}

// harmless is an error of a vital stage that the host can work with all the
// same.
type harmless struct{ error }

// Unwrap returns the cause.
func (h *harmless) Unwrap() error { return h.error }

// untrue is an error of a vital stage that leaves the data path as it is, but
// the host must not be called ready.
type untrue struct{ error }

// Unwrap returns the cause.
func (u *untrue) Unwrap() error { return u.error }

// fatal is an error that only another start can mend: it ends the process.
type fatal struct{ error }

// Unwrap returns the cause.
func (f *fatal) Unwrap() error { return f.error }

// weigh says what err, of a stage of weight w, comes to.
func weigh(w weight, err error) weight {
	var mild *harmless
	var wrong *untrue
	switch {
	case errors.As(err, &mild):
		return minor
	case errors.As(err, &wrong):
		return min(w, gating)
	}
	return w
}

// judge parses doc and brings it into force if that is possible.
func (l *loop) judge(doc subnet.Document) error {
	if doc.Modified == 0 {
		return l.noConfig()
	}
	cfg, err := catalog.Parse(doc.Text)
	set := "flannelctl config set FILE, with a config that flannelctl config validate FILE takes"
	if l.config.current != nil {
		set = "flannelctl config set " + quoted(l.config.doc.Text) + " puts the former one back"
	}
	switch {
	case err != nil && l.config.current == nil:
		return withHint(fmt.Errorf("network config at revision %d is invalid, waiting for a valid one: %w", doc.Modified, err), "%s", set)
	case err != nil:
		return withHint(fmt.Errorf("network config at revision %d is invalid, keeping that of revision %d: %w", doc.Modified, l.config.doc.Modified, err), "%s", set)
	case l.lease.keeper == nil:
		if err := l.rival(cfg); err != nil {
			return err
		}
		// Nothing runs by the old one yet: uplink and backend are chosen anew.
		l.uplink, l.move, l.backend = backend.Uplink{}, moveState{}, nil
		l.adopt(cfg, doc)
		return nil
	}
	if what := needsRestart(l.config.current, cfg); len(what) > 0 {
		more := ""
		if own := l.lease.own.Subnet; !cfg.Pool().Fits(own) {
			more = fmt.Sprintf(", and gets another subnet then: its own, %s, does not fit the new config", own)
		}
		return withHint(fmt.Errorf("network config at revision %d changes %s: this host keeps that of revision %d until it is restarted%s",
			doc.Modified, strings.Join(what, " and "), l.config.doc.Modified, more), "systemctl restart %s", l.opts.instance.Unit())
	}
	l.adopt(cfg, doc)
	return nil
}

// noConfig says in one line what to type: the config that this host had, where it
// had one.
func (l *loop) noConfig() error {
	key := l.opts.etcd.Prefix + "/config"
	where := l.opts.etcd.Where()
	had := cmp.Or(l.config.doc.Text, l.cache.Config.Text, `{"Network":"10.5.0.0/16"}`)
	put := fmt.Sprintf("%s put %s %s", l.opts.etcd.Etcdctl(), key, quoted(had))
	if l.config.current != nil {
		return withHint(fmt.Errorf("the network config is gone from %s at %s; keeping that of revision %d", key, where, l.config.doc.Modified), "%s", put)
	}
	return fmt.Errorf("no network config yet: waiting for key %s at %s; put one with: %s", key, where, put)
}

// quoted is a config, or a key, as one word of a shell, on one line.
func quoted(config string) string {
	var line bytes.Buffer
	if json.Compact(&line, []byte(config)) == nil {
		config = line.String()
	}
	return "'" + strings.ReplaceAll(config, "'", `'\''`) + "'"
}

// adopt brings a config into force.
func (l *loop) adopt(cfg *subnet.Config, doc subnet.Document) {
	l.config.current, l.config.doc = cfg, doc
	for _, key := range cfg.Unknown {
		l.log.Warn("unknown key in the network config is ignored", "key", key, "revision", doc.Modified)
	}
	var lens []int
	for _, r := range cfg.Ranges {
		if r.Network.IsValid() {
			lens = append(lens, r.SubnetLen)
		}
	}
	l.log.Info("network config", "networks", networks(cfg), "subnet_lens", lens, "backend", cfg.BackendType, "revision", doc.Modified)
	l.board.Update(func(s *status.Status) {
		s.Config = status.Config{Revision: int64(doc.Modified), Networks: networks(cfg), SubnetLens: lens, BackendType: cfg.BackendType, Unknown: cfg.Unknown}
	})
}

// needsRestart names what differs between two configs that a running host
// cannot change: its own subnet and its peers' would no longer fit.
func needsRestart(old, changed *subnet.Config) []string {
	var what []string
	names := subnet.ByFamily[[2]string]{{"Network", "SubnetLen"}, {"IPv6Network", "IPv6SubnetLen"}}
	for f := range old.Ranges {
		if old.Ranges[f].Network != changed.Ranges[f].Network {
			what = append(what, names[f][0])
		}
		if old.Ranges[f].SubnetLen != changed.Ranges[f].SubnetLen {
			what = append(what, names[f][1])
		}
	}
	if old.BackendType != changed.BackendType || !sameJSON(backendObject(old), backendObject(changed)) {
		what = append(what, "Backend")
	}
	return what
}

// newBackend makes a backend of cfg.
func (l *loop) newBackend(cfg *subnet.Config) (backend.Backend, error) {
	return l.construct(backend.Params{
		Config:    cfg,
		Node:      l.node,
		Instance:  l.opts.instance.Instance,
		Kernel:    l.host,
		Log:       l.log.With("backend", cfg.BackendType),
		Blackhole: l.opts.blackholeRoute,
		Observe:   l.observe,
		Unknown:   func([]string) {}, // adopt has warned of them
	})
}

// takeBackend makes the backend, once, and removes what one of another kind
// left behind.
func (l *loop) takeBackend(ctx context.Context) error {
	if l.backend != nil {
		return nil
	}
	b, err := l.heirOf(ctx, l.config.current)
	if err == nil && b == nil {
		b, err = l.newBackend(l.config.current)
	}
	if err != nil {
		return err
	}
	if err := l.removeFormer(ctx); err != nil {
		return err
	}
	attrs, err := b.Attrs(l.uplink)
	if err != nil {
		return err
	}
	l.saved.BackendType, l.saved.Backend = l.config.current.BackendType, backendObject(l.config.current)
	l.saved.Ranges = ranges(l.config.current)
	l.saved.SubnetFile, l.saved.DockerOptions, l.saved.DockerNetwork = l.opts.subnetFile, l.opts.dockerOptions, l.opts.dockerNetwork
	l.saveHost()
	l.backend, l.attrs = b, attrs
	l.board.Update(func(s *status.Status) {
		s.Backend = status.Backend{Type: l.config.current.BackendType, Devices: b.Tunnel().Devices, Direct: b.Tunnel().Direct, MTU: b.MTU(l.uplink), Port: int(b.Tunnel().Port)}
	})
	return nil
}

// removeFormer cleans up after the backend that ran here before, if the config
// names another now, or other networks: a backend knows what it left by those.
func (l *loop) removeFormer(ctx context.Context) error {
	if l.saved.BackendType == "" || l.appliedLast(l.config.current) {
		return nil
	}
	former := *l.config.current
	former.BackendType, former.Backend = l.saved.BackendType, l.saved.Backend
	b, err := l.newBackend(&former)
	if err != nil {
		l.log.Warn("former backend is unknown, its devices and routes stay", "backend", former.BackendType, "error", err)
		return nil
	}
	l.log.Info("backend or network changed, removing what the former one left", "former", former.BackendType, "backend", l.config.current.BackendType)
	if err := b.Cleanup(ctx); err != nil {
		return fmt.Errorf("remove what backend %s left: %w", former.BackendType, err)
	}
	return nil
}

// appliedLast reports whether what cfg says of backend and networks is what was
// applied on this host last.
func (l *loop) appliedLast(cfg *subnet.Config) bool {
	return l.saved.BackendType == cfg.BackendType && sameJSON(l.saved.Backend, backendObject(cfg)) &&
		(l.saved.Ranges == nil || slices.Equal(l.saved.Ranges, ranges(cfg)))
}

// ranges are the networks that are on, with the lengths of their subnets.
func ranges(cfg *subnet.Config) []string {
	var list []string
	for _, r := range cfg.Ranges {
		if r.Network.IsValid() {
			list = append(list, fmt.Sprintf("%s by /%d", r.Network, r.SubnetLen))
		}
	}
	return list
}

// backendObject is cfg's Backend, in full where it was left out.
func backendObject(cfg *subnet.Config) subnet.RawJSON {
	if cfg.Backend == "" {
		return subnet.RawJSON(fmt.Sprintf(`{"Type":%q}`, cfg.BackendType))
	}
	return cfg.Backend
}

// sameJSON reports whether two texts are the same JSON value, in whatever order
// and layout.
func sameJSON(a, b subnet.RawJSON) bool {
	if a == b {
		return true
	}
	var x, y any
	if json.Unmarshal([]byte(a), &x) != nil || json.Unmarshal([]byte(b), &y) != nil {
		return false
	}
	return reflect.DeepEqual(x, y)
}

func addrs(list subnet.ByFamily[netip.Addr]) []string {
	var names []string
	for _, a := range list {
		if a.IsValid() {
			names = append(names, a.String())
		}
	}
	return names
}
