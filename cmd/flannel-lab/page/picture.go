package page

import (
	"bytes"
	"encoding/xml"
	"fmt"
)

// The measures of pictures, in pixels.
const (
	Margin     = 16
	LineHeight = 26
)

// Anchor is where a text stands to its point, in the words of SVG.
type Anchor string

// The anchors of texts.
const (
	Start  Anchor = "start"
	Middle Anchor = "middle"
	End    Anchor = "end"
)

// Picture is an SVG in the making. NewPicture makes one, Bytes ends it.
type Picture struct{ b bytes.Buffer }

// NewPicture begins a white picture of a size in pixels.
func NewPicture(width, height int) *Picture {
	p := new(Picture)
	fmt.Fprintf(&p.b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="12" fill="#222">`+"\n", width, height)
	p.Rect(0, 0, width, height, "#fff")
	return p
}

// Rect draws a filled rectangle.
func (p *Picture) Rect(x, y, width, height int, colour string) {
	fmt.Fprintf(&p.b, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s"/>`+"\n", x, y, width, height, colour)
}

// Point is one of a picture, in pixels from its upper left corner.
type Point struct{ X, Y int }

// Line joins points, each with a dot on it.
func (p *Picture) Line(points []Point, colour string) {
	fmt.Fprintf(&p.b, `<polyline fill="none" stroke="%s" stroke-width="2" points="`, colour)
	for i, at := range points {
		if i > 0 {
			p.b.WriteByte(' ')
		}
		fmt.Fprintf(&p.b, "%d,%d", at.X, at.Y)
	}
	p.b.WriteString("\"/>\n")
	for _, at := range points {
		fmt.Fprintf(&p.b, `<circle cx="%d" cy="%d" r="3" fill="%s"/>`+"\n", at.X, at.Y, colour)
	}
}

// Text writes a line of text at its base line.
func (p *Picture) Text(x, y int, anchor Anchor, text string) {
	fmt.Fprintf(&p.b, `<text x="%d" y="%d" text-anchor="%s">`, x, y, anchor)
	// Writing to memory does not fail.
	_ = xml.EscapeText(&p.b, []byte(text))
	p.b.WriteString("</text>\n")
}

// Title writes a line of bold text.
func (p *Picture) Title(x, y int, text string) {
	p.b.WriteString("<g font-weight=\"bold\">")
	p.Text(x, y, Start, text)
	p.b.WriteString("</g>\n")
}

// Note writes a line of text that stands back behind others.
func (p *Picture) Note(x, y int, anchor Anchor, text string) {
	p.b.WriteString("<g font-size=\"11\" fill=\"#7b8794\">")
	p.Text(x, y, anchor, text)
	p.b.WriteString("</g>\n")
}

// Range draws a line between two abscissae, with a stroke at each of its ends.
func (p *Picture) Range(from, to, y int) {
	const stroke = 3 // to each side
	fmt.Fprintf(&p.b, `<path d="M%d %dH%dM%d %dv%dM%d %dv%[6]d" stroke="#52606d" fill="none"/>`+"\n",
		from, y, to, from, y-stroke, 2*stroke, to, y-stroke)
}

// Bytes ends the picture and returns it.
func (p *Picture) Bytes() []byte {
	p.b.WriteString("</svg>\n")
	return p.b.Bytes()
}
