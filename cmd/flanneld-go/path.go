package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/firewall"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// pathState is the data path as it was last applied.
type pathState struct {
	// applied: there was one whole Apply in this process.
	applied bool
	// steady: the last Apply left nothing to do, so that what the next one
	// has to change, for the same own subnet and peers, somebody else undid.
	steady bool
	// heard are the topics of the events that this Apply answers.
	heard kernel.Topic
	own   subnet.Subnet
	// peers, sorted by subnet, are the loop's alone: it changes them in place.
	peers   []*subnet.Lease
	former  formerPeers
	refused []refusal
	// failed are the peers without a path, with the reasons.
	failed map[subnet.Subnet]error
	follow followState
	// bad are the keys that are no leases.
	bad []subnet.BadKey
	// clashes are the addresses that several owners publish in judged.
	clashes []clash
	judged  *subnet.Snapshot
	// stop ends the data path in user space and waits for it; nil: it does
	// not run.
	stop func()
	// failure is how it ended last; nil once it has run for dataPathProof
	// again. since is the uptime at which it began to run; 0: it does not.
	failure atomic.Pointer[error]
	since   atomic.Int64
	// down is told when it has ended so: what it had open is closed, and takes an Apply.
	down chan struct{}
}

// dataPathProof is how long a data path that failed must run again to be
// believed.
const dataPathProof = 2 * time.Second

// apply makes the kernel hold our device and the paths to all peers. Failures
// of single peers are a problem of their own and do not end the round.
func (l *loop) apply(ctx context.Context) error {
	if l.stillApplied() {
		return nil
	}
	me := l.self()
	peers, refused := selectPeers(l.config.current, me, l.snap.Leases())
	now := l.clock.Uptime()
	if same := subnet.SameLeases(peers, l.path.peers); !same || l.path.own != l.lease.own.Subnet {
		l.path.steady = false
		l.path.former.take(moved(l.path.peers, peers), now)
	}
	l.path.own = l.lease.own.Subnet
	l.path.peers, l.path.refused, l.path.bad = peers, refused, l.snap.Bad
	l.path.follow.end()
	l.keepDescriptors(ctx, l.backend)
	l.path.heard = kernel.Topic(l.heard.Swap(0)) //nolint:gosec // it was one
	err := l.backend.Apply(ctx, backend.Desired{
		Config: l.config.current, Uplink: l.uplink, Also: ownAddrs(l.move.also(now)),
		Own: l.lease.own, Peers: l.path.peers, Former: l.path.former.leases(now),
	})
	l.keepDescriptors(ctx, l.backend)
	failed, rest := splitPeerErrors(err)
	l.path.failed = failed
	l.blameDocker(failed)
	l.path.steady = err == nil
	l.showPeers()
	l.reportPeers(failed)
	if rest != nil {
		return rest
	}
	l.path.applied = true
	l.beginToFollow()
	l.startDataPath(ctx, l.backend)
	return nil
}

// self is what tells our own leases from those of peers.
func (l *loop) self() self { return self{l.node, l.attrs.PublicIP, l.lease.own.Subnet} }

// showPeers puts the peers on the board, and makes the list only for who asks.
func (l *loop) showPeers() {
	count := len(l.path.peers) + len(l.path.refused)
	snap, cfg, me, failed := l.snap, l.config.current, l.self(), maps.Clone(l.path.failed)
	l.board.UpdatePeers(count, func() []status.Peer {
		peers, refused := selectPeers(cfg, me, snap.Leases())
		return peerList(peers, refused, failed)
	})
}

