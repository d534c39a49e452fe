package udp

import (
	"testing"

	"pgregory.net/rapid"
)

// looksInVain counts how often a reader looks again before it sleeps, if there is never
// anything.
func (l *linger) looksInVain() int {
	for n := 0; ; n++ {
		if !l.again() {
			return n
		}
	}
}

// What comes seldom is lingered for less and less often.
func TestLingerGivesUp(t *testing.T) {
	var (
		l    linger
		want int // sleeps without lingering
	)
	for range 10 {
		if n := l.looksInVain(); n != lingerLooks {
			t.Fatalf("looked %d times, want %d", n, lingerLooks)
		}
		want = min(2*want+1, lingerSkips)
		for i := range want {
			if n := l.looksInVain(); n != 0 {
				t.Fatalf("looked %d times before sleep %d of %d", n, i+1, want)
			}
		}
	}
}

// Who found something by it lingers again, and has forgotten what was in vain.
func TestLingerGoesOn(t *testing.T) {
	var l linger
	for range 100 {
		for range 2 {
			if !l.again() {
				t.Fatal("sleeps although it found something the last time")
			}
		}
		l.found()
	}
	for range 5 { // fails, and skips
		for l.looksInVain() != 0 {
		}
	}
	for !l.again() {
	}
	l.found()
	if n := l.looksInVain(); n != lingerLooks {
		t.Fatalf("looked %d times after it found something, want %d", n, lingerLooks)
	}
	if l.again() || !l.again() {
		t.Error("what was in vain before it found something still counts")
	}
}

// Whatever is found when, of many looks in a row none goes on for ever, and being
// woken is no success of lingering.
func TestLingerIsBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l linger
		for range rapid.IntRange(1, 200).Draw(t, "rounds") {
			for range rapid.IntRange(0, 3).Draw(t, "found at once") {
				before := l
				if l.found(); l.looks != 0 || before.looks == 0 && l != before {
					t.Fatalf("%+v after %+v", l, before)
				}
			}
			at := rapid.IntRange(0, 2*lingerLooks).Draw(t, "found after")
			for n := 0; n < at && l.again(); n++ {
				if n > lingerLooks {
					t.Fatal("never sleeps")
				}
			}
		}
	})
}
