package bench

import (
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page"
)

// Report is what a run found.
type Report struct {
	Machine machine.Description
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

// toReference are the ratios of a variant's figure to the reference's.
func (r Report) toReference(at point) []float64 {
	return r.ratios(at, point{Reference, at.figure})
}

// claim is something that the measured variants are to show.
type claim struct {
	title string
	// of is what is claimed about, by what it is divided by; a zero by means
	// that the figure itself counts.
	of, by point
	bound  string
}

// claims are those of udp (#5).
func claims() []claim {
	udp := func(key string) point { return point{nameUDP, key} }
	return []claim{
		{"udp to vxlan, one TCP stream", udp(keyStream1), point{Reference, keyStream1}, "at least 0.5"},
		{"udp, four TCP streams to one", udp(keyStream4), udp(keyStream1), "at least 1"},
		{"udp to the bare forwarder, median ping", udp(keyPing), point{nameFloor, keyPing}, "at most 1.3"},
		{"udp to vxlan, datagrams of 1200 bytes at most 1 % lost", udp(keyCarried(1200)), point{Reference, keyCarried(1200)}, "at least 0.7"},
		{"udp with Offload off, one TCP stream, Gb/s", point{nameUDPPlain, keyStream1}, point{}, "at least 2"},
		{"memory of udp's daemon, MB", udp(keyResident), point{}, "under 64"},
	}
}

// found is the median of what a claim is about; NaN when it was not measured.
func (c claim) found(r Report) float64 {
	if c.by == (point{}) {
		return page.Median(r.values(c.of))
	}
	return page.Median(r.ratios(c.of, c.by))
}
