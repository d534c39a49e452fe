package scale

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
	text := r.tables()
	if r.Profile != nil {
		text += "\n" + r.Profile.markdown()
	}
	_, err := io.WriteString(out, text)
	return err
}

// begin is what stands above medians of rounds on a machine.
func begin(on machine.Description, rounds int) string {
	text := fmt.Sprintf("%s.\nRounds: %d; a figure is their median.\n\n", on, rounds)
	if on.Busy() {
		text += page.Disturbed
	}
	return text
}

// writeHead writes the head of a table: the cell above the names of its rows, with its
// blanks, then those of its columns.
func writeHead[T any](b *strings.Builder, cell string, columns []T) {
	fmt.Fprintf(b, "|%s|", cell)
	for _, c := range columns {
		fmt.Fprintf(b, " %v |", c)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(columns)) + "\n")
}

// tables are all but the profile, which has a page of its own.
func (r Report) tables() string {
	var b strings.Builder
	b.WriteString(begin(r.Machine, r.Options.Rounds))
	writeHead(&b, " peers ", r.Options.Sizes)
	for _, f := range startFigures() {
		fmt.Fprintf(&b, "| %s, %s |", f.title, f.unit)
		for _, size := range r.Options.Sizes {
			fmt.Fprintf(&b, " %s |", page.Number(page.Median(r.values(size, f.key))))
		}
		b.WriteString("\n")
	}
	b.WriteString(r.absence())
	if r.Changes != nil {
		fmt.Fprintf(&b, "\n| changes among %d peers | |\n|---|---|\n", r.Options.ChangesAt)
		for _, f := range changeFigures() {
			fmt.Fprintf(&b, "| %s, %s | %s |\n", f.title, f.unit, page.Number(r.Changes[f.key]))
		}
	}
	if lines := r.claimLines(); lines != "" {
		b.WriteString("\n| what is wanted | found | wanted |\n|---|---|---|\n" + lines)
	}
	return b.String()
}

// absence says why the form without nexthop objects has no figure for many peers.
func (r Report) absence() string {
	most := r.Options.Sizes[len(r.Options.Sizes)-1]
	largest := 0
	for _, size := range r.Options.Sizes {
		if size <= fallbackMost {
			largest = size
		}
	}
	took := page.Median(r.values(largest, keyFallback))
	if most <= fallbackMost || math.IsNaN(took) {
		return ""
	}
	times := float64(most) / float64(largest)
	return fmt.Sprintf("\nWithout nexthop objects the kernel's time grows by the square of the peers: what takes %s s with %d would take some\n"+
		"%.0f s with %d. So it is not measured with more than %d.\n", page.Number(took), largest, took*times*times, most, fallbackMost)
}

// claimLines are the rows of what was measured of the claims.
func (r Report) claimLines() string {
	var b strings.Builder
	for _, c := range r.Claims() {
		if c.Measured() {
			found, wanted := c.Cells()
			fmt.Fprintf(&b, "| %s | %s | %s |\n", c.Title, found, wanted)
		}
	}
	return b.String()
}

// The form of JSON.
type (
	jsonReport struct {
		Machine machine.Description `json:"machine"`
		Rounds  int                 `json:"rounds"`
		Starts  []jsonStart         `json:"starts"`
		Changes *jsonChanges        `json:"changes,omitempty"`
		Claims  []jsonClaim         `json:"claims"`
	}
	jsonStart struct {
		Peers int `json:"peers"`
		// Medians are by the keys of figures, Rounds what they are of.
		Medians map[string]float64 `json:"medians"`
		Rounds  []Sample           `json:"rounds"`
	}
	jsonChanges struct {
		Peers   int    `json:"peers"`
		Figures Sample `json:"figures"`
	}
	jsonClaim struct {
		Title string  `json:"title"`
		Found float64 `json:"found"`
		Below float64 `json:"below"`
		Holds bool    `json:"holds"`
	}
)

// JSON writes everything that was found, for programs.
func (r Report) JSON(out io.Writer) error {
	j := jsonReport{Machine: r.Machine, Rounds: r.Options.Rounds, Claims: []jsonClaim{}}
	for i, size := range r.Options.Sizes {
		start := jsonStart{Peers: size, Medians: map[string]float64{}, Rounds: r.Rounds[i]}
		for _, f := range startFigures() {
			if v := page.Median(r.values(size, f.key)); !math.IsNaN(v) {
				start.Medians[f.key] = v
			}
		}
		j.Starts = append(j.Starts, start)
	}
	if r.Changes != nil {
		j.Changes = &jsonChanges{r.Options.ChangesAt, r.Changes}
	}
	for i, c := range r.Claims() {
		if c.Measured() {
			j.Claims = append(j.Claims, jsonClaim{c.Title, c.Found, claims()[i].below, c.Holds()})
		}
	}
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(j)
}
