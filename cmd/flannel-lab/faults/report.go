package faults

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page"
)

// Section is the place of the table in the pages.
func Section() page.Section {
	return page.Section{Page: "benchmarks.md", Name: "faults", By: "make faults"}
}

// ErrMissed: a bound was not kept, or something else was not as it should be.
var ErrMissed = errors.New("not as wanted")

// Report is what a run found.
type Report struct {
	Machine  machine.Description
	Backends []string
	Faults   []Fault
	Rounds   int
	Outage   time.Duration
	// Notes say what took part.
	Notes []string

	samples map[cell]Sample
	// lacking says, by fault, what was missing for it to be done.
	lacking map[string]string
}

// cell is where a sample stands in the table.
type cell struct{ fault, backend string }

// add keeps the worst of all rounds.
func (r *Report) add(at cell, s Sample) {
	if before, again := r.samples[at]; again {
		s = before.worse(s)
	}
	r.samples[at] = s
}

// Sample is what a fault did to a backend, at worst; not ok: it was not done.
func (r *Report) Sample(fault, backend string) (s Sample, ok bool) {
	s, ok = r.samples[cell{fault, backend}]
	return s, ok
}

// Missed names the faults and backends whose bound was not kept.
func (r *Report) Missed() []string {
	var missed []string
	for i := range r.Faults {
		f := &r.Faults[i]
		for _, backend := range r.Backends {
			s, ok := r.Sample(f.Name, backend)
			switch {
			case f.Absent(backend) != "" || r.lacking[f.Name] != "" || ok && f.Bound(backend).met(s):
			case !ok:
				missed = append(missed, fmt.Sprintf("%s, %s: not done, wanted %s", f.Name, backend, f.Bound(backend)))
			default:
				missed = append(missed, fmt.Sprintf("%s, %s: %s, wanted %s", f.Name, backend, s, f.Bound(backend)))
			}
		}
	}
	return missed
}

// Err is nil when every bound was kept, and else says which were not.
func (r *Report) Err() error {
	missed := r.Missed()
	if len(missed) == 0 {
		return nil
	}
	return fmt.Errorf("%w:\n  %s", ErrMissed, strings.Join(missed, "\n  "))
}

// WriteDocs puts the table into a folder of pages.
func (r *Report) WriteDocs(folder string) error {
	var text bytes.Buffer
	if err := r.Markdown(&text); err != nil {
		return err
	}
	return Section().Write(folder, text.Bytes(), nil)
}

// Markdown writes what was found as a table for people.
func (r *Report) Markdown(out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s.\nThe worst of %d rounds; etcd was down for %.3g s. Bold: not as wanted.\n", r.Machine, r.Rounds, r.Outage.Seconds())
	for _, note := range r.Notes {
		fmt.Fprintf(&b, "%s\n", note)
	}
	b.WriteString("\n")
	if r.Machine.Busy() {
		b.WriteString(page.Disturbed)
	}
	b.WriteString("| fault | wanted |")
	for _, backend := range r.Backends {
		fmt.Fprintf(&b, " %s |", backend)
	}
	b.WriteString("\n|---|---|" + strings.Repeat("---|", len(r.Backends)) + "\n")
	for i := range r.Faults {
		f := &r.Faults[i]
		title := f.Title
		if f.once && r.Rounds > 1 {
			title += ": once"
		}
		fmt.Fprintf(&b, "| %s | %s |", title, f.wanted(r.Backends))
		for _, backend := range r.Backends {
			fmt.Fprintf(&b, " %s |", r.text(f, backend))
		}
		b.WriteString("\n")
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// wanted names the bounds, once where they are one.
func (f *Fault) wanted(backends []string) string {
	var all []string
	for _, backend := range backends {
		if f.Absent(backend) != "" {
			continue
		}
		text := f.Bound(backend).String()
		if len(all) == 0 || all[len(all)-1] != text {
			all = append(all, text)
		}
	}
	return strings.Join(all, ", ")
}

// text is what a cell shows.
func (r *Report) text(f *Fault, backend string) string {
	if why := f.Absent(backend); why != "" {
		return page.Absent + " (" + why + ")"
	}
	s, ok := r.Sample(f.Name, backend)
	switch {
	case r.lacking[f.Name] != "":
		return "not run (" + r.lacking[f.Name] + ")"
	case !ok:
		return page.Absent
	case f.Bound(backend).met(s):
		return s.String()
	default:
		return "**" + s.String() + "**"
	}
}

// String reads as "12 lost, 65 ms, healed in 40 ms".
func (s Sample) String() string {
	text := fmt.Sprintf("%d lost", s.Lost())
	if s.Lost() > 0 {
		text += fmt.Sprintf(", %d ms", s.Gap.Milliseconds())
	}
	switch {
	case s.Received == 0 && s.Sent > 0:
		text = "all lost"
	case s.Sent == 0:
		text = "nothing sent"
	}
	if s.Healed() {
		text += fmt.Sprintf("; healed in %d ms", s.Heal.Milliseconds())
	} else {
		text += fmt.Sprintf("; not healed in %d s", int(healWithin.Seconds()))
	}
	if s.Disturbed {
		text += " (the machine dropped packets)"
	}
	if s.Wrong != "" {
		text += "; " + strings.ReplaceAll(s.Wrong, "\n", ", ")
	}
	return text
}

// The form of JSON. Times are in seconds.
type (
	jsonReport struct {
		Machine machine.Description `json:"machine"`
		Rounds  int                 `json:"rounds"`
		Outage  float64             `json:"outage"`
		Notes   []string            `json:"notes"`
		Faults  []jsonFault         `json:"faults"`
	}
	jsonFault struct {
		Name    string  `json:"name"`
		Backend string  `json:"backend"`
		Wanted  string  `json:"wanted"`
		Met     bool    `json:"met"`
		Lost    int     `json:"lost"`
		Gap     float64 `json:"gap"`
		// Heal is absent when it was not healed.
		Heal      *float64 `json:"heal,omitempty"`
		Disturbed bool     `json:"disturbed,omitempty"`
		Wrong     string   `json:"wrong,omitempty"`
	}
)

// JSON writes everything that was found, for programs.
func (r *Report) JSON(out io.Writer) error {
	j := jsonReport{Machine: r.Machine, Rounds: r.Rounds, Outage: r.Outage.Seconds(), Notes: append([]string{}, r.Notes...), Faults: []jsonFault{}}
	for i := range r.Faults {
		f := &r.Faults[i]
		for _, backend := range r.Backends {
			s, ok := r.Sample(f.Name, backend)
			if !ok {
				continue
			}
			bound := f.Bound(backend)
			row := jsonFault{
				Name: f.Name, Backend: backend, Wanted: bound.String(), Met: bound.met(s),
				Lost: s.Lost(), Gap: s.Gap.Seconds(), Disturbed: s.Disturbed, Wrong: s.Wrong,
			}
			if s.Healed() {
				heal := s.Heal.Seconds()
				row.Heal = &heal
			}
			j.Faults = append(j.Faults, row)
		}
	}
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(j)
}
