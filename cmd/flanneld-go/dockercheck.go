package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/flanneld-go/flanneld-go/backend/firewall/native"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/daemonconfig/dockerd"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// outOfReach says why nothing that we write would reach this host's Docker, and
// what to do; nil: it does.
func (l *loop) outOfReach() error {
	s := &l.docker.seen
	if s.up && s.capabilities.Rootless {
		return l.rootless("Docker")
	}
	if l.opts.dockerConfig == "" || l.opts.dockerNetwork != "" && l.wantMark() == (daemonconfig.Mark{}) {
		return nil // nothing is to be written
	}
	reads, flag := dockerd.ConfigFile(s.given)
	if flag == nil || sameFile(reads, l.opts.dockerConfig) {
		return nil
	}
	return withHint(fmt.Errorf("dockerd reads %s (%s), and not %s: nothing is written there", reads, flag, l.opts.dockerConfig), "run with --docker-config=%s", reads)
}

// unread says that dockerd reads its default file, and we were told to write
// another, which is done; nil: it is not so. No restart would change anything.
func (l *loop) unread() error {
	s := &l.docker.seen
	reads, _ := dockerd.ConfigFile(s.given)
	if s.process.PID == 0 || sameFile(reads, l.opts.dockerConfig) {
		return nil
	}
	return withHint(fmt.Errorf("dockerd (pid %d) reads %s, and not %s: what is written there has no effect", s.process.PID, reads, l.opts.dockerConfig),
		"run without --docker-config, or give dockerd --config-file=%s", l.opts.dockerConfig)
}

// rootless is why a dockerd of a user's is not supported.
func (l *loop) rootless(what string) error {
	return withHint(fmt.Errorf("%s is rootless, which is not supported: its containers are in a network namespace of its user's, where neither routes nor devices of this host lead", what),
		"install Docker as a service of the system; or run with --docker-config=none, for %s alone", l.opts.subnetFile)
}

// onlyRootless says that no dockerd runs here but a user's; nil: it is not so. The
// host's own may yet start, so what it is to read is written all the same.
func (l *loop) onlyRootless() error {
	if s := &l.docker.seen; !s.up && s.rootless != 0 {
		return l.rootless(fmt.Sprintf("the only dockerd that runs here (pid %d)", s.rootless))
	}
	return nil
}

