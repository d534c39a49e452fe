package parts

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page"
)

// The units of BenchmarkPeers and BenchmarkStreamAmongPeers in backend/udp.
const (
	unitOne   = "ns/frame-1-peers"
	unitMany  = "ns/frame-10000-peers"
	unitRatio = "ratio"
)

// mostCost is how much 10,000 peers may cost (#5).
const mostCost = 5

// row is one of the table of what many peers cost.
type row struct {
	name, title string
	// kernel is the benchmark of the same without us; "": it has no such part.
	kernel string
}

func rows() []row {
	return []row{
		{"Peers/stream", "frames of 64 KiB, peers at one address", ""},
		{"Peers/stream, addresses apart", "frames of 64 KiB, an address each", ""},
		{"Peers/small", "small packets, one endpoint for all", ""},
		{"Peers/small, endpoints apart", "small packets, an endpoint each, at one address", ""},
		{"Peers/small, endpoints apart, IPv6 within", "the same, IPv6 within", ""},
		{"Peers/small, addresses apart", "small packets, an address each", "Peers/small, addresses apart, kernel alone"},
	}
}

// titles are the words for other benchmarks, in the order of their table.
func titles() []struct{ where, name, title string } {
	return []struct{ where, name, title string }{
		{"kernel", "Peers/build 10000, nexthop objects", "FDB, neighbours and routes of 10,000 peers written, nexthop objects"},
		{"kernel", "Peers/build 10000, classic", "the same with classic gateway routes"},
		{"kernel", "Peers/nothing to do for 10000", "10,000 peers listed and compared, nothing to do"},
		{"kernel", "Peers/change one peer of 10000", "one route among 10,000 changed"},
		{"vxlan", "Apply", "one peer among 10,000 changed, all entries"},
		{"reconcile", "Diff10000", "10,000 entries compared"},
		{"subnet", "ProjectionPut/10000", "one lease among 10,000 changed in the view"},
		{"udp", "Table/change/10000", "one peer among 10,000 changed in udp's table"},
	}
}

// metric is NaN where it was not measured.
func (r Report) metric(where, name, unit string) float64 {
	for _, b := range r.Benchmarks {
		if b.Package == where && b.Name == name {
			if v, ok := b.Metrics[unit]; ok {
				return v
			}
		}
	}
	return math.NaN()
}

// peers is what a frame takes with one peer, and with 10,000, in nanoseconds.
func (r Report) peers(name string) (one, many float64) {
	return r.metric("udp", name, unitOne), r.metric("udp", name, unitMany)
}

// cost is how much more a frame to any of 10,000 peers takes than one to a single peer,
// in %, and how much of that the kernel's part is; NaN: there is none.
func (r Report) cost(of row) (all, kernel float64) {
	one, many := r.peers(of.name)
	bareOne, bareMany := r.peers(of.kernel)
	return 100 * (many - one) / one, 100 * (bareMany - bareOne) / one
}

// Claims are what the run was to show of udp (#5), and what it found.
func (r Report) Claims() []page.Claim {
	all := []page.Claim{{
		Title: "one TCP stream among 10,000 peers to one among one", Found: r.metric("udp", "StreamAmongPeers", unitRatio),
		Bound: page.AtLeast(1 - mostCost/100.0), Timed: true,
	}}
	for _, of := range rows() {
		cost, kernel := r.cost(of)
		title := "10,000 peers cost: " + of.title
		if of.kernel != "" {
			cost, title = cost-kernel, title+", without the kernel's part"
		}
		all = append(all, page.Claim{Title: title, Found: cost, Unit: "%", Bound: page.Under(mostCost), Timed: true})
	}
	return all
}

// Markdown writes what was found as tables for people.
func (r Report) Markdown(out io.Writer) error {
	_, err := io.WriteString(out, r.peersTable()+"\n"+r.partsTable()+"\n"+r.hostsTable())
	return err
}

// JSON writes everything that was found, for programs.
func (r Report) JSON(out io.Writer) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// begin is the first lines of each section.
func (r Report) begin() string {
	text := fmt.Sprintf("%s.\n\n", r.Machine)
	if r.Machine.Busy() {
		text += page.Disturbed
	}
	return text
}

func (r Report) peersTable() string {
	var b strings.Builder
	b.WriteString(r.begin() + "| sent to any of 10,000 peers | to one peer, ns | to 10,000, ns | more, % | of that the kernel's alone, % |\n|---|---|---|---|---|\n")
	for _, of := range rows() {
		one, many := r.peers(of.name)
		all, kernel := r.cost(of)
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", of.title, page.Number(one), page.Number(many), page.Number(all), page.Number(kernel))
	}
	b.WriteString("\n| what is wanted | found | wanted |\n|---|---|---|\n")
	for _, c := range r.Claims() {
		if !c.Measured() {
			continue
		}
		found, wanted := c.Cells()
		fmt.Fprintf(&b, "| %s | %s | %s |\n", c.Title, found, wanted)
	}
	return b.String()
}

func (r Report) partsTable() string {
	var b strings.Builder
	b.WriteString(r.begin() + "| what | takes | CPU | allocations |\n|---|---|---|---|\n")
	for _, t := range titles() {
		took := r.metric(t.where, t.name, "ns/op")
		cpu := r.metric(t.where, t.name, "cpu-ms/op") * 1e6
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", t.title, nanoseconds(took), nanoseconds(cpu), page.Number(r.metric(t.where, t.name, "allocs/op")))
	}
	return b.String()
}

// nanoseconds reads as "3.21 µs".
func nanoseconds(v float64) string {
	for _, u := range []struct {
		name string
		size float64
	}{{"s", 1e9}, {"ms", 1e6}, {"µs", 1e3}} {
		if v >= u.size {
			return page.Number(v/u.size) + " " + u.name
		}
	}
	if math.IsNaN(v) {
		return page.Absent
	}
	return page.Number(v) + " ns"
}

func (r Report) hostsTable() string {
	var b strings.Builder
	b.WriteString(r.begin() + "| test | what it saw |\n|---|---|\n")
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "| %s | %s |\n", n.Test, strings.ReplaceAll(n.Text, "|", "\\|"))
	}
	return b.String()
}

// sections are where the tables go, and which goes there.
func sections() []struct {
	page.Section
	table func(Report) string
} {
	return []struct {
		page.Section
		table func(Report) string
	}{
		{page.Section{Page: "benchmarks.md", Name: "peers of udp"}, Report.peersTable},
		{page.Section{Page: "benchmarks.md", Name: "parts"}, Report.partsTable},
		{page.Section{Page: "benchmarks.md", Name: "whole hosts"}, Report.hostsTable},
	}
}

// WriteDocs puts the tables into a folder of pages, each whole or not at all. What nothing
// was read of stays as it is.
func (r Report) WriteDocs(folder string) error {
	for i, s := range sections() {
		if i < 2 && len(r.Benchmarks) == 0 || i == 2 && len(r.Notes) == 0 {
			continue
		}
		if err := s.Write(folder, []byte(s.table(r)), nil); err != nil {
			return err
		}
	}
	return nil
}

// CheckDocs says whether WriteDocs will find its places, before a long run.
func CheckDocs(folder string) error {
	var errs []error
	for _, s := range sections() {
		errs = append(errs, s.Check(folder))
	}
	return errors.Join(errs...)
}
