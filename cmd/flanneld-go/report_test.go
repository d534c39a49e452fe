package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// What a stage's failure does to the round, to readiness and to the state.
func TestRoundWeighsFailures(t *testing.T) {
	broken := errors.New("broken")
	tests := []struct {
		name    string
		weight  weight
		err     error
		applied bool // before this round

		complete, ready, goesOn, blocking bool
		state                             status.State
	}{
		{name: "success", complete: true, ready: true, goesOn: true, state: status.StateRunning},
		{name: "minor", weight: minor, err: broken, ready: true, goesOn: true, state: status.StateDegraded},
		{name: "gating", weight: gating, err: broken, goesOn: true, blocking: true, state: status.StateDegraded},
		{name: "vital at start", weight: vital, err: broken, blocking: true, state: status.StateWaiting},
		{name: "vital, traffic passes", weight: vital, err: broken, applied: true, blocking: true, state: status.StateDegraded},
		{name: "harmless", weight: vital, err: &harmless{broken}, ready: true, goesOn: true, state: status.StateDegraded},
		{name: "untrue", weight: vital, err: &untrue{broken}, goesOn: true, blocking: true, state: status.StateDegraded},
		{name: "untrue of a minor stage", weight: minor, err: &untrue{broken}, ready: true, goesOn: true, state: status.StateDegraded},
		{name: "harmless, wrapped", weight: vital, err: withHint(&harmless{broken}, "try"), ready: true, goesOn: true, state: status.StateDegraded},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, _ := judging(t)
			l.path.applied = tt.applied
			wentOn := false
			complete, err := l.round(t.Context(), []stage{
				{status.ComponentKernel, tt.weight, func(context.Context) error { return tt.err }},
				{status.ComponentFiles, minor, func(context.Context) error { wentOn = true; return nil }},
			})
			s := l.board.Snapshot()
			if err != nil {
				t.Errorf("the process ends with %v", err)
			}
			if complete != tt.complete || wentOn != tt.goesOn || s.Ready != tt.ready || s.State != tt.state {
				t.Errorf("complete %t, went on %t, ready %t, state %s; want %t, %t, %t, %s",
					complete, wentOn, s.Ready, s.State, tt.complete, tt.goesOn, tt.ready, tt.state)
			}
			if (len(s.Problems) > 0) != (tt.err != nil) || len(s.Problems) > 0 && s.Problems[0].Blocking != tt.blocking {
				t.Errorf("problems %+v, want blocking %t", s.Problems, tt.blocking)
			}
			if s.Sync.Runs != 1 || (s.Sync.Failures == 1) == tt.complete {
				t.Errorf("%d rounds, %d failed", s.Sync.Runs, s.Sync.Failures)
			}
		})
	}
}

// A round that a signal cut short says nothing of what it did not do.
func TestRoundCutShort(t *testing.T) {
	l, _ := judging(t)
	ctx, cancel := context.WithCancel(t.Context())
	complete, err := l.round(ctx, []stage{{status.ComponentKernel, vital, func(context.Context) error {
		cancel()
		return ctx.Err()
	}}})
	if s := l.board.Snapshot(); complete || err != nil || len(s.Problems) != 0 || s.Sync.Runs != 0 {
		t.Errorf("complete %t, error %v, problems %v, %d rounds; want none of it", complete, err, s.Problems, s.Sync.Runs)
	}
}

func TestReportLogsOnce(t *testing.T) {
	l, log := judging(t)
	s := stage{component: status.ComponentFirewall, weight: minor}
	for range 3 {
		l.report(s, withHint(errors.New("no iptables"), "apt-get install iptables"))
	}
	want := []status.Problem{{Component: "firewall", Message: "no iptables", Hint: "apt-get install iptables"}}
	if diff := cmp.Diff(want, l.board.Snapshot().Problems, cmpopts.IgnoreFields(status.Problem{}, "Since")); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	for range 2 {
		l.report(s, nil)
	}
	if n := strings.Count(log.String(), "msg=problem"); n != 1 {
		t.Errorf("logged %d times, want once", n)
	}
	if n := strings.Count(log.String(), "msg=recovered component=firewall"); n != 1 {
		t.Errorf("recovery logged %d times, want once", n)
	}
}

func peerError(prefix string, err error) error {
	return &backend.PeerError{Subnet: subnet.Subnet{netip.MustParsePrefix(prefix)}, PublicIP: netip.MustParseAddr("198.18.0.2"), Err: err}
}

