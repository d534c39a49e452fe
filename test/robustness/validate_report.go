package robustness

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

const (
	// reportEvents is how many of a key's last events a report shows.
	reportEvents = 6
	// reportAfter is how long after a violation events still have to do with it:
	// they were received late, or show how it went on.
	reportAfter = time.Second
	// reportValue is how much of a value fits into a line.
	reportValue = 240
)

// Report tells people what is wrong with r: every violation in the order of time,
// with the rule at its validator's first, the faults that were active, and the
// last events of the keys concerned.
func Report(r *Record, found []Violation) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s in a run of %s (seed %d, TTL %s, %d hosts, %d faults)\n",
		count(len(found), "violation"), r.Duration.Round(time.Millisecond), r.Seed, r.TTL, len(r.Hosts), len(r.Faults))
	rules := map[string]string{}
	for _, v := range Validators(DefaultBounds(r.TTL)) {
		rules[v.Name] = v.Property
	}
	sorted := slices.Clone(found)
	slices.SortStableFunc(sorted, func(a, b Violation) int { return cmp.Compare(a.At, b.At) })
	for i, v := range sorted {
		fmt.Fprintf(&b, "\n%d. %v\n", i+1, v)
		if rule, ok := rules[v.Validator]; ok {
			fmt.Fprintf(&b, "   rule: %s\n", rule)
			delete(rules, v.Validator)
		}
		for _, f := range r.Faults {
			if f.From <= v.At && (f.Until < f.From || v.At <= f.Until+DefaultBounds(r.TTL).Grace) {
				fmt.Fprintf(&b, "   fault: %s\n", f.describe())
			}
		}
		for _, key := range v.Keys {
			r.describeKey(&b, key, v.At)
		}
	}
	if len(found) > 0 {
		fmt.Fprintf(&b, "\nby validator: %s\n", tally(found))
	}
	return b.String()
}

// count words a number of things.
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// tally counts violations by their validators, sorted by name.
func tally(found []Violation) string {
	counts := map[string]int{}
	for _, v := range found {
		counts[v.Validator]++
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, counts[name]))
	}
	return strings.Join(parts, ", ")
}

// describe is a fault in a line.
func (f Fault) describe() string {
	when := fmt.Sprintf("at %s", f.From.Round(time.Millisecond))
	switch {
	case f.Until < f.From:
		when += ", never healed"
	case f.Until > f.From:
		when += fmt.Sprintf(" to %s", f.Until.Round(time.Millisecond))
	}
	parts := []string{string(f.Kind), when}
	switch {
	case f.Every:
		parts = append(parts, "every host")
	case len(f.Hosts) > 0:
		parts = append(parts, strings.Join(f.Hosts, " "))
	}
	if len(f.Unreachable) > 0 {
		parts = append(parts, "etcd out of reach of "+strings.Join(f.Unreachable, " "))
	}
	if f.Detail != "" {
		parts = append(parts, f.Detail)
	}
	if f.Err != "" {
		parts = append(parts, "failed: "+f.Err)
	}
	return strings.Join(parts, ", ")
}

// describeKey writes the last events of a key before a time.
func (r *Record) describeKey(b *strings.Builder, key string, at time.Duration) {
	var lines []string
	for i, e := range r.Epochs {
		if i > 0 && e.Began <= at+reportAfter {
			lines = append(lines, fmt.Sprintf("%s: etcd's %s", e.Began.Round(time.Millisecond), e.Why))
		}
		for _, event := range slices.Concat(e.Base, e.Events) {
			if event.Key == key && event.At <= at+reportAfter {
				lines = append(lines, event.describe())
			}
		}
	}
	fmt.Fprintf(b, "   %s:\n", key)
	if len(lines) > reportEvents {
		lines = lines[len(lines)-reportEvents:]
	}
	for _, line := range lines {
		fmt.Fprintf(b, "     %s\n", line)
	}
}

// describe is an event in a line.
func (e Event) describe() string {
	who := ""
	if e.Operator {
		who = " by the operator"
	}
	head := fmt.Sprintf("%s: revision %d", e.At.Round(time.Millisecond), e.Revision)
	if e.Deleted {
		return head + " deleted" + who
	}
	deed, lease := "put", "no lease"
	if e.Created == e.Revision {
		deed = "created"
	}
	if e.Lease != 0 {
		lease = fmt.Sprintf("lease %x", int64(e.Lease))
	}
	value := e.Value
	if len(value) > reportValue {
		value = value[:reportValue] + "..."
	}
	return fmt.Sprintf("%s %s%s, %s: %s", head, deed, who, lease, value)
}
