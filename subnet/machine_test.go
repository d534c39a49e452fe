package subnet

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// script runs events through a machine and tells what it became, one line each:
// "kind: state deed [wake in ...] [why]".
type script struct {
	m   machine
	now time.Duration
	log strings.Builder
}

func (s *script) step(name string, after time.Duration, ev event) {
	s.now += after
	ev.sent = s.now
	s.m = s.m.step(input{event: ev, now: s.now, random: 0.5})
	deeds := [...]string{"wait", "renew", "look", "create", "update", "challenge", "settle", "renumber", "stop"}
	fmt.Fprintf(&s.log, "%s: %s %s", name, s.m.state, deeds[s.m.do])
	if s.m.do == doWait {
		fmt.Fprintf(&s.log, " %s", (s.m.wake() - s.now).Round(time.Millisecond))
	}
	if s.m.why != nil {
		fmt.Fprintf(&s.log, " (%v)", s.m.why)
	}
	s.log.WriteByte('\n')
}

func TestMachine(t *testing.T) {
	const ttl = 24 * time.Hour
	mine := Attrs{Owner: "n", Instance: "i"}
	held := Lease{Subnet: numbered(1, 24), Attrs: mine, ID: 1, TTL: ttl, Modified: 5}
	bare := held
	bare.ID, bare.TTL = 0, 0
	old := held
	old.Attrs.Instance = "before"
	elsewhere := held
	elsewhere.Attrs.Instance, elsewhere.Modified = "elsewhere", 8
	challenged, answered, asked3 := elsewhere, elsewhere, elsewhere
	challenged.Attrs.Challenge, challenged.Modified = challengeBy(mine), 9
	answered.Modified = 10
	stranger := challenged
	stranger.Attrs.Challenge, stranger.Attrs.Instance = Challenge{}, "another"
	asked3.Attrs.Challenge = Challenge{Instance: "third", PublicIP: ByFamily[netip.Addr]{netip.MustParseAddr("192.0.2.3")}}
	down, errDouble := errors.New("down"), errors.New("a double")
	renewed, created := event{kind: evRenewed, lease: held}, event{kind: evCreated, lease: held}
	before := event{kind: evRenewed, lease: old}
	tick, failed := event{}, event{kind: evFailed, err: down}
	lost := event{kind: evLost, err: ErrLeaseLost}
	type stage struct {
		name  string
		after time.Duration
		ev    event
	}
	for _, tt := range []struct {
		name   string
		start  Lease
		policy OnConflict
		margin time.Duration
		stages []stage
		want   string
	}{
		{
			name: "renews at a third", start: held,
			stages: []stage{{"renewed", 0, renewed}, {"early", time.Hour, tick}, {"due", 7 * time.Hour, tick}},
			want: `renewed: valid wait 7h36m0s
early: valid wait 6h36m0s
due: valid renew
`,
		},
		{
			name: "a margin shortens", start: held, margin: 23 * time.Hour,
			stages: []stage{{"renewed", 0, renewed}},
			want:   "renewed: valid wait 57m0s\n",
		},
		{
			name: "a margin does not lengthen", start: held, margin: time.Hour,
			stages: []stage{{"renewed", 0, renewed}},
			want:   "renewed: valid wait 7h36m0s\n",
		},
		{
			name: "store away and back", start: held,
			stages: []stage{
				{"renewed", 0, renewed},
				{"due", 8 * time.Hour, tick},
				{"failed", 10 * time.Second, failed},
				{"due", time.Second, tick},
				{"failed", 10 * time.Second, failed},
				{"renewed", time.Second, renewed},
			},
			want: `renewed: valid wait 7h36m0s
due: valid renew
failed: degraded wait 375ms (down)
due: degraded renew (down)
failed: degraded wait 750ms (down)
renewed: valid wait 7h36m0s
`,
		},
		{
			name: "past its time", start: held,
			stages: []stage{
				{"renewed", 0, renewed},
				{"failed", 23*time.Hour + 59*time.Minute + 59*time.Second + 900*time.Millisecond, failed},
				{"expired", 100 * time.Millisecond, tick},
				{"due", time.Second, tick},
				{"failed", 0, failed},
				{"renewed", time.Hour, renewed},
			},
			want: `renewed: valid wait 7h36m0s
failed: degraded wait 100ms (down)
expired: unproven wait 275ms (down)
due: unproven renew (down)
failed: unproven wait 750ms (down)
renewed: valid wait 7h36m0s
`,
		},
		{
			name: "slept past its time", start: held,
			stages: []stage{{"renewed", 0, renewed}, {"awake", 30 * time.Hour, tick}, {"lost", 0, lost}},
			want: `renewed: valid wait 7h36m0s
awake: unproven renew (the lease's time is over)
lost: lost look (lease was lost)
`,
		},
		{
			name: "a reservation does not expire", start: bare,
			stages: []stage{{"renewed", 0, event{kind: evRenewed, lease: bare}}, {"failed", 30 * time.Hour, failed}, {"due", 30 * time.Hour, tick}},
			want: `renewed: valid wait 7h36m0s
failed: degraded wait 375ms (down)
due: degraded renew (down)
`,
		},
		{
			name: "deleted and created again", start: held,
			stages: []stage{{"renewed", 0, renewed}, {"nudge", time.Minute, event{kind: evNudge}}, {"lost", 0, lost}, {"absent", 0, event{kind: evAbsent}}, {"created", 0, created}},
			want: `renewed: valid wait 7h36m0s
nudge: valid renew
lost: lost look (lease was lost)
absent: lost create (lease was lost)
created: valid wait 7h36m0s
`,
		},
		{
			name: "overwritten and taken back", start: held,
			stages: []stage{{"lost", 0, lost}, {"ours", 0, event{kind: evOurs, lease: old}}, {"renewed", 0, event{kind: evRenewed, lease: old}}, {"updated", 0, event{kind: evUpdated, lease: held}}, {"renewed", 0, renewed}},
			want: `lost: lost look (lease was lost)
ours: lost renew (lease was lost)
renewed: valid update
updated: valid renew
renewed: valid wait 7h36m0s
`,
		},
		{
			name: "our own write whose answer was lost", start: held,
			stages: []stage{{"lost", 0, lost}, {"ours", 0, event{kind: evOurs, lease: held}}, {"renewed", 0, renewed}},
			want: `lost: lost look (lease was lost)
ours: lost renew (lease was lost)
renewed: valid wait 7h36m0s
`,
		},
		{
			name: "races that do not end slow down", start: held,
			stages: []stage{{"lost", 0, lost}, {"lost", 0, lost}, {"lost", 0, lost}, {"lost", 0, lost}, {"early", time.Second, tick}, {"due", 4 * time.Second, tick}},
			want: `lost: lost look (lease was lost)
lost: lost look (lease was lost)
lost: lost look (lease was lost)
lost: lost wait 6s (lease was lost)
early: lost wait 5s (lease was lost)
due: lost wait 1s (lease was lost)
`,
		},
		{
			name: "conflict: renumber", start: held,
			stages: []stage{
				{"lost", 0, lost},
				{"taken", 0, event{kind: evTaken, err: errors.New("node b holds it")}},
				{"exhausted", 0, event{kind: evFailed, err: errors.New("full")}},
				{"due", 10 * time.Second, tick},
				{"taken", 0, event{kind: evTaken, err: errors.New("node b holds it")}},
				{"created", 0, created},
			},
			want: `lost: lost look (lease was lost)
taken: conflict renumber (node b holds it)
exhausted: conflict wait 750ms (full)
due: conflict look (full)
taken: conflict renumber (node b holds it)
created: valid wait 7h36m0s
`,
		},
		{
			name: "conflict: fence until it is free", start: held, policy: Fence,
			stages: []stage{
				{"lost", 0, lost},
				{"taken", 0, event{kind: evTaken, err: errors.New("node b holds it")}},
				{"nudge", 0, event{kind: evNudge}},
				{"absent", 0, event{kind: evAbsent}},
				{"raced", 0, event{kind: evLost, err: ErrTaken}},
				{"absent", 0, event{kind: evAbsent}},
				{"created", 0, created},
			},
			want: `lost: lost look (lease was lost)
taken: conflict wait 750ms (node b holds it)
nudge: conflict look (node b holds it)
absent: conflict create (node b holds it)
raced: conflict look (subnet is taken)
absent: conflict create (subnet is taken)
created: valid wait 7h36m0s
`,
		},
		{
			name: "no config", start: held,
			stages: []stage{{"lost", 0, lost}, {"blocked", 0, event{kind: evBlocked, err: ErrNoConfig}}, {"due", time.Second, tick}},
			want: `lost: lost look (lease was lost)
blocked: lost wait 750ms (no network config)
due: lost look (no network config)
`,
		},
		{
			name: "other attributes", start: old,
			stages: []stage{
				{"renewed", 0, before},
				{"failed", 0, failed},
				{"due", time.Second, tick},
				{"renewed", 0, before},
				{"failed", 0, failed},
				{"due", time.Second, tick},
				{"renewed", 0, before},
				{"updated", 0, event{kind: evUpdated, lease: held}},
			},
			want: `renewed: valid update
failed: degraded wait 375ms (down)
due: degraded renew (down)
renewed: degraded update (down)
failed: degraded wait 750ms (down)
due: degraded renew (down)
renewed: degraded update (down)
updated: valid renew
`,
		},
		{
			name: "an update gives no time", start: held,
			stages: []stage{
				{"renewed", 0, renewed},
				{"asked", 7 * time.Hour, event{kind: evOurs, lease: asked3}},
				{"updated", 0, event{kind: evUpdated, lease: held}},
				{"failed", 17*time.Hour - 100*time.Millisecond, failed},
				{"expired", 100 * time.Millisecond, tick},
			},
			want: `renewed: valid wait 7h36m0s
asked: valid update
updated: valid renew
failed: degraded wait 100ms (down)
expired: unproven wait 275ms (down)
`,
		},
		{
			name: "disputed: silence", start: held,
			stages: []stage{
				{"lost", 0, lost},
				{"disputed", 0, event{kind: evDisputed, lease: elsewhere, err: errDouble}},
				{"challenged", 0, event{kind: evChallenged, lease: challenged}},
				{"nudge", time.Second, event{kind: evNudge}},
				{"unchanged", 0, event{kind: evDisputed, lease: challenged, err: errDouble}},
				{"due", 2 * time.Second, tick},
				{"unchanged", 0, event{kind: evDisputed, lease: challenged, err: errDouble}},
				{"updated", 0, event{kind: evUpdated, lease: held}},
				{"renewed", 0, renewed},
			},
			want: `lost: lost look (lease was lost)
disputed: lost challenge (a double)
challenged: lost wait 3s (a double)
nudge: lost look (a double)
unchanged: lost wait 2s (a double)
due: lost look (a double)
unchanged: lost update (a double)
updated: valid renew
renewed: valid wait 7h36m0s
`,
		},
		{
			name: "disputed: answered", start: held,
			stages: []stage{
				{"disputed", 0, event{kind: evDisputed, lease: elsewhere, err: errDouble}},
				{"challenged", 0, event{kind: evChallenged, lease: challenged}},
				{"answered", time.Second, event{kind: evDisputed, lease: answered, err: errDouble}},
			},
			want: `disputed: lost challenge (a double)
challenged: lost wait 3s (a double)
answered: ended stop (a double)
`,
		},
		{
			name: "disputed: in a restored store another write has our revision", start: held,
			stages: []stage{
				{"disputed", 0, event{kind: evDisputed, lease: elsewhere, err: errDouble}},
				{"challenged", 0, event{kind: evChallenged, lease: challenged}},
				{"other write", 3 * time.Second, event{kind: evDisputed, lease: stranger, err: errDouble}},
			},
			want: `disputed: lost challenge (a double)
challenged: lost wait 3s (a double)
other write: lost challenge (a double)
`,
		},
		{
			name: "disputed: the takeover comes too late", start: held,
			stages: []stage{
				{"disputed", 0, event{kind: evDisputed, lease: elsewhere, err: errDouble}},
				{"challenged", 0, event{kind: evChallenged, lease: challenged}},
				{"unchanged", 3 * time.Second, event{kind: evDisputed, lease: challenged, err: errDouble}},
				{"lost", 0, lost},
				{"answered", 0, event{kind: evDisputed, lease: answered, err: errDouble}},
			},
			want: `disputed: lost challenge (a double)
challenged: lost wait 3s (a double)
unchanged: lost update (a double)
lost: lost look (lease was lost)
answered: ended stop (a double)
`,
		},
		{
			name: "disputed: the question may be in the key or not", start: held,
			stages: []stage{
				{"disputed", 0, event{kind: evDisputed, lease: elsewhere, err: errDouble}},
				{"failed", 0, failed},
				{"due", time.Second, tick},
				{"asked", 0, event{kind: evDisputed, lease: challenged, err: errDouble}},
				{"lost", 0, lost},
				{"ours", 0, event{kind: evOurs, lease: held}},
				{"renewed", 0, renewed},
			},
			want: `disputed: lost challenge (a double)
failed: lost wait 375ms (down)
due: lost look (down)
asked: lost challenge (a double)
lost: lost look (lease was lost)
ours: lost renew (lease was lost)
renewed: valid wait 7h36m0s
`,
		},
		{
			name: "disputed: somebody else asks already", start: held,
			stages: []stage{
				{"disputed", 0, event{kind: evDisputed, lease: asked3, err: errDouble}},
				{"unchanged", 3 * time.Second, event{kind: evDisputed, lease: asked3, err: errDouble}},
				{"challenged", 0, event{kind: evChallenged, lease: challenged}},
			},
			want: `disputed: lost wait 3s (a double)
unchanged: lost challenge (a double)
challenged: lost wait 3s (a double)
`,
		},
		{
			name: "challenged ourselves: answered at once", start: held,
			stages: []stage{
				{"renewed", 0, renewed},
				{"asked", 0, event{kind: evOurs, lease: asked3}},
				{"updated", 0, event{kind: evUpdated, lease: held}},
				{"renewed", 0, renewed},
			},
			want: `renewed: valid wait 7h36m0s
asked: valid update
updated: valid renew
renewed: valid wait 7h36m0s
`,
		},
		{
			name: "a double elsewhere: silence, and an answer", start: held,
			stages: []stage{
				{"renewed", 0, renewed},
				{"double", time.Hour, event{kind: evDouble}},
				{"failed", 0, failed},
				{"due", time.Second, tick},
				{"renewed", 0, renewed},
				{"double", time.Hour, event{kind: evDouble}},
				{"settled", 3 * time.Second, event{kind: evSettled}},
				{"double", time.Hour, event{kind: evDouble}},
				{"answered", 3 * time.Second, event{kind: evFatal, err: errDouble}},
			},
			want: `renewed: valid wait 7h36m0s
double: valid settle
failed: degraded wait 375ms (down)
due: degraded renew (down)
renewed: valid wait 7h36m0s
double: valid settle
settled: valid wait 6h35m57s
double: valid settle
answered: ended stop (a double)
`,
		},
		{
			name: "superseded", start: held,
			stages: []stage{{"lost", 0, lost}, {"fatal", 0, event{kind: evFatal, err: errors.New("another daemon")}}},
			want: `lost: lost look (lease was lost)
fatal: ended stop (another daemon)
`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := script{m: machine{
				rules: rules{ttl: ttl, margin: tt.margin, policy: tt.policy},
				state: StateValid, lease: tt.start, want: mine, confirmed: true,
			}}
			for _, st := range tt.stages {
				s.step(st.name, st.after, st.ev)
			}
			if d := cmp.Diff(tt.want, s.log.String()); d != "" {
				t.Errorf("-want +got\n%s", d)
			}
		})
	}
}