func TestSplitPeerErrors(t *testing.T) {
	refused := errors.New("refused")
	a, b := peerError("10.5.1.0/24", refused), peerError("10.5.2.0/24", refused)
	const aText, bText = "peer 10.5.1.0/24 at 198.18.0.2: refused", "peer 10.5.2.0/24 at 198.18.0.2: refused"
	device := errors.New("make device flannel.1: file exists")
	tests := []struct {
		name   string
		err    error
		failed map[string]string
		rest   string
	}{
		{name: "nothing"},
		{name: "one peer", err: a, failed: map[string]string{"10.5.1.0/24": aText}},
		{name: "peers, joined and joined again", err: errors.Join(errors.Join(a), errors.Join(b, nil)), failed: map[string]string{"10.5.1.0/24": aText, "10.5.2.0/24": bText}},
		{name: "the device alone", err: device, rest: device.Error()},
		{name: "both", err: errors.Join(a, device, b), failed: map[string]string{"10.5.1.0/24": aText, "10.5.2.0/24": bText}, rest: device.Error()},
		{name: "a peer in other words", err: fmt.Errorf("routes: %w", a), failed: map[string]string{"10.5.1.0/24": "routes: " + aText}},
		{name: "one wrap of several is one error", err: fmt.Errorf("add %w, then undo: %w", device, refused), rest: "add " + device.Error() + ", then undo: refused"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			failed, rest := splitPeerErrors(tt.err)
			got := map[string]string{}
			for s, why := range failed {
				got[s.String()] = why.Error()
			}
			if diff := cmp.Diff(tt.failed, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("peers (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.rest, text(rest)); diff != "" {
				t.Errorf("rest (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReportPeers(t *testing.T) {
	l, _ := judging(t)
	l.snap = &subnet.Snapshot{}
	l.path.peers = slices.Collect(subnet.Each([]subnet.Lease{
		testLease("10.5.1.0/24", "198.18.0.1", 1), testLease("10.5.2.0/24", "198.18.0.2", 2), testLease("10.5.3.0/24", "198.18.0.3", 3),
	}))
	failed := map[subnet.Subnet]error{
		l.path.peers[2].Subnet: errors.New("peer 10.5.3.0/24: refused"),
		l.path.peers[0].Subnet: errors.New("peer 10.5.1.0/24: refused"),
	}
	message := func() string {
		for _, p := range l.board.Snapshot().Problems {
			if p.Component == status.ComponentPeers && !p.Blocking {
				return p.Message + " | " + p.Hint
			}
		}
		return ""
	}
	l.reportPeers(failed)
	want := "2 of 3 peers have no path: peer 10.5.1.0/24: refused; peer 10.5.3.0/24: refused | "
	if got := message(); got != want {
		t.Errorf("problem %q, want %q", got, want)
	}
	for _, prefix := range []string{"10.6.1.0/24", "10.6.2.0/24"} {
		l.path.refused = append(l.path.refused, refusal{lease: testLease(prefix, "198.18.0.9", 9), why: "lies outside"})
	}
	l.reportPeers(failed)
	want = "4 of 5 peers have no path: peer 10.5.1.0/24: refused; peer 10.5.3.0/24: refused; 10.6.1.0/24 at 198.18.0.9 lies outside; and 1 more | flannelctl status lists them; flannelctl release 10.6.1.0/24 --yes, if its host is gone"
	if got := message(); got != want {
		t.Errorf("problem %q, want %q", got, want)
	}
	// Each thing that is wrong comes with what to type against it.
	l.path.bad = []subnet.BadKey{{Key: "it's", Err: errors.New("no subnet")}}
	l.path.clashes = []clash{{netip.MustParseAddr("198.18.0.7"), []subnet.Lease{testLease("10.5.7.0/24", "198.18.0.7", 8), testLease("10.5.6.0/24", "198.18.0.7", 7)}}}
	l.path.refused = nil
	l.reportPeers(nil)
	want = "1 keys in etcd are no leases, the first: no subnet; several owners publish 198.18.0.7: 10.5.7.0/24 of node node 198.18.0.7 and 10.5.6.0/24 of node node 198.18.0.7" +
		" | flannelctl release 'it'\\''s' --yes deletes such a key; flannelctl release 10.5.7.0/24 --yes or flannelctl release 10.5.6.0/24 --yes, whichever is of a host that is gone; if none is, give one of them another --public-ip"
	if got := message(); got != want {
		t.Errorf("problem %q, want %q", got, want)
	}
	l.path.bad, l.path.clashes = nil, nil
	l.path.refused = nil
	l.reportPeers(nil)
	if got := message(); got != "" {
		t.Errorf("problem %q, want none", got)
	}
}

func TestPauseGrows(t *testing.T) {
	l, _ := judging(t)
	l.opts.iptablesResync = resyncEvery / 2
	var pauses []string
	for range 8 {
		pauses = append(pauses, l.pause(false).String())
	}
	pauses = append(pauses, l.pause(true).String(), l.pause(false).String())
	want := []string{"250ms", "500ms", "1s", "2s", "4s", "8s", "10s", "10s", "15s", "250ms"}
	if diff := cmp.Diff(want, pauses); diff != "" {
		t.Errorf("pauses (-want +got):\n%s", diff)
	}
}
