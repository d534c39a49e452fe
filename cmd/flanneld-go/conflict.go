package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/flanneld-go/flanneld-go/backend/firewall"
	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// renumberGrace is how long a host that is to renumber may look for another
// subnet before it lets go of the old one. It leaves room for the rest of the
// promise in docs/operations.md: what the watch, one request and the withdrawal
// take.
const renumberGrace = 2 * time.Second

// errConflict ends what may take long: the loop must get on to letting go of a
// subnet that is another's.
var errConflict = errors.New("the subnet is no longer ours")

// whileHeld ends when the subnet that this round works for is no longer ours.
// Release ends it too.
func (l *loop) whileHeld(ctx context.Context) (held context.Context, release func()) {
	held, cancel := context.WithCancelCause(ctx)
	s := l.lease.status
	if s == nil || l.opts.onConflict == subnet.Keep {
		return held, func() { cancel(nil) }
	}
	own := s.Lease.Subnet
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-held.Done():
				return
			case <-s.Changed():
			}
			// A conflict that is over already left us another subnet.
			if s = l.lease.keeper.Status(); s.State == subnet.StateConflict || s.Lease.Subnet != own {
				cancel(errConflict)
				return
			}
		}
	}()
	return held, func() {
		cancel(nil)
		<-ended
	}
}

// mustWithdraw says whether the subnet must not be used now. The policy decides:
//
//	fence     at once, until the subnet is ours again
//	renumber  when no other subnet was found in renumberGrace
//	keep      never
func (l *loop) mustWithdraw(s *subnet.KeeperStatus) bool {
	if s.State != subnet.StateConflict {
		return false
	}
	switch l.opts.onConflict {
	case subnet.Fence:
		return true
	case subnet.Renumber:
		return l.clock.Uptime()-l.lease.conflictAt >= renumberGrace
	case subnet.Keep:
	}
	return false
}

// inGrace shortens a pause so that it does not outlast renumberGrace.
func (l *loop) inGrace(pause time.Duration) time.Duration {
	if l.lease.conflictAt == 0 || l.lease.withdrawn || l.opts.onConflict != subnet.Renumber {
		return pause
	}
	left := l.lease.conflictAt + renumberGrace - l.clock.Uptime()
	if left <= 0 { // a withdrawal that failed is tried again as all else is
		return pause
	}
	return min(pause, left)
}

// withdraw makes this host stop using its subnet, once, and returns why. What
// could not be done is tried again in the next round.
func (l *loop) withdraw(ctx context.Context, why error) error {
	l.lease.former = why.Error()
	if !l.lease.withdrawn {
		if err := l.takeDown(ctx); err != nil {
			return errors.Join(why, err)
		}
		l.lease.withdrawn = true
	}
	// The stages behind this one do not run.
	if err := l.keepState(ctx); err != nil {
		return errors.Join(why, err)
	}
	return why
}

