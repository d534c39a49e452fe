package robustness

import (
	"fmt"
	"slices"
	"time"
)

// boundedLoad looks at what each daemon used over the run, and in every window of
// it: what is quiet on the whole may be a busy loop for a while.
func (e *evidence) boundedLoad() []Violation {
	var found []Violation
	for _, l := range e.Load {
		total := Cost{At: e.Duration, Requests: l.Requests, CPU: l.CPU, LogLines: l.LogLines}
		for _, u := range e.spent(l.Host, Cost{}, total) {
			if u.much > u.budget {
				found = append(found, u.violation())
			}
		}
		found = append(found, e.busy(l)...)
	}
	return found
}

// busy looks at all windows of a course. Those that overlap and have the same
// fault are one violation.
func (e *evidence) busy(l Load) []Violation {
	var found []Violation
	told := map[string]time.Duration{}
	end := 0
	for _, from := range l.Course {
		for end < len(l.Course) && l.Course[end].At-from.At < e.bounds.Window {
			end++
		}
		if end == len(l.Course) {
			break
		}
		// A daemon that waits for the kernel tells old figures, and then those of the
		// whole time at once.
		if !e.count(!e.wasMute(stretch{from.At - e.bounds.Lag, l.Course[end].At})) {
			continue
		}
		for _, u := range e.spent(l.Host, from, l.Course[end]) {
			until, before := told[u.what]
			if u.much > u.budget && (!before || u.from >= until) {
				found = append(found, u.violation())
				told[u.what] = u.until
			}
		}
	}
	return found
}

// usage is how much of something a host used in a time.
type usage struct {
	stretch
	host, what     string
	much, budget   float64
	faults, starts int
}

func (u usage) violation() Violation {
	return Violation{At: u.until, Host: u.host, Message: fmt.Sprintf("%.1f %s in the %s since %s, with %s and %s: at most %.1f",
		u.much, u.what, (u.until - u.from).Round(time.Millisecond), u.from.Round(time.Millisecond), count(u.faults, "fault"), count(u.starts, "start"), u.budget)}
}

// spent is what a host used between two times, and could.
func (e *evidence) spent(host string, from, until Cost) []usage {
	u := usage{stretch: stretch{from.At, until.At}, host: host, faults: e.strains(host, from.At, until.At)}
	for _, r := range e.Runs {
		if r.Host == host && from.At <= r.From+e.bounds.Lag && r.From <= until.At {
			u.starts++
		}
	}
	of := func(what string, much float64, b Budget) usage {
		u.what, u.much, u.budget = what, much, b.of(u.until-u.from, u.faults, u.starts)
		return u
	}
	return []usage{
		of("requests to etcd", float64(until.Requests-from.Requests), e.bounds.Requests),
		of("seconds of CPU", (until.CPU - from.CPU).Seconds(), e.bounds.CPU),
		of("log lines", float64(until.LogLines-from.LogLines), e.bounds.LogLines),
	}
}

// strains counts the faults of the schedule that were done to a host, or to what
// all of them have in common, and were not over for Heal. What follows from others
// does not count again.
func (e *evidence) strains(host string, from, until time.Duration) int {
	derived := []FaultKind{faultMachine, faultSilence, faultLoss, faultBackup}
	n := 0
	for _, f := range e.Faults {
		if slices.Contains(derived, f.Kind) {
			continue
		}
		common := len(f.To) == 0
		about := common || slices.Contains(f.To, host) || slices.Contains(f.Hosts, host) || slices.Contains(f.Unreachable, host)
		recovered := f.Until >= f.From && f.Until+e.bounds.Heal < from
		if about && f.From <= until && !recovered {
			n++
		}
	}
	return n
}
