package bench

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page/pagetest"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/traffic"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sentFor is what a sender did that kept a rate for a second.
func sentFor(rate, arrived float64, lasted time.Duration) trial {
	return trial{
		sent:    traffic.Done{Count: uint64(rate), Took: time.Second},
		arrived: uint64(arrived), lasted: lasted,
	}
}

func TestTrial(t *testing.T) {
	for name, tc := range map[string]struct {
		trial           trial
		loss, delivered float64
	}{
		"all":                  {sentFor(1000, 1000, time.Second), 0, 1000},
		"one in a hundred":     {sentFor(1000, 990, time.Second), 0.01, 990},
		"nothing":              {sentFor(1000, 0, -time.Hour), 1, 0},
		"as late as a packet":  {sentFor(1000, 1000, time.Second+latency), 0, 1000},
		"late, out of a queue": {sentFor(1000, 1000, 2*time.Second+latency), 0.5, 500},
		"nothing was sent":     {trial{sent: traffic.Done{Took: time.Second}}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if got := tc.trial.loss(); math.Abs(got-tc.loss) > 1e-9 {
				t.Errorf("loss: got %v, want %v", got, tc.loss)
			}
			if got := tc.trial.delivered(); math.Abs(got-tc.delivered) > 1e-9 {
				t.Errorf("delivered: got %v, want %v", got, tc.delivered)
			}
		})
	}
}

// path is one that carries up to a capacity, and from there on what collapse
// leaves of it: 1 nothing is lost by overload itself, 0 all of it.
func path(capacity, collapse float64) func(rate float64) (trial, error) {
	return func(rate float64) (trial, error) {
		if rate <= capacity {
			return sentFor(rate, rate, time.Second), nil
		}
		return sentFor(rate, capacity*collapse, time.Second), nil
	}
}

func TestHighestRate(t *testing.T) {
	for _, tc := range []struct {
		name               string
		capacity, collapse float64
		blast              float64
		// least is what must be found at least; more than the capacity never.
		least float64
	}{
		{"the sender is the limit", 100_000, 1, 50_000, 50_000},
		{"overload costs nothing", 100_000, 1, 300_000, 98_000},
		{"overload costs half", 100_000, 0.5, 300_000, 90_000},
		{"overload costs everything", 100_000, 0, 300_000, 90_000},
		{"far too much", 1000, 1, 1_000_000, 950},
	} {
		t.Run(tc.name, func(t *testing.T) {
			try := path(tc.capacity, tc.collapse)
			blast, err := try(tc.blast)
			if err != nil {
				t.Fatal(err)
			}
			got, err := highestRate(blast, try)
			if err != nil || got < tc.least || got > tc.capacity*(1+maxLoss) {
				t.Errorf("got %.0f (%v), want %.0f to %.0f", got, err, tc.least, tc.capacity)
			}
		})
	}
}

// What is found was delivered by a trial that passed, and the number of trials is
// bounded, whatever the path does.
func TestHighestRateWasSeen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fraction := rapid.Float64Range(0, 1)
		passed := map[float64]bool{0: true}
		tries := 0
		try := func(rate float64) (trial, error) {
			tries++
			result := sentFor(rate, rate*fraction.Draw(t, "arrived"), time.Second)
			if result.loss() <= maxLoss {
				passed[result.delivered()] = true
			}
			return result, nil
		}
		blast, _ := try(rapid.Float64Range(1, 1e6).Draw(t, "blast"))
		got, err := highestRate(blast, try)
		if err != nil || !passed[got] {
			t.Errorf("got %v (%v), passed %v", got, err, passed)
		}
		if tries > 1+searchSteps {
			t.Errorf("%d trials", tries)
		}
	})
}

func TestHighestRateEndsWithAnError(t *testing.T) {
	broken := errors.New("broken")
	_, err := highestRate(sentFor(1000, 10, time.Second), func(float64) (trial, error) { return trial{}, broken })
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// known is a report whose figures are easily told apart: three rounds of a machine
// that slows down, in which ratios stay.
func known(names ...string) Report {
	r := Report{
		Machine:    machine.Description{CPU: "Z80", Cores: 1, Kernel: "6.1", Arch: "z80", Go: "go1", Day: "2026-01-02", Load: 0.25},
		Congestion: "cubic",
		Seconds:    0.5,
	}
	for _, v := range Variants() {
		if len(names) == 0 || slices.Contains(names, v.Name) {
			r.Variants = append(r.Variants, v)
		}
	}
	for _, slow := range []float64{1, 2, 4} {
		round := map[string]Sample{}
		for i, v := range r.Variants {
			s := Sample{}
			for j, f := range Figures() {
				s[f.Key] = 100 * float64(i+1) * float64(j+1) / slow
			}
			if v.Name == "veth" {
				delete(s, keyDaemons)
				delete(s, keyResident)
			}
			if v.Name == Reference {
				s[keyDaemons] = 0
			}
			round[v.Name] = s
		}
		r.Rounds = append(r.Rounds, round)
	}
	return r
}

func TestMarkdown(t *testing.T) {
	busy := known("veth", nameUDP)
	busy.Machine.Load = 0.51
	for name, r := range map[string]Report{"all.md": known(), "no-reference-busy.md": busy} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			if err := r.Markdown(&out); err != nil {
				t.Fatal(err)
			}
			pagetest.Golden(t, *update, name, out.Bytes())
		})
	}
}

