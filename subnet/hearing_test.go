package subnet

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestHearing(t *testing.T) {
	const second, minute, hour, day = time.Second, time.Minute, time.Hour, 24 * time.Hour
	type word struct {
		at time.Duration
		// every: it is an answer to who asks so often.
		every time.Duration
	}
	for _, tt := range []struct {
		name  string
		ttl   time.Duration
		words []word
		at    time.Duration
		want  bool
	}{
		{"begins", day, nil, 0, false},
		{"silent for less than half of the TTL", day, nil, 12*hour - 1, false},
		{"silent for half of the TTL", day, nil, 12 * hour, true},
		{"heard in between", day, []word{{at: 11 * hour}}, 22 * hour, false},
		{"a minute after", day, []word{{at: 13 * hour}}, 13*hour + minute - 1, true},
		{"more than a minute after", day, []word{{at: 13 * hour}}, 13*hour + minute, false},
		{"no longer than a TTL after", 20 * second, []word{{at: 16 * second}}, 36*second - 1, true},
		{"a TTL after", 20 * second, []word{{at: 16 * second}, {at: 26 * second}}, 36 * second, false},
		{"more words do not end it", day, []word{{at: 13 * hour}, {at: 13*hour + second}}, 13*hour + 2*second, true},
		{"silent again", day, []word{{at: 13 * hour}}, 25 * hour, true},

		// Where a watch is all that is heard, its 10 s are what counts.
		{"seconds, only a watch", 6 * second, []word{{at: 10 * second}}, 24 * second, false},
		{"seconds, only a watch, silent", 6 * second, []word{{at: 10 * second}}, 25 * second, true},
		{"seconds, renewed", 6 * second, []word{{at: 10 * second, every: 2 * second}}, 13*second - 1, false},
		{"seconds, renewed, silent", 6 * second, []word{{at: 10 * second, every: 2 * second}}, 13 * second, true},
		{"seconds, but a lease of a day", 6 * second, []word{{at: 10 * second, every: 8 * hour}}, 25*second - 1, false},
		{"seconds, but a lease of a day, silent", 6 * second, []word{{at: 10 * second, every: 8 * hour}}, 25 * second, true},
		{"a day, but a lease of seconds", day, []word{{at: 10 * second, every: 2 * second}}, 12 * hour, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHearing(tt.ttl, 0)
			h.heard(0)
			for _, w := range tt.words {
				if w.every > 0 {
					h.answered(w.at, w.every)
				} else {
					h.heard(w.at)
				}
			}
			if got := h.wary(tt.at); got != tt.want {
				t.Errorf("wary at %s: %t, want %t", tt.at, got, tt.want)
			}
		})
	}
}

// What an earlier process did not hear counts, until this one hears for itself how
// often the store speaks.
func TestHearingOfAnEarlierProcess(t *testing.T) {
	for _, tt := range []struct {
		name     string
		ttl, ago time.Duration
		// at is when this process hears the store, later how much later we ask.
		at, later time.Duration
		want      bool
	}{
		{"heard until it ended", 24 * time.Hour, time.Second, 0, 0, false},
		{"not for half of a TTL", 24 * time.Hour, 12 * time.Hour, 0, 0, true},
		{"not for half of a TTL, a minute after", 24 * time.Hour, 12 * time.Hour, 0, time.Minute, false},
		{"not for half of a TTL, by both together", 24 * time.Hour, 11 * time.Hour, time.Hour, 0, true},
		{"not for a while, by both together", 24 * time.Hour, 11 * time.Hour, time.Hour - 1, 0, false},
		{"seconds", 6 * time.Second, 3 * time.Second, 0, 0, true},
		{"less", 6 * time.Second, 3*time.Second - 1, 0, 0, false},
		{"less, and then a watch's 10 s", 6 * time.Second, time.Second, time.Second, 12 * time.Second, false},
		{"less, and then nothing", 6 * time.Second, time.Second, time.Second, 15 * time.Second, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHearing(tt.ttl, -tt.ago)
			h.heard(tt.at)
			if got := h.wary(tt.at + tt.later); got != tt.want {
				t.Errorf("wary: %t, want %t", got, tt.want)
			}
			if got := h.ago(tt.at + tt.later); got != tt.later {
				t.Errorf("not heard for %s, want %s", got, tt.later)
			}
		})
	}
}

// A store that is well never counts as silent, whatever the TTL is, that of the lease
// that is kept alive, and how seldom both are heard.
func TestHearingOfAQuietStore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ttls := rapid.Custom(func(t *rapid.T) time.Duration {
			return time.Duration(rapid.SampledFrom([]int64{2e9, 5e9, 30e9, 60e9, 3600e9, 86400e9}).Draw(t, "ttl"))
		})
		h := newHearing(ttls.Draw(t, "ours"), 0)
		h.heard(0)
		m := machine{rules: rules{ttl: h.ttl}}
		m.lease.TTL = ttls.Draw(t, "of the lease")
		if rapid.Bool().Draw(t, "reservation") {
			m.lease.TTL = 0
		}
		kept := rapid.Bool().Draw(t, "has a lease")
		// What is on its way takes up to a tenth more.
		after := func(d time.Duration) time.Duration {
			return time.Duration(rapid.Float64Range(1, 1.1).Draw(t, "late") * float64(d))
		}
		watched, renewed := after(spokenEvery), after(m.interval(0))
		if kept {
			h.answered(0, m.ttlOr()/3)
		}
		for range 100 {
			renewal := kept && renewed < watched
			now := watched
			if renewal {
				now = renewed
			}
			if h.wary(now) {
				t.Fatalf("silent at %s", now)
			}
			if renewal {
				h.answered(now, m.ttlOr()/3)
				renewed = now + after(m.interval(0))
			} else {
				h.heard(now)
				watched = now + after(spokenEvery)
			}
		}
	})
}