// reportPeers keeps the problem of peers without a path, and of keys that may
// be meant for peers but cannot be read.
func (l *loop) reportPeers(failed map[subnet.Subnet]error) {
	bad := l.path.bad
	refused := slices.DeleteFunc(slices.Clone(l.path.refused), func(r refusal) bool { return r.shared })
	n := len(failed) + len(refused)
	var parts, hints []string
	if n > 0 {
		parts = append(parts, fmt.Sprintf("%d of %d peers have no path: %s", n, len(l.path.peers)+len(l.path.refused), l.firstFailures(failed)))
	}
	if n > mostNamed {
		hints = append(hints, "flannelctl status lists them")
	}
	for _, err := range failed {
		if h := (*hintError)(nil); asHint(err, &h) && !slices.Contains(hints, h.hint) {
			hints = append(hints, h.hint)
		}
	}
	if len(refused) > 0 {
		hints = append(hints, fmt.Sprintf("flannelctl release %s --yes, if its host is gone", refused[0].lease.Subnet))
	}
	if len(bad) > 0 {
		parts = append(parts, fmt.Sprintf("%d keys in etcd are no leases, the first: %v", len(bad), bad[0].Err))
		hints = append(hints, "flannelctl release "+quoted(bad[0].Key)+" --yes deletes such a key")
	}
	if clash, release := l.sharedByPeers(); clash != "" {
		parts = append(parts, clash)
		hints = append(hints, release)
	}
	var err error
	if len(parts) > 0 {
		err = withHint(errors.New(strings.Join(parts, "; ")), "%s", strings.Join(hints, "; "))
	}
	l.report(stage{component: status.ComponentPeers}, err)
}

// blameDocker says of peers whose subnet docker0 has what is to be done about it. As
// a rule that subnet was this host's own before.
func (l *loop) blameDocker(failed map[subnet.Subnet]error) {
	for s, err := range failed {
		var occupied *backend.OccupiedError
		var peer *backend.PeerError
		if !errors.As(err, &occupied) || occupied.Device != dockerBridge || !errors.As(err, &peer) {
			continue
		}
		var restart *hintError
		if !asHint(l.differsProblem([]string{occupied.What}), &restart) {
			continue
		}
		hint := restart.hint
		if l.opts.dockerConfig == "" && l.opts.dockerOptions == "" {
			hint = "give Docker the subnet in " + l.opts.subnetFile + ", then " + hint
		}
		failed[s] = withHint(fmt.Errorf("peer %s at %s: %s is in the way until Docker is restarted with this host's subnet, %s",
			peer.Subnet, peer.PublicIP, occupied.What, l.lease.own.Subnet), "%s", hint)
	}
}

// mostNamed is how many peers without a path a problem names.
const mostNamed = 3

// firstFailures names the first of them.
func (l *loop) firstFailures(failed map[subnet.Subnet]error) string {
	var names []string
	for _, p := range l.path.peers {
		if why, ok := failed[p.Subnet]; ok {
			names = append(names, why.Error())
		}
	}
	for _, r := range l.path.refused {
		if !r.shared {
			names = append(names, fmt.Sprintf("%s at %s %s", r.lease.Subnet, publicIP(r.lease), r.why))
		}
	}
	text := ""
	for i, name := range names {
		if i == mostNamed {
			return text + fmt.Sprintf("; and %d more", len(names)-mostNamed)
		}
		if i > 0 {
			text += "; "
		}
		text += name
	}
	return text
}

// splitPeerErrors takes what concerns single peers out of a joined error.
func splitPeerErrors(err error) (failed map[subnet.Subnet]error, rest error) {
	failed = map[subnet.Subnet]error{}
	var others []error
	var walk func(error)
	walk = func(err error) {
		if err == nil {
			return
		}
		if parts := joined(err); parts != nil {
			for _, e := range parts {
				walk(e)
			}
			return
		}
		var peer *backend.PeerError
		if errors.As(err, &peer) {
			failed[peer.Subnet] = err
			return
		}
		others = append(others, err)
	}
	walk(err)
	return failed, errors.Join(others...)
}

// joined returns the parts of an error that says nothing of its own: of
// errors.Join, but not of a fmt.Errorf that wraps several.
func joined(err error) []error {
	multi, ok := err.(interface{ Unwrap() []error }) //nolint:errorlint // the shape itself is asked for
	if !ok {
		return nil
	}
	var texts []string
	for _, e := range multi.Unwrap() {
		texts = append(texts, e.Error())
	}
	if err.Error() != strings.Join(texts, "\n") {
		return nil
	}
	return multi.Unwrap()
}

// startDataPath starts b's data path in user space, if it does not run. It outlives ctx,
// until endDataPath: what else a process does at its end costs no packet.
func (l *loop) startDataPath(ctx context.Context, b any) {
	runner, ok := b.(backend.Runner)
	if !ok || l.path.stop != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	l.path.stop = func() {
		cancel()
		<-ended
	}
	go func() {
		defer close(ended)
		l.runDataPath(ctx, runner)
	}()
}

