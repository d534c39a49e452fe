package robustness

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// An answer that takes too long is noted, with the questions that failed before it, and
// nothing else.
func TestPatient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		now := func() time.Duration { return time.Since(began) }
		takes := []time.Duration{0, time.Second, 3 * time.Second, -10 * time.Second, 2 * time.Second}
		p := patient{now: now, tooLong: 2 * time.Second, ask: func(ctx context.Context) error {
			if len(takes) == 0 {
				<-ctx.Done()
				return ctx.Err()
			}
			took := takes[0]
			takes = takes[1:]
			after(ctx, max(took, -took))
			if took < 0 {
				return errors.New("nobody is there")
			}
			return nil
		}}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		p.run(ctx)
		want := []stretch{{2 * sec, 5 * sec}, {5500 * time.Millisecond, 17550 * time.Millisecond}, {18050 * time.Millisecond, 30 * sec}}
		if !slices.Equal(p.slow, want) {
			t.Errorf("slow %v, want %v", p.slow, want)
		}
		if got, want := p.waited(stretch{4 * sec, 20 * sec}), time.Second+12050*time.Millisecond+1950*time.Millisecond; got != want {
			t.Errorf("waited for %s of 4 s to 20 s, want %s", got, want)
		}
	})
}

// A question ends with the first answer, and with its context, whoever of those that are
// asked notices first.
func TestAskAnyEnds(t *testing.T) {
	silent := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	answers := func(context.Context) error { return nil }
	for range 100 {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			asks := []func(context.Context) error{silent, silent, silent}
			if err := askAny(ctx, asks); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("nobody answers: %v, want %v", err, context.DeadlineExceeded)
			}
			began := time.Now()
			if err := askAny(t.Context(), append(asks, answers)); err != nil || time.Since(began) != 0 {
				t.Errorf("one answers at once: %v after %s", err, time.Since(began))
			}
		})
	}
}

// Etcd is starved where the run itself has done nothing that makes it slow.
func TestStarved(t *testing.T) {
	did := func(kind FaultKind, variant string) []deed {
		return []deed{{Fault: Fault{Kind: kind, From: 9 * sec, Until: 11 * sec}, variant: variant}}
	}
	for _, tc := range []struct {
		name  string
		deeds []deed
		want  []stretch
	}{
		{"nothing done", nil, []stretch{{10 * sec, 15 * sec}}},
		{"a host cut off", did(FaultCut, ""), []stretch{{10 * sec, 15 * sec}}},
		{"a follower asleep", did(FaultMemberPause, variantFollower), []stretch{{10 * sec, 15 * sec}}},
		{"a follower killed", did(FaultMemberKill, variantFollower), []stretch{{10 * sec, 15 * sec}}},
		{"a leader killed", did(FaultMemberKill, variantLeader), []stretch{{13 * sec, 15 * sec}}},
		{"a leader asleep", did(FaultMemberPause, variantLeader), []stretch{{13 * sec, 15 * sec}}},
		{"no etcd", did(FaultDown, ""), []stretch{{13 * sec, 15 * sec}}},
		{"no quorum until just before", []deed{{Fault: Fault{Kind: FaultMajority, From: 9 * sec, Until: 12 * sec}}}, nil},
	} {
		var got []stretch
		for _, d := range starved([]stretch{{10 * sec, 15 * sec}}, tc.deeds, []string{"h1", "h2"}, 2*sec) {
			got = append(got, d.stretch())
			if !d.hits("h1") || !d.hits("h2") || len(d.Hosts) > 0 {
				t.Errorf("%s: it touches %v and keeps %v from etcd", tc.name, d.Hosts, d.Unreachable)
			}
		}
		if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(stretch{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, diff)
		}
	}
}

// Who waits for an answer at the moment waits already.
func TestPatientIsWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		p := patient{now: func() time.Duration { return time.Since(began) }, tooLong: time.Second, ask: func(ctx context.Context) error {
			<-ctx.Done()
			return nil
		}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			p.run(ctx)
		}()
		for range 3 {
			after(ctx, 900*time.Millisecond)
			want := p.now()
			if want < p.tooLong {
				want = 0
			}
			if got := p.waited(stretch{0, time.Minute}); got != want {
				t.Errorf("after %s: it waited for %s", p.now(), got)
			}
		}
		cancel()
		<-done
	})
}

// A daemon must end in the time in which the kernel answers.
func TestDeaf(t *testing.T) {
	for _, tc := range []struct {
		name string
		slow []stretch
		want bool
	}{
		{"the kernel answers", nil, false},
		{"it did not before", []stretch{{0, 10 * sec}}, false},
		{"it is silent shortly", []stretch{{11 * sec, 18 * sec}}, false},
		{"it is silent", []stretch{{5 * sec, 50 * sec}}, true},
		{"it is silent twice", []stretch{{11 * sec, 15 * sec}, {18 * sec, 22 * sec}}, true},
	} {
		tr := &trial{trialOptions: trialOptions{TTL: storyTTL}}
		tr.control.kernel = patient{slow: tc.slow, now: func() time.Duration { return time.Minute }}
		if got := tr.deaf(10 * sec); got != tc.want {
			t.Errorf("%s: deaf %t", tc.name, got)
		}
	}
}
