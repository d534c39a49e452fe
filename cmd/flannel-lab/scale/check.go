package scale

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// checkAgain is how often the kernel is compared while changes are on their way.
const checkAgain = 50 * time.Millisecond

// repaired is what a daemon says that finds something in the kernel to be wrong.
const repaired = "repaired what somebody else changed in the kernel"

// Check starts a daemon on the first host of a lab, on which nothing runs yet, beside
// so many peers, and compares each entry in its kernel with what it should be; and
// once more after so many of them have joined, moved and left, by which time nothing may
// have needed repair. It measures nothing.
func Check(ctx context.Context, l *lab.Lab, peers, changes int) (err error) {
	if err := errors.Join(l.StartEtcd(ctx), l.PutConfig(ctx, VXLAN.config())); err != nil {
		return err
	}
	p, err := newPopulation(ctx, l.Client(), VXLAN)
	if err != nil {
		return err
	}
	if err := p.grow(ctx, peers); err != nil {
		return err
	}
	r, _, err := startDaemon(ctx, l.Hosts[0], p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.stop(ctx)) }()
	env, err := r.host.ReadSubnet()
	if err != nil {
		return err
	}
	c := &churn{p: p, next: p.count, taken: func(who peer) bool { return env.Subnets[0].Masked() == who.subnet() }}
	present := map[int]peer{}
	for _, who := range numbered(peers) {
		present[who.number] = who
	}
	for n := range changes {
		ch, err := c.step(ctx, kind(n%int(kinds))) //nolint:gosec // below kinds
		if err != nil {
			return err
		}
		if ch.kind == leave {
			delete(present, ch.peer.number)
		} else {
			present[ch.peer.number] = ch.peer
		}
	}
	var want []peer
	for _, who := range present {
		want = append(want, who)
	}
	if err := r.awaitEntries(ctx, want); err != nil {
		return err
	}
	text, err := r.host.Daemon.Log()
	if err == nil && strings.Contains(text, repaired) {
		err = fmt.Errorf("the daemon found its own work wrong, %q:\n%s", repaired, r.host.Daemon.Tail(logLines))
	}
	return err
}

// awaitEntries waits until the kernel holds what it should for peers, and nothing
// else.
func (r *running) awaitEntries(ctx context.Context, peers []peer) error {
	limit, cancel := context.WithTimeout(ctx, changeWithin)
	defer cancel()
	for {
		err := r.checkEntries(ctx, peers)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if lab.Wait(limit, checkAgain) != nil {
			return fmt.Errorf("not within %s: %w; the end of the daemon's log:\n%s", changeWithin, err, r.host.Daemon.Tail(logLines))
		}
	}
}
