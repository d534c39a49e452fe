package scale

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page/pagetest"
	"github.com/flanneld-go/flanneld-go/subnet"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Whatever two peers have must differ: the kernel would take them for one.
func TestPeersAreDistinct(t *testing.T) {
	subnets, publics, macs := map[netip.Prefix]bool{}, map[netip.Addr]bool{}, map[kernel.MAC]bool{}
	segment := netip.MustParsePrefix(onSegment)
	shared := segment.Masked()
	for n := range MaxPeers {
		for moved := range 3 {
			p := peer{number: n, moved: moved}
			if publics[p.public()] || p.public() == segment.Addr() || !shared.Contains(p.public()) {
				t.Fatalf("peer %d, moved %d: address %s", n, moved, p.public())
			}
			publics[p.public()] = true
		}
		p := peer{number: n}
		if subnets[p.subnet()] || macs[p.mac()] || p.subnet() != p.subnet().Masked() || !network.Contains(p.subnet().Addr()) {
			t.Fatalf("peer %d: subnet %s, MAC %s", n, p.subnet(), p.mac())
		}
		subnets[p.subnet()], macs[p.mac()] = true, true
	}
}

// A key reads as a lease that a daemon makes a path to.
func TestKeyIsALease(t *testing.T) {
	p := peer{number: 300, moved: 2}
	s, err := subnet.ParseSubnet(p.key()[strings.LastIndex(p.key(), "/")+1:])
	if err != nil || s[subnet.IPv4] != p.subnet() {
		t.Errorf("key %s: %s, %v", p.key(), s, err)
	}
	for _, b := range Backends() {
		value, err := p.value(b)
		if err != nil {
			t.Fatal(err)
		}
		kind := string(b)
		if b == UDP {
			kind = "" // as flannel's
		}
		var attrs subnet.Attrs
		if err := json.Unmarshal([]byte(value), &attrs); err != nil || attrs.PublicIP[subnet.IPv4] != p.public() || attrs.BackendType != kind || attrs.Owner == "" {
			t.Errorf("value %s: %+v, %v", value, attrs, err)
		}
	}
}

func TestCompare(t *testing.T) {
	if err := compare("numbers", []int{1, 2}, []int{2, 1}); err != nil {
		t.Error(err)
	}
	if err := compare("numbers", []int{1, 2, 3}, []int{4, 3}); err == nil || err.Error() != "2 of 3 numbers lack, the first: 1\n1 of 2 numbers are too many, the first: 4" {
		t.Errorf("got %v", err)
	}
}

// known is a report whose figures are easily told apart.
func known() Report {
	r := Report{
		Machine: machine.Description{CPU: "Z80", Cores: 1, Kernel: "6.1", Arch: "z80", Go: "go1", Day: "2026-01-02", Load: 0.25},
		Options: Options{Sizes: []int{1000, 10_000, 50_000}, Rounds: 3, ChangesAt: 10_000},
		Changes: Sample{},
	}
	for i, size := range r.Options.Sizes {
		var samples []Sample
		for round := range r.Options.Rounds {
			s := Sample{}
			for j, f := range startFigures() {
				if f.key != keyFallback || size <= fallbackMost {
					s[f.key] = float64(size*(j+1)) / 10_000 * float64(round+i+1)
				}
			}
			samples = append(samples, s)
		}
		r.Rounds = append(r.Rounds, samples)
	}
	for i, f := range changeFigures() {
		r.Changes[f.key] = float64(i + 1)
	}
	return r
}

func TestMarkdown(t *testing.T) {
	small := known()
	small.Options.Sizes, small.Rounds, small.Changes = small.Options.Sizes[:1], small.Rounds[:1], nil
	small.Machine.Load = 0.51
	for name, r := range map[string]Report{"all.md": known(), "small-busy.md": small} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			if err := r.Markdown(&out); err != nil {
				t.Fatal(err)
			}
			pagetest.Golden(t, *update, name, out.Bytes())
		})
	}
}

// compared has two backends, of which one was not measured with all peers.
func compared() Comparison {
	all := known()
	return Comparison{
		Machine: all.Machine, Options: Options{Backends: []Backend{VXLAN, UDP}, Sizes: []int{1000, 10_000}, Rounds: 3},
		samples: map[run][]Sample{{VXLAN, 1000}: all.Rounds[0], {VXLAN, 10_000}: all.Rounds[1], {UDP, 1000}: all.Rounds[2]},
	}
}

