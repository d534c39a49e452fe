package scale

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page"
)

// Comparison is what starts with several backends cost.
type Comparison struct {
	Machine machine.Description
	Options Options
	samples map[run][]Sample
}

// run is which starts samples are of.
type run struct {
	backend Backend
	size    int
}

// Compares reports whether starts with several backends are compared, and nothing else
// is measured.
func (o Options) Compares() bool { return !slices.Equal(o.Backends, []Backend{VXLAN}) }

// Compare measures starts with each backend, on a lab with the hosts for it, on which
// nothing runs yet.
func Compare(ctx context.Context, l *lab.Lab, o Options) (Comparison, error) {
	c := Comparison{Options: o, samples: map[run][]Sample{}}
	var err error
	if c.Machine, err = machine.Describe(); err != nil {
		return c, err
	}
	if err := l.StartEtcd(ctx); err != nil {
		return c, err
	}
	hosts := l.Hosts
	for _, b := range o.Backends {
		n := len(o.Sizes) * o.Rounds
		if err := c.measure(ctx, l, b, hosts[:n]); err != nil {
			return c, fmt.Errorf("%s: %w", b, err)
		}
		hosts = hosts[n:]
	}
	return c, nil
}

// measure starts each of the hosts in a network of a backend, which is gone after that.
func (c *Comparison) measure(ctx context.Context, l *lab.Lab, b Backend, hosts []*lab.Host) (err error) {
	if err := l.PutConfig(ctx, b.config()); err != nil {
		return err
	}
	p, err := newPopulation(ctx, l.Client(), b)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.clear(ctx)) }()
	for i, h := range hosts {
		size, round := c.Options.Sizes[i/c.Options.Rounds], i%c.Options.Rounds+1
		if err := p.grow(ctx, size); err != nil {
			return err
		}
		d, s, err := startDaemon(ctx, h, p)
		if err == nil {
			err = d.stop(ctx)
		}
		if err != nil {
			return fmt.Errorf("%d peers: round %d: %w", size, round, err)
		}
		c.samples[run{b, size}] = append(c.samples[run{b, size}], s)
		fmt.Fprintf(c.Options.Progress, "%s, %d peers, round %d of %d: last route after %.3g s, CPU %.3g s, %.3g MB\n",
			b, size, round, c.Options.Rounds, s[keyStart], s[keyStartCPU], s[keyMemory])
	}
	return nil
}

// median of a figure is NaN where it was not measured.
func (c Comparison) median(at run, key string) float64 {
	var values []float64
	for _, s := range c.samples[at] {
		if v, ok := s[key]; ok {
			values = append(values, v)
		}
	}
	return page.Median(values)
}

// Markdown writes what was found as a table for people.
func (c Comparison) Markdown(out io.Writer) error {
	var b strings.Builder
	b.WriteString(begin(c.Machine, c.Options.Rounds))
	writeHead(&b, " ", c.Options.Backends)
	for _, size := range c.Options.Sizes {
		for _, f := range startFigures() {
			line, measured := fmt.Sprintf("| %d peers, %s, %s |", size, f.title, f.unit), false
			for _, backend := range c.Options.Backends {
				v := c.median(run{backend, size}, f.key)
				measured = measured || !math.IsNaN(v)
				line += " " + page.Number(v) + " |"
			}
			if measured {
				b.WriteString(line + "\n")
			}
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// comparisonSection is where the table goes.
func comparisonSection() page.Section {
	return page.Section{Page: "scale.md", Name: "backends", By: "flannel-lab scale --backend vxlan,host-gw,udp --peers 10000"}
}

// WriteDocs puts the table into a folder of pages.
func (c Comparison) WriteDocs(folder string) error {
	var text bytes.Buffer
	if err := c.Markdown(&text); err != nil {
		return fmt.Errorf("write docs: %w", err)
	}
	return comparisonSection().Write(folder, text.Bytes(), nil)
}

// The form of JSON.
type (
	jsonComparison struct {
		Machine machine.Description `json:"machine"`
		Rounds  int                 `json:"rounds"`
		Starts  []jsonBackendStart  `json:"starts"`
	}
	jsonBackendStart struct {
		Backend Backend  `json:"backend"`
		Peers   int      `json:"peers"`
		Rounds  []Sample `json:"rounds"`
	}
)

// JSON writes everything that was found, for programs.
func (c Comparison) JSON(out io.Writer) error {
	j := jsonComparison{Machine: c.Machine, Rounds: c.Options.Rounds, Starts: []jsonBackendStart{}}
	for _, backend := range c.Options.Backends {
		for _, size := range c.Options.Sizes {
			j.Starts = append(j.Starts, jsonBackendStart{backend, size, c.samples[run{backend, size}]})
		}
	}
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(j)
}