// The ratio is that of each round, which the machine's slowing down cannot change,
// nor can one bad round.
func TestRatiosAreOfOneRound(t *testing.T) {
	r := known()
	r.Rounds[1][nameUDP][keyStream1] = 1e-9
	at := point{nameUDP, keyStream1}
	if got := page.Median(r.toReference(at)); got != 2 {
		t.Errorf("got %v, want 2", got)
	}
	delete(r.Rounds[0][nameUDP], keyStream1)
	if got := len(r.toReference(at)); got != 2 {
		t.Errorf("got %d ratios of two rounds", got)
	}
}

// A reference that spends nothing, but for one round, is no measure.
func TestNoRatioToNothing(t *testing.T) {
	r := known()
	r.Rounds[1][Reference][keyDaemons] = 1e-3
	if got := r.toReference(point{nameUDP, keyDaemons}); len(got) > 0 {
		t.Errorf("got %v", got)
	}
	r.Rounds[2][Reference][keyDaemons] = 1e-3
	if got := r.toReference(point{nameUDP, keyDaemons}); len(got) != 2 {
		t.Errorf("got %v, want the ratios of two rounds", got)
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
	if len(got.Variants) != len(Variants()) || len(got.Claims) != len(claims()) || got.Rounds != 3 {
		t.Errorf("got %d variants, %d claims, %d rounds", len(got.Variants), len(got.Claims), got.Rounds)
	}
	two := 2.0
	want := jsonFigure{Key: keyStream1, Unit: "Gb/s", Median: 200, Ratio: &two, Rounds: []float64{400, 200, 100}}
	if diff := cmp.Diff(want, got.Variants[3].Figures[0]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// Those of known() are larger from variant to variant, the memory included.
	for i, c := range claims() {
		want := c.by.variant == Reference || c.by.variant == nameFloor || c.of.figure == keyStream4
		if got.Claims[i].Holds != want {
			t.Errorf("%s: found %v, holds %t", c.title, got.Claims[i].Found, got.Claims[i].Holds)
		}
	}
	if n := len(got.Variants[0].Figures); n != len(Figures())-2 {
		t.Errorf("bare veth has %d figures", n)
	}
}

func TestPlot(t *testing.T) {
	plot := known().Plot()
	pagetest.Golden(t, *update, "plot.svg", plot)
	for d := xml.NewDecoder(bytes.NewReader(plot)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// A variant without a figure has no bar, and the plot stays whole.
// One bad round neither shortens the bars nor leaves the panel.
func TestPlotOfAnOutlier(t *testing.T) {
	r := known()
	before := string(r.Plot())
	r.Rounds[0][nameUDP][keyPing] *= 1000
	widths := func(plot string) []string {
		return regexp.MustCompile(`<rect [^>]*width="\d+"`).FindAllString(plot, -1)
	}
	if diff := cmp.Diff(widths(before), widths(string(r.Plot()))); diff != "" {
		t.Errorf("bars (-before +with an outlier):\n%s", diff)
	}
	if got, want := r.largest(keyPing), 1.5*page.Median(r.values(point{nameFlannel, keyPing})); got != want {
		t.Errorf("the scale ends at %v, want %v", got, want)
	}
}

func TestPlotWithoutFigures(t *testing.T) {
	r := known(nameUDP)
	r.Rounds = nil
	if plot := string(r.Plot()); strings.Contains(plot, "NaN") || !strings.HasSuffix(plot, "</svg>\n") {
		t.Errorf("got:\n%s", plot)
	}
}

func TestWriteDocs(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, section().Page)
	text := "own words\n<!-- data path: written by make bench -->\n<!-- data path: end -->\nmore words\n"
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	r := known()
	if err := r.WriteDocs(folder); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pagetest.Golden(t, *update, "page.md", got)
	plot, err := os.ReadFile(filepath.Join(folder, section().Picture))
	if err != nil || !bytes.Equal(plot, r.Plot()) {
		t.Errorf("the plot beside the page: %d bytes, %v", len(plot), err)
	}
}

// The page of this project has the place that make bench writes to.
func TestOwnPage(t *testing.T) {
	if err := CheckDocs("../../../docs"); err != nil {
		t.Error(err)
	}
}

// Names and keys are what tables and JSON find things by.
func TestNamesAreDistinct(t *testing.T) {
	seen := map[string]bool{}
	for _, v := range Variants() {
		if seen[v.Name] || v.Title == "" || v.join == nil {
			t.Errorf("variant %q", v.Name)
		}
		seen[v.Name] = true
	}
	for _, f := range Figures() {
		if seen[f.Key] || f.Title == "" || f.Unit == "" {
			t.Errorf("figure %q", f.Key)
		}
		seen[f.Key] = true
	}
	for _, key := range panels() {
		if !seen[key] {
			t.Errorf("panel of unknown figure %q", key)
		}
	}
	for _, c := range claims() {
		for _, p := range []point{c.of, c.by} {
			if p != (point{}) && (!seen[p.variant] || !seen[p.figure]) {
				t.Errorf("%s: of unknown %v", c.title, p)
			}
		}
	}
}
