package storm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page"
)

// Report is what a run found. Either half may be missing.
type Report struct {
	Machine machine.Description `json:"machine"`
	Phases  []Phase             `json:"phases,omitempty"`
	// Memory is what the crowd's etcd had at most, in bytes.
	Memory  int64    `json:"memory,omitempty"`
	Daemons *Daemons `json:"daemons,omitempty"`
}

// section is where a run's tables go.
func section() page.Section { return page.Section{Page: "benchmarks.md", Name: "boot storms"} }

// WriteDocs puts the tables into a folder of pages.
func (r Report) WriteDocs(folder string) error {
	var text bytes.Buffer
	if err := r.Markdown(&text); err != nil {
		return fmt.Errorf("write docs: %w", err)
	}
	return section().Write(folder, text.Bytes(), nil)
}

// CheckDocs says whether WriteDocs will find its place, before a long run.
func CheckDocs(folder string) error { return section().Check(folder) }

// JSON writes everything that was found, for programs.
func (r Report) JSON(out io.Writer) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// kinds are etcd's names of the requests that have a column of their own.
func kinds() []string { return []string{"Txn", "Range", "LeaseGrant", "LeaseKeepAlive", "Watch"} }

// Markdown writes what was found as tables for people.
func (r Report) Markdown(out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s.\n\n", r.Machine)
	if r.Machine.Busy() {
		b.WriteString(page.Disturbed)
	}
	if r.Daemons != nil {
		r.Daemons.markdown(&b)
	}
	if len(r.Phases) > 0 {
		r.crowd(&b)
	}
	b.WriteString(r.claimTable())
	_, err := io.WriteString(out, b.String())
	return err
}

// Claims are what the run was to show (#6), and what it found. None is about time: an
// etcd that is slow is asked no more often.
func (r Report) Claims() []page.Claim {
	var all []page.Claim
	if d := r.Daemons; d != nil {
		who := fmt.Sprintf("%d daemons at once", d.Hosts)
		all = append(all,
			page.Claim{Title: who + ", different subnets", Found: float64(d.Subnets), Bound: page.Just(float64(d.Hosts))},
			page.Claim{Title: who + ", paths between them", Found: float64(d.Pairs), Bound: page.Just(float64(d.Hosts * (d.Hosts - 1)))},
			page.Claim{Title: who + ", requests of each until it knew all others", Found: d.Start, Bound: page.AtMost(MostRequests)})
	}
	for _, p := range r.Phases {
		if p.Start > 0 {
			who := fmt.Sprintf("%d hosts in one process at once", p.Hosts)
			all = append(all,
				page.Claim{Title: who + ", different subnets", Found: float64(p.Subnets), Bound: page.Just(float64(p.Hosts))},
				page.Claim{Title: who + ", requests of each until it knew all others", Found: p.Start, Bound: page.AtMost(MostRequests)})
		}
	}
	return all
}

// claimTable is what was wanted beside what was found.
func (r Report) claimTable() string {
	var b strings.Builder
	b.WriteString("\n| what is wanted | found | wanted |\n|---|---|---|\n")
	for _, c := range r.Claims() {
		found, wanted := c.Cells()
		fmt.Fprintf(&b, "| %s | %s | %s |\n", c.Title, found, wanted)
	}
	return b.String()
}

// untilKnown is the head of the column for how many requests a start took.
const untilKnown = "requests until it knew all others"

// head is the part of a table's head that countCells fills.
func head() string {
	return "all requests | " + strings.Join(kinds(), " | ") + " | kB sent | kB received | events | watch streams |"
}

// ruler is below a head with so many columns before it.
func ruler(before int) string {
	return strings.Repeat("|---", before+1+len(kinds())+4) + "|\n"
}

// countCells are c's figures, each divided by n.
func countCells(c Counts, n float64) string {
	cells := []float64{c.All()}
	for _, kind := range kinds() {
		cells = append(cells, c.Requests[kind])
	}
	// What etcd sends, a host receives.
	cells = append(cells, c.Received/1000, c.Sent/1000, c.Events)
	var b strings.Builder
	for _, v := range cells {
		fmt.Fprintf(&b, " %s |", page.Number(v/n))
	}
	return b.String()
}

func (d *Daemons) markdown(b *strings.Builder) {
	fmt.Fprintf(b, "| %d daemons started at once, per host until each has a path to each | %s | %s\n%s", d.Hosts, untilKnown, head(), ruler(2))
	n := float64(d.Hosts)
	fmt.Fprintf(b, "| vxlan | %s |%s %s |\n\n", page.Number(d.Start), countCells(d.Counts, n), page.Number(d.Counts.Streams/n))
	fmt.Fprintf(b, "All leased after %s, all ready after %s: %d paths from each to each; %d of %[4]d pairs of containers answer each other.\n",
		seconds(d.Leased), seconds(d.Connected), d.Pairs, d.Pings)
	fmt.Fprintf(b, "Memory: all daemons %s, the largest %s, etcd %s.\n\n", megabytes(d.Memory), megabytes(d.Largest), megabytes(d.Etcd))
}

// crowd is the table of phases: what they cost a host, and what that is per minute
// where the time was chosen.
func (r Report) crowd(b *strings.Builder) {
	fmt.Fprintf(b, "| hosts in one process, per host | hosts | took | %s | %s most requests in a second | requests per minute | commit to view, median, 99 of 100 |\n%s", untilKnown, head(), strings.TrimSuffix(ruler(4), "\n")+"---|---|---|\n")
	for _, p := range r.Phases {
		n := float64(p.Hosts)
		start, minute, delay := page.Absent, math.NaN(), page.Absent
		if p.Start > 0 {
			start = page.Number(p.Start)
		}
		if p.Steady {
			minute = p.Counts.All() / n / p.Took.Minutes()
		}
		if p.Changes > 0 {
			delay = fmt.Sprintf("%d ms, %d ms", p.P50.Milliseconds(), p.P99.Milliseconds())
		}
		fmt.Fprintf(b, "| %s | %d | %s | %s |%s %s | %s | %s | %s |\n", p.Title, p.Hosts, seconds(p.Took), start,
			countCells(p.Counts, n), page.Number(p.Counts.Streams/n), page.Number(p.Peak), page.Number(minute), delay)
	}
	if r.Memory > 0 { // nobody looked otherwise
		fmt.Fprintf(b, "\nMemory of that etcd: %s at most.\n", megabytes(r.Memory))
	}
}

func seconds(d time.Duration) string { return page.Number(d.Seconds()) + " s" }
func megabytes(n int64) string       { return page.Number(float64(n)/1e6) + " MB" }
