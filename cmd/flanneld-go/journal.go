package main

import (
	"slices"
	"sync"
	"time"
)

const (
	// journalBurst is how many lines in a row the log takes about one
	// component, journalEvery how long it is until there is room for one more.
	journalBurst = 4
	journalEvery = 30 * time.Second
	// journalMemory is how many texts of one problem are known as said.
	journalMemory = 8
)

// journal decides which reports get a line in the log. The board has the truth
// at every moment; the log has news, and what comes and goes all the time, or
// reads a little different every time, is none: etcd behind a bad link fails in
// three ways by turns, and one that breaks every watch is found and lost every
// few seconds. What is held back is not forgotten: a report is repeated in every
// round, and gets its line if it still holds when there is room.
type journal struct {
	mu     sync.Mutex
	voices map[string]*voice
}

// voice is what the log was told about one component.
type voice struct {
	// said are the texts of the problem that the log has; none: all is well.
	said  []string
	since time.Time
	// spent is how many lines were taken of the burst, as of at.
	spent int
	at    time.Duration
}

// problem reports whether the log is to have a line that a component has this
// problem, since when.
func (j *journal) problem(component, text string, since time.Time, now time.Duration) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	v := j.voice(component)
	if slices.Contains(v.said, text) || !v.room(now) {
		return false
	}
	if len(v.said) == 0 {
		v.since = since
	}
	if len(v.said) == journalMemory {
		v.said = slices.Delete(v.said, 0, 1)
	}
	v.said = append(v.said, text)
	return true
}

// recovery reports whether the log is to have a line that a component has no
// problem any more, and since when it had one.
func (j *journal) recovery(component string, now time.Duration) (since time.Time, tell bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	v := j.voice(component)
	if len(v.said) == 0 || !v.room(now) {
		return time.Time{}, false
	}
	v.said = nil
	return v.since, true
}

// voice returns what is known of a component; mu is held.
func (j *journal) voice(component string) *voice {
	if j.voices == nil {
		j.voices = map[string]*voice{}
	}
	if j.voices[component] == nil {
		j.voices[component] = &voice{}
	}
	return j.voices[component]
}

// room takes room for one line, if there is any.
func (v *voice) room(now time.Duration) bool {
	regained := int((now - v.at) / journalEvery)
	v.at += time.Duration(regained) * journalEvery
	if v.spent = max(v.spent-regained, 0); v.spent == 0 {
		v.at = now
	}
	if v.spent == journalBurst {
		return false
	}
	v.spent++
	return true
}
