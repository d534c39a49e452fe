package main

import (
	"fmt"
	"testing"
	"time"
)

// A journal at work: every minute's lines are few, whatever comes and goes, and
// the last word is true.
func TestJournal(t *testing.T) {
	tests := []struct {
		name string
		// text is what is wrong in a second; empty: nothing.
		text  func(second int) string
		first int // lines in the first minute at most
		later int // in each of the others
	}{
		{name: "well", text: func(int) string { return "" }},
		{name: "one problem", text: func(int) string { return "a" }, first: 1},
		{name: "by turns", text: func(s int) string { return fmt.Sprint(s % 3) }, first: 3},
		{name: "different every time", text: func(s int) string { return fmt.Sprint("attempt ", s) }, first: 6, later: 3},
		{name: "comes and goes", text: func(s int) string { return []string{"a", ""}[s%2] }, first: 6, later: 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var j journal
			start := time.Unix(1000, 0)
			last := ""
			for minute := range 10 {
				lines := 0
				for s := range 60 {
					text := tt.text(60*minute + s)
					now := time.Hour + time.Duration(60*minute+s)*time.Second
					if text == "" {
						if _, tell := j.recovery("etcd", now); tell {
							lines, last = lines+1, ""
						}
					} else if j.problem("etcd", text, start, now) {
						lines, last = lines+1, text
					}
				}
				most := tt.later
				if minute == 0 {
					most = tt.first
				}
				if lines > most {
					t.Errorf("minute %d: %d lines, want at most %d", minute+1, lines, most)
				}
				if minute == 0 && tt.first > 0 && lines == 0 {
					t.Error("nothing was said")
				}
			}
			// What holds for a while is said.
			later := 2 * time.Hour
			if last != "" {
				if _, tell := j.recovery("etcd", later); !tell {
					t.Error("the recovery is not said")
				}
			}
			if !j.problem("etcd", "at last", start, later+time.Second) || !j.problem("lease", "another", start, later+time.Second) {
				t.Error("a new problem is not said")
			}
		})
	}
}

// A recovery says since when the problem was there, through all its texts.
func TestJournalRemembersSince(t *testing.T) {
	var j journal
	start := time.Unix(1000, 0)
	now := time.Hour
	if _, tell := j.recovery("etcd", now); tell {
		t.Error("recovered from nothing")
	}
	j.problem("etcd", "a", start, now)
	j.problem("etcd", "b", start.Add(time.Minute), now+time.Minute)
	since, tell := j.recovery("etcd", now+2*time.Minute)
	if !tell || !since.Equal(start) {
		t.Errorf("since %v, %t; want %v", since, tell, start)
	}
	if !j.problem("etcd", "a", start, now+3*time.Minute) {
		t.Error("the same problem after a recovery is not said")
	}
}
