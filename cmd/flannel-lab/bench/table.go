package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page"
)

// Markdown writes what was found as tables for people.
func (r Report) Markdown(out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s.\nRounds: %d, with %.3g s for a measurement. A figure is their median, in parentheses the median of its\nratios to %s in the same round. TCP's congestion control: %s.\n\n",
		r.Machine, len(r.Rounds), r.Seconds, Reference, r.Congestion)
	if r.Machine.Busy() {
		b.WriteString(page.Disturbed)
	}
	b.WriteString("| |")
	for _, v := range r.Variants {
		fmt.Fprintf(&b, " %s |", v.Title)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(r.Variants)) + "\n")
	for _, f := range Figures() {
		fmt.Fprintf(&b, "| %s, %s |", f.Title, f.Unit)
		for _, v := range r.Variants {
			fmt.Fprintf(&b, " %s |", r.cell(point{v.Name, f.Key}))
		}
		b.WriteString("\n")
	}
	if lines := r.claimLines(); lines != "" {
		b.WriteString("\n| what is wanted of udp | found | wanted | because |\n|---|---|---|---|\n" + lines)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// cell reads as "12.3 (0.55)".
func (r Report) cell(at point) string {
	text := page.Number(page.Median(r.values(at)))
	if at.variant == Reference || text == page.Absent {
		return text
	}
	if ratio := page.Number(page.Median(r.toReference(at))); ratio != page.Absent {
		text += " (" + ratio + ")"
	}
	return text
}

// claimLines are the rows of what was measured of the claims.
func (r Report) claimLines() string {
	var b strings.Builder
	for i, c := range r.Claims() {
		if c.Measured() {
			found, wanted := c.Cells()
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", c.Title, found, wanted, claims()[i].why)
		}
	}
	return b.String()
}

// The form of JSON.
type (
	jsonReport struct {
		Machine    machine.Description `json:"machine"`
		Rounds     int                 `json:"rounds"`
		Seconds    float64             `json:"seconds"`
		Congestion string              `json:"congestion_control"`
		Variants   []jsonVariant       `json:"variants"`
		Claims     []jsonClaim         `json:"claims"`
	}
	jsonVariant struct {
		Name    string       `json:"name"`
		Figures []jsonFigure `json:"figures"`
	}
	jsonFigure struct {
		Key    string    `json:"key"`
		Unit   string    `json:"unit"`
		Median float64   `json:"median"`
		Ratio  *float64  `json:"ratio,omitempty"` // to the reference
		Rounds []float64 `json:"rounds"`
	}
	jsonClaim struct {
		Title string  `json:"title"`
		Found float64 `json:"found"`
		Bound string  `json:"bound"`
		Why   string  `json:"why"`
		Holds bool    `json:"holds"`
	}
)

// JSON writes everything that was found, for programs.
func (r Report) JSON(out io.Writer) error {
	j := jsonReport{Machine: r.Machine, Rounds: len(r.Rounds), Seconds: r.Seconds, Congestion: r.Congestion, Claims: []jsonClaim{}}
	for _, v := range r.Variants {
		variant := jsonVariant{Name: v.Name}
		for _, f := range Figures() {
			at := point{v.Name, f.Key}
			values := r.values(at)
			if len(values) == 0 {
				continue
			}
			figure := jsonFigure{Key: f.Key, Unit: f.Unit, Median: page.Median(values), Rounds: values}
			if ratio := page.Median(r.toReference(at)); !math.IsNaN(ratio) {
				figure.Ratio = &ratio
			}
			variant.Figures = append(variant.Figures, figure)
		}
		j.Variants = append(j.Variants, variant)
	}
	for i, c := range r.Claims() {
		if c.Measured() {
			j.Claims = append(j.Claims, jsonClaim{c.Title, c.Found, c.Bound.String(), claims()[i].why, c.Holds()})
		}
	}
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(j)
}
