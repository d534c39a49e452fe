package bench

import (
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page"
)

// Report is what a run found.
type Report struct {
	Machine machine.Description
	// Congestion is the kernel's tcp_congestion_control: what streams find their rate by,
	// over one way better than over another.
	Congestion string
	// Seconds is how long one measurement lasted.
	Seconds  float64
	Variants []Variant
	// Rounds hold the samples of each round, by the variants' names.
	Rounds []map[string]Sample
}

// point is one figure of one variant.
type point struct{ variant, figure string }

// values are those of the rounds that have the figure.
func (r Report) values(at point) []float64 {
	var values []float64
	for _, round := range r.Rounds {
		if v, ok := round[at.variant][at.figure]; ok {
			values = append(values, v)
		}
	}
	return values
}

// ratios are the quotients of two figures, of each round that has both. What would
// be divided by zero is left out.
func (r Report) ratios(of, by point) []float64 {
	var ratios []float64
	for _, round := range r.Rounds {
		a, haveA := round[of.variant][of.figure]
		b, haveB := round[by.variant][by.figure]
		if haveA && haveB && b > 0 {
			ratios = append(ratios, a/b)
		}
	}
	return ratios
}

// toReference are the ratios of a variant's figure to the reference's. There are none
// where that is 0 in most rounds: what the others say is chance.
func (r Report) toReference(at point) []float64 {
	by := point{Reference, at.figure}
	if page.Median(r.values(by)) == 0 {
		return nil
	}
	return r.ratios(at, by)
}

// claim is something that the measured variants are to show.
type claim struct {
	title string
	// of is what is claimed about, by what it is divided by; a zero by means
	// that the figure itself counts.
	of, by point
	bound  page.Bound
	unit   string
	// why says where the bound comes from.
	why string
}

// claims are those of udp (#5). That figures are of a machine on which
// vxlan carried 33 Gb/s, flannel's own udp 1.0, and a throw-away forwarder in C with
// all offloads 0.55 to 0.6 of vxlan: what is absolute there is judged by ratios here.
func claims() []claim {
	udp := func(key string) point { return point{nameUDP, key} }
	plain, vxlan, theirs := point{nameUDPPlain, keyStream1}, point{Reference, keyStream1}, point{nameFlannel, keyStream1}
	return []claim{
		{"udp to vxlan, one TCP stream", udp(keyStream1), vxlan, page.AtLeast(0.5), "", "0.6 is what a forwarder in C with all offloads reached"},
		{"udp, four TCP streams to one", udp(keyStream4), udp(keyStream1), page.AtLeast(1), "", "streams must not stand in each other's way"},
		{"udp to the bare forwarder, median ping", udp(keyPing), point{nameFloor, keyPing}, page.AtMost(1.3), "", "the floor has the same wake-ups"},
		{"udp to vxlan, datagrams of 1200 bytes at most 1 % lost", udp(keyCarried(1200)), point{Reference, keyCarried(1200)}, page.AtLeast(0.7), "", "they are cut and joined, too"},
		{"udp with Offload off to flannel's loop, one TCP stream", plain, theirs, page.AtLeast(2), "", "the same packets, one per call there"},
		{"udp with Offload off to vxlan, one TCP stream", plain, vxlan, page.AtLeast(0.06), "", "twice what flannel's had of vxlan, 0.03"},
		{"memory of udp's daemon", udp(keyResident), point{}, page.Under(64), "MB", "a small machine's share"},
	}
}

// found is the median of what a claim is about; NaN when it was not measured.
func (c claim) found(r Report) float64 {
	if c.by == (point{}) {
		return page.Median(r.values(c.of))
	}
	return page.Median(r.ratios(c.of, c.by))
}

// Claims are what the run was to show, and what it found.
func (r Report) Claims() []page.Claim {
	var all []page.Claim
	for _, c := range claims() {
		all = append(all, page.Claim{
			Title: c.title, Found: c.found(r), Unit: c.unit, Bound: c.bound,
			Timed: c.of.figure != keyResident,
		})
	}
	return all
}