// takeDown removes all by which this host uses its subnet, or says that it has
// it: the data path, the files, the firewall's rules, in this order, since the
// firewall's tools may wait for others. Docker is not restarted: fence exists for
// those whose containers must not be touched, and a Docker that starts later finds
// no subnet in its file.
func (l *loop) takeDown(ctx context.Context) error {
	l.endDataPath()
	l.path.applied, l.path.steady, l.path.follow.filtered = false, false, filter{}
	errs := []error{l.backend.Cleanup(ctx), l.withdrawFiles(), l.dropDockerNetwork(ctx)}
	l.keepDescriptors(ctx, l.backend)
	for _, err := range joined(l.firewall.Cleanup(ctx)) {
		// Without tools there are no rules of ours.
		if !errors.Is(err, firewall.ErrNoTools) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// withdrawFiles removes what tells others our subnet.
func (l *loop) withdrawFiles() error {
	var errs []error
	for _, path := range []string{l.opts.subnetFile, l.opts.dockerOptions} {
		if path == "" {
			continue
		}
		removed, err := daemonconfig.Remove(path)
		if removed {
			l.log.Info("file withdrawn", "path", path)
		}
		l.setFile(path, fileWithdrawn, err)
		errs = append(errs, err)
	}
	if l.opts.dockerConfig != "" {
		changes, err := daemonconfig.Withdraw(l.memoryPath())
		for _, c := range changes {
			l.log.Info("docker config key taken back", "path", l.opts.dockerConfig, "change", c.String())
		}
		l.setFile(l.opts.dockerConfig, fileWithdrawn, err)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// leaseless is err, why this host has no lease. What an earlier process left in
// the kernel and in files may be for a subnet that another host has leased since:
// that goes, unless the policy is to keep it.
func (l *loop) leaseless(ctx context.Context, err error) error {
	var foreign *subnet.ForeignInstanceError
	if errors.As(err, &foreign) {
		return &fatal{err}
	}
	holder, taken := l.formerTaken()
	if !taken || l.opts.onConflict == subnet.Keep {
		return err
	}
	return l.withdraw(ctx, withHint(fmt.Errorf("%w; the former subnet is %s's, what was left of it is withdrawn", err, holderOf(holder)), "flannelctl leases"))
}

// formerTaken returns the lease of another owner that overlaps a subnet which
// this host had.
func (l *loop) formerTaken() (subnet.Lease, bool) {
	if !l.snap.Synced {
		return subnet.Lease{}, false
	}
	for _, s := range l.lease.previous {
		if holder, ok := l.holder(l.snap, s); ok {
			return holder, true
		}
	}
	return subnet.Lease{}, false
}

// holder returns the lease of another owner that overlaps s: of several the oldest,
// which is the one that holds.
func (l *loop) holder(snap *subnet.Snapshot, s subnet.Subnet) (holder subnet.Lease, ok bool) {
	for other := range snap.Leases() {
		ours := other.Attrs.Owner == l.node || other.Attrs.Owner == "" && publishes(other, l.attrs.PublicIP)
		if !ours && other.Subnet.Overlaps(s) && (!ok || other.Created < holder.Created) {
			holder, ok = *other, true
		}
	}
	return holder, ok
}

// holderOf names a lease's owner: "node 5ab3 at 198.18.0.2".
func holderOf(x subnet.Lease) string {
	if x.Attrs.Owner == "" {
		return "host " + publicIP(x)
	}
	return fmt.Sprintf("node %s at %s", x.Attrs.Owner, publicIP(x))
}

// showWithin is how long the view may take to show what the keeper knows.
const showWithin = 250 * time.Millisecond

// shown is what the view shows of a revision that the keeper knows already.
func (l *loop) shown(r subnet.Revision) *subnet.Snapshot {
	timer := l.clock.Timer(showWithin)
	defer timer.Stop()
	for {
		snap := l.view.Snapshot()
		if !snap.Synced || snap.Revision >= r {
			return snap
		}
		select {
		case <-timer.C:
			return snap
		case <-snap.Changed():
		}
	}
}

// renumbered says, in the one line that an operator finds later, why containers
// have other addresses, and what is left to do.
func (l *loop) renumbered(former subnet.Subnet, s *subnet.KeeperStatus) {
	owner := "nobody"
	if holder, ok := l.holder(l.shown(s.Lease.Created), former); ok {
		owner = holderOf(holder)
	}
	docker := "is not configured by us: restart what reads the subnet file"
	switch {
	case l.opts.dockerNetwork != "":
		docker = "has the network " + l.opts.dockerNetwork + ", which is made anew when no container belongs to it"
	case l.opts.dockerConfig == "" && l.opts.dockerOptions == "":
	case l.opts.dockerRestart == "on-change":
		docker = "is restarted now if it runs: its containers get new addresses"
	default:
		docker = "must be restarted, its containers have the former addresses until then: systemctl restart docker"
	}
	attrs := []any{"former", former, "subnet", s.Lease.Subnet, "owner_of_former", owner}
	if l.lease.conflict != "" { // a short one passes unseen
		attrs = append(attrs, "reason", l.lease.conflict)
	}
	l.log.Warn("renumbered", append(attrs, "docker", docker)...)
}
