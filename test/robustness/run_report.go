package robustness

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// summarize prints what a run did and what it came to.
func summarize(w io.Writer, r *Record, all Verdicts) {
	fmt.Fprintf(w, "seed %d: %s, %d hosts, TTL %s\n", r.Seed, r.Duration.Round(time.Second), len(r.Hosts), r.TTL)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	summarizeFaults(t, r)
	events, lost, sent := 0, 0, 0
	for _, e := range r.Epochs {
		events += len(e.Events)
	}
	for _, p := range r.Pairs {
		lost += len(p.Lost)
		sent += p.Sent
	}
	fmt.Fprintf(t, "etcd\t%d epochs, %d changes\n", len(r.Epochs), events)
	fmt.Fprintf(t, "hosts\t%d samples, %d processes\n", len(r.Samples), len(r.Runs))
	fmt.Fprintf(t, "pings\t%d sent, %d lost\n", sent, lost)
	summarizeLoad(t, r)
	fmt.Fprintf(t, "after the last fault\tleased %s, ready %s, mesh %s\n", worst(r.Final.Leased), worst(r.Final.Ready), took(r.Final.Mesh))
	fmt.Fprintf(t, "excused by the machine\t%s\n", newEvidence(r, DefaultBounds(r.TTL)).muffled().Round(time.Millisecond))
	fmt.Fprintf(t, "violations\t%s\n", cmp.Or(tally(all.Violations()), "none"))
	_ = t.Flush() // It fails where w does, and then there is nobody to tell.
	summarizeVerdicts(w, all)
}

// summarizeVerdicts shows how much each validator judged.
func summarizeVerdicts(w io.Writer, all Verdicts) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "validator\tjudged\texcused\tviolations")
	for _, v := range all {
		fmt.Fprintf(t, "%s\t%d %s\t%d\t%d\n", v.Validator, v.Judged, v.Of, v.Excused, len(v.Violations))
	}
	_ = t.Flush() // As above.
}

// fullRun is how long a run of a random schedule must be for every validator to
// find something that it can judge.
const fullRun = 5 * time.Minute

// conclude is what a run of a random schedule came to: an error if there are
// violations, or if a validator was never put to the test.
func conclude(r *Record, all Verdicts) error {
	if found := all.Violations(); len(found) > 0 {
		return errors.New(Report(r, found))
	}
	if idle := all.Idle(); len(idle) > 0 && r.Duration >= fullRun {
		return fmt.Errorf("seed %d: nothing in %s could be judged by %s", r.Seed, r.Duration.Round(time.Second), strings.Join(idle, ", "))
	}
	return nil
}

// summarizeFaults counts them by kind.
func summarizeFaults(t io.Writer, r *Record) {
	done, refused := map[FaultKind]int{}, map[FaultKind]int{}
	for _, f := range r.Faults {
		done[f.Kind]++
		if f.Err != "" {
			refused[f.Kind]++
		}
	}
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(done)) {
		part := fmt.Sprintf("%d %s", done[kind], kind)
		if refused[kind] > 0 {
			part += fmt.Sprintf(" (%d refused)", refused[kind])
		}
		parts = append(parts, part)
	}
	fmt.Fprintf(t, "faults\t%s\n", strings.Join(parts, ", "))
}

// summarizeLoad shows the most that a host cost.
func summarizeLoad(t io.Writer, r *Record) {
	if len(r.Load) == 0 || r.Duration == 0 {
		return
	}
	most := func(of func(Load) float64) float64 {
		return of(slices.MaxFunc(r.Load, func(a, b Load) int { return cmp.Compare(of(a), of(b)) })) / r.Duration.Minutes()
	}
	fmt.Fprintf(t, "at most, per host and minute\t%.0f requests to etcd, %.1f s of CPU, %.0f log lines\n",
		most(func(l Load) float64 { return float64(l.Requests) }),
		most(func(l Load) float64 { return l.CPU.Seconds() }),
		most(func(l Load) float64 { return float64(l.LogLines) }))
}

// worst is the longest time of all hosts.
func worst(times map[string]time.Duration) string {
	var longest time.Duration
	for _, d := range times {
		if d < 0 {
			return took(d)
		}
		longest = max(longest, d)
	}
	return took(longest)
}