// sameFile reports that two paths lead to the same file, now or once there is
// one.
func sameFile(a, b string) bool {
	if filepath.Clean(a) == filepath.Clean(b) {
		return true
	}
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// The options of dockerd's that decide on what comes from other hosts, where its
// rules are in nf_tables.
const (
	optionMark   = "bridge-accept-fwmark"
	optionDirect = "allow-direct-routing"
)

// wantMark is the mark that Docker is to be told; zero: none, for it needs none,
// or its command line names one, beside which it takes no other.
func (l *loop) wantMark() daemonconfig.Mark {
	given := slices.ContainsFunc(l.docker.seen.given, func(g dockerd.Given) bool { return g.Name == optionMark })
	if given || !l.needsMark() {
		return daemonconfig.Mark{}
	}
	return acceptMark()
}

func acceptMark() daemonconfig.Mark {
	return daemonconfig.Mark{Value: native.AcceptMark, Mask: native.AcceptMask}
}

// needsMark: what comes by the overlay must have a mark to get past Docker. Of a
// Docker whose version is not known, its file knows.
func (l *loop) needsMark() bool {
	c := l.docker.seen.capabilities
	if c.Version != (dockerd.Version{}) {
		return l.opts.forwardRules && c.NeedsMark
	}
	return l.opts.forwardRules && l.keepsDocker() && l.wroteKey(optionMark)
}

// markNow makes the firewall set the mark, or set none, if it knew no better in
// this round. Its failures are not Docker's; but who waits for the firewall must
// know when the subnet is another's.
func (l *loop) markNow(ctx context.Context) error {
	if l.needsMark() == l.docker.marked {
		return nil
	}
	err := l.applyFirewall(ctx)
	if errors.Is(err, errConflict) {
		return err
	}
	l.report(stage{component: status.ComponentFirewall}, err)
	return nil
}

// markStale is how a Docker differs that was started before its file had the mark.
const markStale = "Docker was started before its file named the mark of the overlay's packets"

// isMarkStale reports that: the engine does not say what it has.
func (l *loop) isMarkStale() bool {
	started := l.docker.seen.process.Started
	if started.IsZero() || !l.needsMark() || !l.acceptsMark() {
		return false
	}
	memory, err := os.Stat(l.memoryPath()) // written with each change of our keys
	return err == nil && !memory.ModTime().Before(started)
}

// acceptsMark reports that Docker's options let through what has our mark.
func (l *loop) acceptsMark() bool {
	m, err := daemonconfig.ParseMark(l.dockerOption(optionMark))
	return err == nil && m.Mask != 0 && native.AcceptMark&m.Mask == m.Value
}

// dockerDrops says why a Docker with nftables drops what comes from other hosts;
// nil: it does not. What its rules are is Docker's to change: of 29 they are known
// from its source and its documentation, and were never seen at work.
func (l *loop) dockerDrops() error {
	if !l.needsMark() || !l.docker.seen.capabilities.NeedsMark {
		return nil
	}
	var errs []error
	if !l.acceptsMark() {
		has := l.dockerOption(optionMark)
		if has != "" {
			has = ", and has " + has
		}
		errs = append(errs, withHint(fmt.Errorf("docker %s with nftables drops what comes from other hosts unless its %q is %s%s", l.docker.seen.capabilities.Version, optionMark, acceptMark(), has),
			"set %q: %q in %s, and systemctl restart docker", optionMark, acceptMark(), l.dockerFile()))
	}
	if l.opts.dockerNetwork == "" && l.dockerOption(optionDirect) != "true" {
		errs = append(errs, withHint(fmt.Errorf("docker %s with nftables drops in raw PREROUTING what other hosts send to containers on docker0, and takes no mark there", l.docker.seen.capabilities.Version),
			"run with --docker-network=NAME, a bridge that trusts the overlay; or set %q: true in %s and systemctl restart docker, which lets anybody who has a route reach the published ports of all containers by their own addresses", optionDirect, l.dockerFile()))
	}
	return joinProblems(errs...)
}

// mostOverlaps is how many networks a problem names.
const mostOverlaps = 3

// overlapping says which networks of the user's hide other hosts' containers; nil:
// none does. Only a bridge has a route on this host. Networks inside our own
// subnet are the user's own affair, and Docker sees to it that they do not overlap.
func (l *loop) overlapping() error {
	var named, names []string
	for _, n := range l.docker.seen.networks {
		if n.Driver != "bridge" || n.Name == l.opts.dockerNetwork || n.Name == "bridge" && l.opts.dockerNetwork == "" {
			continue
		}
		for _, p := range n.Subnets {
			if network := l.hides(p.Masked()); network.IsValid() {
				named = append(named, fmt.Sprintf("docker network %s has %s, inside of which the network %s has other hosts", n.Name, p.Masked(), network))
				names = append(names, n.Name)
				break
			}
		}
	}
	if len(named) == 0 {
		return nil
	}
	if more := len(named) - mostOverlaps; more > 0 {
		named = append(named[:mostOverlaps], fmt.Sprintf("and %d more", more))
		names = names[:mostOverlaps]
	}
	return withHint(fmt.Errorf("%s: their containers cannot be reached from here", strings.Join(named, "; ")),
		"docker network rm %s, and make it anew with --subnet outside of %s; \"default-address-pools\" in %s keep Docker from choosing such a subnet", strings.Join(names, " "), strings.Join(networks(l.config.current), " and "), l.dockerFile())
}

// hides returns the network that a subnet of Docker's takes addresses of others
// from; invalid: none.
func (l *loop) hides(p netip.Prefix) netip.Prefix {
	for _, f := range subnet.Families() {
		network, own := l.config.current.Ranges[f].Network, l.lease.own.Subnet[f]
		inside := own.IsValid() && own.Contains(p.Addr()) && own.Bits() <= p.Bits()
		if network.IsValid() && network.Overlaps(p) && !inside {
			return network
		}
	}
	return netip.Prefix{}
}

// joinProblems makes one of several, with all that is to be typed.
func joinProblems(errs ...error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(errs) < 2 {
		return errors.Join(errs...)
	}
	var hints []string
	for _, err := range errs {
		var h *hintError
		if asHint(err, &h) && !slices.Contains(hints, h.hint) {
			hints = append(hints, h.hint)
		}
	}
	if len(hints) == 0 {
		return errors.Join(errs...)
	}
	return withHint(errors.Join(errs...), "%s", strings.Join(hints, "; "))
}
