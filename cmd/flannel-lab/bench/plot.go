package bench

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
)

// The plot's measures, in pixels.
const (
	plotMargin  = 16
	plotColumns = 2
	panelWidth  = 420
	labelWidth  = 120
	valueWidth  = 60
	titleHeight = 26
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
	panelHeight := titleHeight + barStep*len(r.Variants)
	rows := (len(panels()) + plotColumns - 1) / plotColumns
	width := 2*plotMargin + plotColumns*panelWidth + (plotColumns-1)*panelGap
	height := 2*plotMargin + rows*panelHeight + (rows-1)*panelGap + titleHeight
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="12" fill="#222">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	for i, key := range panels() {
		x := plotMargin + i%plotColumns*(panelWidth+panelGap)
		y := plotMargin + i/plotColumns*(panelHeight+panelGap)
		r.plotPanel(&b, figureOf(key), x, y)
	}
	plotText(&b, plotMargin, height-plotMargin, "start", fmt.Sprintf("%s; rounds: %d, of which medians", r.Machine, len(r.Rounds)))
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// plotPanel draws one figure of all variants, each panel to its own scale.
func (r Report) plotPanel(b *bytes.Buffer, f Figure, x, y int) {
	fmt.Fprintf(b, "<g font-weight=\"bold\">")
	plotText(b, x, y+barHeight-2, "start", f.Title+", "+f.Unit)
	b.WriteString("</g>\n")
	largest := 0.0
	for _, v := range r.Variants {
		if value := median(r.values(point{v.Name, f.Key})); value > largest {
			largest = value
		}
	}
	for i, v := range r.Variants {
		top := y + titleHeight + i*barStep
		base := top + barHeight - 4
		plotText(b, x+labelWidth-8, base, "end", v.Title)
		value := median(r.values(point{v.Name, f.Key}))
		length := 0
		if largest > 0 && !math.IsNaN(value) {
			length = int(math.Round(value / largest * (panelWidth - labelWidth - valueWidth)))
		}
		fmt.Fprintf(b, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s"/>`+"\n", x+labelWidth, top, length, barHeight, colour(v.Name))
		plotText(b, x+labelWidth+length+6, base, "start", number(value))
	}
}

func plotText(b *bytes.Buffer, x, y int, anchor, text string) {
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="%s">`, x, y, anchor)
	// Writing to memory does not fail.
	_ = xml.EscapeText(b, []byte(text))
	b.WriteString("</text>\n")
}
