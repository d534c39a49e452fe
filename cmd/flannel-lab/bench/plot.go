package bench

import (
	"fmt"
	"math"
	"slices"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page"
)

// The plot's measures, in pixels.
const (
	plotColumns = 2
	panelWidth  = 430
	labelWidth  = 120
	valueWidth  = 70
	barHeight   = 14
	barStep     = 21
	panelGap    = 24
)

// panels are the figures that are drawn, in reading order.
func panels() []string {
	return []string{keyStream1, keyStream4, keyCarried(64), keyCarried(1200), keyPing, keyConnect}
}

// colour is a variant's; those of udp stand out.
func colour(variant string) string {
	switch variant {
	case nameUDP:
		return "#d1495b"
	case nameUDPPlain:
		return "#e79ba5"
	case Reference:
		return "#30638e"
	default:
		return "#9aa5b1"
	}
}

// better says which way of a figure is the good one.
func better(key string) string {
	if key == keyPing {
		return "less is better"
	}
	return "more is better"
}

// Plot draws the main figures as bars, a panel each, as SVG: medians, and across
// their ends lines from the least to the most that a round found.
func (r Report) Plot() []byte {
	panelHeight := page.LineHeight + barStep*len(r.Variants)
	rows := (len(panels()) + plotColumns - 1) / plotColumns
	width := 2*page.Margin + plotColumns*panelWidth + (plotColumns-1)*panelGap
	height := 2*page.Margin + rows*(panelHeight+panelGap) + barHeight
	picture := page.NewPicture(width, height)
	for i, key := range panels() {
		x := page.Margin + i%plotColumns*(panelWidth+panelGap)
		y := page.Margin + i/plotColumns*(panelHeight+panelGap)
		r.plotPanel(picture, figureOf(key), x, y)
	}
	picture.Note(page.Margin, height-page.Margin, page.Start,
		fmt.Sprintf("%s. Bars are medians of rounds (%d), lines go from the least to the most.", r.Machine, len(r.Rounds)))
	return picture.Bytes()
}

// plotPanel draws one figure of all variants, each panel to its own scale.
func (r Report) plotPanel(picture *page.Picture, f Figure, x, y int) {
	picture.Title(x, y+barHeight-2, f.Title+", "+f.Unit)
	picture.Note(x+panelWidth, y+barHeight-2, page.End, better(f.Key))
	largest := r.largest(f.Key)
	scale := func(v float64) int {
		if largest == 0 || math.IsNaN(v) {
			return 0
		}
		return int(math.Round(min(v/largest, 1) * (panelWidth - labelWidth - valueWidth)))
	}
	left := x + labelWidth
	for i, v := range r.Variants {
		values := r.values(point{v.Name, f.Key})
		value := page.Median(values)
		top := y + page.LineHeight + i*barStep
		base := top + barHeight - 3
		picture.Text(left-8, base, page.End, v.Title)
		picture.Rect(left, top, scale(value), barHeight, colour(v.Name))
		end := scale(value)
		if len(values) > 1 {
			end = scale(slices.Max(values))
			picture.Range(left+scale(slices.Min(values)), left+end, top+barHeight/2)
		}
		picture.Text(left+end+7, base, page.Start, page.Number(value))
	}
}

// largest is where a figure's scale ends: at the most that a round found, but not so
// far that one bad round makes all bars short.
func (r Report) largest(key string) float64 {
	most, middle := 0.0, 0.0
	for _, v := range r.Variants {
		values := r.values(point{v.Name, key})
		if len(values) > 0 {
			most, middle = max(most, slices.Max(values)), max(middle, page.Median(values))
		}
	}
	return min(most, 1.5*middle)
}