// endDataPath ends the data path in user space, if it runs, and waits for that.
func (l *loop) endDataPath() {
	if l.path.stop != nil {
		l.path.stop()
		l.path.stop = nil
	}
}

// runDataPath runs it again, ever later, when it fails.
func (l *loop) runDataPath(ctx context.Context, runner backend.Runner) {
	s := stage{component: status.ComponentDataPath, weight: gating}
	for pause := retryMin; ; pause = min(2*pause, retryMax) {
		began := l.clock.Uptime()
		l.path.since.Store(max(1, int64(began)))
		err := runner.Run(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("data path ended")
		}
		l.path.failure.Store(&err)
		l.path.since.Store(0)
		l.report(s, err) // now, and not when the next round comes
		select {
		case l.path.down <- struct{}{}:
		default: // that round is to come
		}
		if l.clock.Uptime()-began > retryMax {
			pause = retryMin
		}
		if !l.sleep(ctx, pause) {
			return
		}
	}
}

// watchDataPath says how the data path in user space failed, until it has run
// again for a while: one that fails at once, again and again, is no recovery.
func (l *loop) watchDataPath(context.Context) error {
	failure := l.path.failure.Load()
	if failure == nil {
		return nil
	}
	since := time.Duration(l.path.since.Load())
	if since == 0 || l.clock.Uptime()-since < dataPathProof {
		return *failure
	}
	l.path.failure.CompareAndSwap(failure, nil)
	return nil
}

// sleep waits for d and reports whether ctx let it.
func (l *loop) sleep(ctx context.Context, d time.Duration) bool {
	end := l.clock.Uptime() + d
	for {
		left := end - l.clock.Uptime()
		if left <= 0 {
			return true
		}
		timer := l.clock.Timer(left)
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		}
	}
}

// staleFiles is how long files that name a former subnet may wait for the
// firewall.
const staleFiles = time.Second

// applyFirewall keeps the rules. It runs in every round: rounds are at most
// --iptables-resync apart.
func (l *loop) applyFirewall(ctx context.Context) error {
	marked := l.docker.marked
	l.docker.marked = l.needsMark()
	f := &l.path.follow
	if f.postponed = l.docker.marked == marked && l.stillFiltered(ctx); f.postponed {
		l.countDropped(ctx)
		return nil
	}
	f.filtered = filter{}
	d := firewall.Desired{
		Own:          l.lease.own.Subnet,
		Tunnel:       l.backend.Tunnel(),
		Uplink:       l.uplink.Link.Name,
		AlsoUplinks:  interfaces(l.move.also(l.clock.Uptime())),
		Segments:     l.uplink.Segments,
		Masquerade:   l.opts.ipMasq,
		RandomFully:  !l.opts.noFullyRandom,
		ForwardRules: l.opts.forwardRules,
		Native:       l.config.current.EnableNFTables,
		AcceptMark:   l.docker.marked,
	}
	for f, r := range l.config.current.Ranges {
		d.Networks[f] = r.Network
	}
	var unread error
	d.Peers, unread = l.firewallPeers(ctx)
	held, release := l.whileHeld(ctx)
	defer release()
	if l.files.stale {
		// The files come after this, and must not name a subnet of another's
		// for as long as somebody holds the firewall's lock.
		var cancel context.CancelFunc
		held, cancel = context.WithTimeout(held, staleFiles)
		defer cancel()
	}
	err := l.firewall.Apply(held, d)
	if cause := context.Cause(held); errors.Is(cause, errConflict) {
		return cause
	}
	l.countDropped(ctx)
	if err == nil && unread == nil {
		f.filtered = filter{l.snap, l.lease.own.Subnet, l.uplink}
	}
	return errors.Join(err, unread)
}

// countDropped puts what the firewall dropped on the board.
func (l *loop) countDropped(ctx context.Context) {
	dropped, err := l.firewall.Counters(ctx)
	if err != nil {
		l.log.DebugContext(ctx, "dropped packets cannot be counted", "error", err)
	} else {
		l.doubt(ctx, dropped)
	}
	l.board.Update(func(s *status.Status) { s.Dropped = dropped })
}

// families are those that the network has.
func (l *loop) families() []subnet.Family {
	var on []subnet.Family
	for f, r := range l.config.current.Ranges {
		if r.Network.IsValid() {
			on = append(on, subnet.Family(f))
		}
	}
	return on
}
