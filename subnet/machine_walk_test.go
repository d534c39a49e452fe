package subnet

import (
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Whatever happens, in any order: only the store's word makes a lease valid, a
// lease past its time does not pass for valid, and failures never make the
// machine spin.
func TestMachineRandomWalk(t *testing.T) {
	const ttl = time.Minute
	answers := map[deed][]eventKind{
		doWait:      {evTick, evNudge, evWant, evOurs, evLost, evDouble},
		doRenew:     {evRenewed, evLost, evFailed},
		doLook:      {evAbsent, evOurs, evDisputed, evTaken, evBlocked, evFailed},
		doCreate:    {evCreated, evLost, evFailed},
		doUpdate:    {evUpdated, evLost, evFailed},
		doChallenge: {evChallenged, evLost, evFailed},
		doSettle:    {evSettled, evFailed},
		doRenumber:  {evCreated, evUpdated, evLost, evFailed},
	}
	rapid.Check(t, func(t *rapid.T) {
		m := machine{
			rules: rules{ttl: ttl, policy: rapid.SampledFrom([]OnConflict{Renumber, Fence, Keep}).Draw(t, "policy")},
			state: StateValid, lease: Lease{ID: 1, TTL: ttl}, do: doRenew,
		}
		now, granted, busy := time.Duration(0), time.Duration(0), 0
		// What others' key reads, and since when: our challenge, or its answer.
		elsewhere, since := Lease{ID: 1, Modified: 1, Attrs: Attrs{Owner: "n", Instance: "elsewhere"}}, time.Duration(0)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			before := m
			ev := event{kind: rapid.SampledFrom(answers[m.do]).Draw(t, "event"), sent: now, err: errors.New("x")}
			passed := time.Duration(0)
			if m.do == doWait {
				passed = max(0, rapid.SampledFrom([]time.Duration{m.wake() - now, 10 * time.Second, 2 * ttl}).Draw(t, "passes"))
				busy = 0
			} else {
				busy++
			}
			now += passed
			id := LeaseID(rapid.IntRange(0, 2).Draw(t, "lease"))
			ev.lease = Lease{ID: id}
			switch ev.kind {
			case evRenewed, evCreated:
				if id != 0 {
					ev.lease.TTL = ttl
				}
				granted = ev.sent
			case evDisputed:
				if rapid.Bool().Draw(t, "changes") {
					elsewhere.Modified++
					elsewhere.Attrs.Challenge.Instance = rapid.SampledFrom([]string{"", "third"}).Draw(t, "asked by")
					elsewhere.Attrs.Instance = rapid.SampledFrom([]string{"elsewhere", "another"}).Draw(t, "of")
					since = now
				}
				ev.lease = elsewhere
			case evChallenged:
				elsewhere.Modified++
				elsewhere.Attrs.Challenge, since = challengeBy(m.want), now
				ev.lease = elsewhere
			default:
			}
			if ev.kind != evDisputed && ev.kind != evChallenged && rapid.Bool().Draw(t, "as wanted") {
				ev.lease.Attrs = m.want
			}
			m = m.step(input{event: ev, now: now, random: rapid.Float64Range(0, 0.999).Draw(t, "random")})
			if m.state == StateEnded {
				if before.dispute.lease.Attrs.Challenge != challengeBy(m.want) || !ev.lease.Attrs.Challenge.IsZero() || ev.lease.Attrs.Instance != before.dispute.lease.Attrs.Instance {
					t.Fatalf("ended by %+v after %+v", ev.lease, before.dispute)
				}
				return
			}
			if ev.kind == evDisputed && m.do == doUpdate && (now < since+ChallengeWait || elsewhere.Attrs.Challenge != challengeBy(m.want)) {
				t.Fatalf("takes over %+v after %s", elsewhere, now-since)
			}
			if m.state == StateValid && before.state != StateValid && ev.kind != evRenewed && ev.kind != evCreated && ev.kind != evUpdated {
				t.Fatalf("event %d made %s valid", ev.kind, before.state)
			}
			if m.state == StateValid && m.do == doWait && !m.lease.Reservation() && now >= granted+ttl {
				t.Fatalf("valid %s after the store granted %s", now-granted, ttl)
			}
			if m.do == doWait && m.wake() <= now {
				t.Fatalf("waits until %s at %s", m.wake(), now)
			}
			if m.state != before.state && m.since != now || m.state == before.state && m.since != before.since {
				t.Fatalf("since %s, from %s to %s at %s", m.since, before.state, m.state, now)
			}
			// Updates that succeed with the wrong content are no fault of the
			// machine; failures are what must slow it down.
			if busy > 40 && m.failures > 20 {
				t.Fatalf("%d deeds without a pause", busy)
			}
		}
	})
}