func TestComparison(t *testing.T) {
	var table, text bytes.Buffer
	if err := errors.Join(compared().Markdown(&table), compared().JSON(&text)); err != nil {
		t.Fatal(err)
	}
	pagetest.Golden(t, *update, "backends.md", table.Bytes())
	var got jsonComparison
	if err := json.Unmarshal(text.Bytes(), &got); err != nil || len(got.Starts) != 4 || got.Starts[1].Peers != 10_000 || len(got.Starts[1].Rounds) != 3 || got.Starts[3].Rounds != nil {
		t.Errorf("%v: %s", err, text.String())
	}
	folder := t.TempDir()
	s := comparisonSection()
	page := filepath.Join(folder, s.Page)
	if err := os.WriteFile(page, fmt.Appendf(nil, "<!-- %s: written by %s -->\n<!-- %s: end -->\n", s.Name, s.By, s.Name), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := compared().WriteDocs(folder); err != nil {
		t.Fatal(err)
	}
	if written, err := os.ReadFile(page); err != nil || !bytes.Contains(written, table.Bytes()) {
		t.Errorf("%v: %s", err, written)
	}
}

// As many hosts as the starts need, and those to compare with only where that is done.
func TestHostsFor(t *testing.T) {
	o := Options{Backends: []Backend{VXLAN}, Sizes: []int{10, 20}, Rounds: 2}
	if n := HostsFor(o); n != 12 {
		t.Errorf("%d hosts to measure all, want 12", n)
	}
	if o.ProfileAt = 20; HostsFor(o) != 13 {
		t.Errorf("%d hosts to measure all with a profile, want 13", HostsFor(o))
	}
	o.Backends = Backends()
	if n := HostsFor(o); n != 12 || !o.Compares() {
		t.Errorf("%d hosts to compare three, want 12", n)
	}
	o.Backends = []Backend{UDP}
	if n := HostsFor(o); n != 4 || !o.Compares() {
		t.Errorf("%d hosts for udp alone, want 4", n)
	}
}

func TestJSON(t *testing.T) {
	var out bytes.Buffer
	if err := known().JSON(&out); err != nil {
		t.Fatal(err)
	}
	var got jsonReport
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Starts) != 3 || len(got.Claims) != len(claims()) || got.Changes == nil || got.Changes.Peers != 10_000 {
		t.Errorf("got %+v", got)
	}
	if v, ok := got.Starts[1].Medians[keyStart]; !ok || v != 3 {
		t.Errorf("10,000 peers start in %v, want the median 3", v)
	}
	if _, ok := got.Starts[2].Medians[keyFallback]; ok {
		t.Error("a figure that was not measured is there")
	}
}

func TestPlot(t *testing.T) { pagetest.Golden(t, *update, "plot.svg", known().Plot()) }

// A run that found nothing has a plot without lines, and it is whole.
func TestPlotWithoutFigures(t *testing.T) {
	r := known()
	r.Rounds = nil
	if plot := string(r.Plot()); strings.Contains(plot, "NaN") || !strings.HasSuffix(plot, "</svg>\n") {
		t.Errorf("got:\n%s", plot)
	}
}

// The page of this project has the place that make bench writes to.
func TestOwnPage(t *testing.T) {
	for _, backends := range [][]Backend{{VXLAN}, Backends()} {
		if err := (Options{Backends: backends, Sizes: []int{7}, ProfileAt: 7}).CheckDocs("../../../docs"); err != nil {
			t.Errorf("%v: %v", backends, err)
		}
	}
}

// Keys are what tables, plots and claims find figures by.
func TestKeysAreDistinct(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range append(startFigures(), changeFigures()...) {
		if seen[f.key] || f.title == "" || f.unit == "" {
			t.Errorf("figure %q", f.key)
		}
		seen[f.key] = true
	}
	for _, c := range claims() {
		if !seen[c.key] {
			t.Errorf("%s: of unknown %q", c.title, c.key)
		}
	}
	for _, p := range panels() {
		for _, l := range p.lines {
			if !seen[l.key] {
				t.Errorf("%s: of unknown %q", p.title, l.key)
			}
		}
	}
}
