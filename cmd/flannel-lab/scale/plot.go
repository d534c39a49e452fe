package scale

import (
	"errors"
	"fmt"
	"math"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page"
)

// section is where a run's tables and its plot go.
func section() page.Section {
	return page.Section{
		Page: "benchmarks.md", Name: "peers",
		Picture: "scale.svg", Caption: "what grows with the number of peers",
	}
}

// WriteDocs puts the tables and the plot into a folder of pages, and the profile into
// another page there, each whole or not at all.
func (r Report) WriteDocs(folder string) error {
	if err := section().Write(folder, []byte(r.tables()), r.Plot()); err != nil {
		return err
	}
	if r.Profile == nil {
		return nil // what is there stays
	}
	return profileSection().Write(folder, fmt.Appendf(nil, "%s.\n\n%s", r.Machine, r.Profile.markdown()), nil)
}

// CheckDocs says whether a run will find the place for what it writes, before it is long.
func (o Options) CheckDocs(folder string) error {
	if o.Compares() {
		return comparisonSection().Check(folder)
	}
	err := section().Check(folder)
	if o.profiles() {
		err = errors.Join(err, profileSection().Check(folder))
	}
	return err
}

// The plot's measures, in pixels.
const (
	panelWidth  = 420
	panelHeight = 240
	panelGap    = 24
	axisLeft    = 44
	axisBottom  = 24
	dot         = 6
)

// line is one figure in a panel.
type line struct{ key, name, colour string }

// panel is a set of figures over the number of peers, on one scale.
type panel struct {
	title string
	lines []line
}

// panels are what is drawn, from left to right.
func panels() []panel {
	return []panel{
		{"seconds until the last route", []line{
			{keyStart, "the daemon, from its start", "#30638e"},
			{keyFloor, "iproute2, the same entries", "#9aa5b1"},
		}},
		{"CPU seconds of the daemon", []line{
			{keyStartCPU, "until the last route", "#30638e"},
			{keyQuietCPU, "2 s after it was ready", "#9aa5b1"},
		}},
		{"MB of memory, at most", []line{{keyMemory, "the daemon", "#d1495b"}}},
	}
}

// Plot draws what grows with the number of peers, both axes from 0: what is linear is
// a straight line there.
func (r Report) Plot() []byte {
	all := panels()
	width := 2*page.Margin + len(all)*panelWidth + (len(all)-1)*panelGap
	height := 2*page.Margin + panelHeight + 2*page.LineHeight
	p := page.NewPicture(width, height)
	for i, what := range all {
		r.plotPanel(p, what, page.Margin+i*(panelWidth+panelGap), page.Margin)
	}
	p.Text(page.Margin, height-page.Margin, page.Start, fmt.Sprintf("%s; rounds: %d, of which medians", r.Machine, r.Options.Rounds))
	return p.Bytes()
}

// plotPanel draws the lines of a panel, whose upper left corner is given.
func (r Report) plotPanel(p *page.Picture, what panel, left, top int) {
	p.Title(left, top+12, what.title)
	most, highest := 0.0, 0.0
	for _, size := range r.Options.Sizes {
		most = max(most, float64(size))
		for _, l := range what.lines {
			if v := page.Median(r.values(size, l.key)); v > highest {
				highest = v
			}
		}
	}
	if most == 0 || highest == 0 {
		return
	}
	bottom, right := top+panelHeight-axisBottom, left+panelWidth
	p.Rect(left+axisLeft, bottom, panelWidth-axisLeft, 1, "#222")
	p.Rect(left+axisLeft, top+page.LineHeight, 1, bottom-top-page.LineHeight, "#222")
	p.Text(left+axisLeft-6, top+page.LineHeight+8, page.End, page.Number(highest))
	p.Text(left+axisLeft-6, bottom, page.End, "0")
	x := func(size int) int {
		return left + axisLeft + int(math.Round(float64(size)/most*float64(panelWidth-axisLeft-dot)))
	}
	y := func(v float64) int {
		return bottom - int(math.Round(v/highest*float64(bottom-top-page.LineHeight-dot)))
	}
	for i, size := range r.Options.Sizes {
		anchor := page.Middle
		if i == len(r.Options.Sizes)-1 {
			anchor = page.End
		}
		p.Text(min(x(size), right), bottom+axisBottom-6, anchor, fmt.Sprint(size))
	}
	for i, l := range what.lines {
		var points []page.Point
		for _, size := range r.Options.Sizes {
			if v := page.Median(r.values(size, l.key)); !math.IsNaN(v) {
				points = append(points, page.Point{X: x(size), Y: y(v)})
			}
		}
		p.Line(points, l.colour)
		p.Rect(left+axisLeft+12, top+page.LineHeight+8+i*18, dot, dot, l.colour)
		p.Text(left+axisLeft+12+2*dot, top+page.LineHeight+15+i*18, page.Start, l.name)
	}
}
