package bench

import (
	"fmt"
	"math"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page"
)

// The plot's measures, in pixels.
const (
	plotColumns = 2
	panelWidth  = 420
	labelWidth  = 120
	valueWidth  = 60
	barHeight   = 16
	barStep     = 21
	panelGap    = 18
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

// Plot draws the main figures as bars, a panel each, as SVG.
func (r Report) Plot() []byte {
	panelHeight := page.LineHeight + barStep*len(r.Variants)
	rows := (len(panels()) + plotColumns - 1) / plotColumns
	width := 2*page.Margin + plotColumns*panelWidth + (plotColumns-1)*panelGap
	height := 2*page.Margin + rows*panelHeight + (rows-1)*panelGap + page.LineHeight
	picture := page.NewPicture(width, height)
	for i, key := range panels() {
		x := page.Margin + i%plotColumns*(panelWidth+panelGap)
		y := page.Margin + i/plotColumns*(panelHeight+panelGap)
		r.plotPanel(picture, figureOf(key), x, y)
	}
	picture.Text(page.Margin, height-page.Margin, page.Start, fmt.Sprintf("%s; rounds: %d, of which medians", r.Machine, len(r.Rounds)))
	return picture.Bytes()
}

// plotPanel draws one figure of all variants, each panel to its own scale.
func (r Report) plotPanel(picture *page.Picture, f Figure, x, y int) {
	picture.Title(x, y+barHeight-2, f.Title+", "+f.Unit)
	largest := 0.0
	for _, v := range r.Variants {
		if value := page.Median(r.values(point{v.Name, f.Key})); value > largest {
			largest = value
		}
	}
	for i, v := range r.Variants {
		top := y + page.LineHeight + i*barStep
		base := top + barHeight - 4
		picture.Text(x+labelWidth-8, base, page.End, v.Title)
		value := page.Median(r.values(point{v.Name, f.Key}))
		length := 0
		if largest > 0 && !math.IsNaN(value) {
			length = int(math.Round(value / largest * (panelWidth - labelWidth - valueWidth)))
		}
		picture.Rect(x+labelWidth, top, length, barHeight, colour(v.Name))
		picture.Text(x+labelWidth+length+6, base, page.Start, page.Number(value))
	}
}
