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
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/traffic"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMedian(t *testing.T) {
	for name, tc := range map[string]struct {
		values []float64
		want   float64
	}{
		"one":        {[]float64{3}, 3},
		"odd":        {[]float64{9, 1, 5}, 5},
		"even":       {[]float64{4, 1, 3, 2}, 2.5},
		"an outlier": {[]float64{1, 1, 1, 1, 1e9}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			if got := median(tc.values); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("of nothing: got %v", got)
	}
}

func TestPercentile(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = i + 1
	}
	for _, tc := range []struct {
		sorted []int
		p      int
		want   int
	}{
		{[]int{7}, 50, 7},
		{[]int{7}, 99, 7},
		{[]int{1, 2}, 50, 1},
		{[]int{1, 2, 3}, 50, 2},
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred[:50], 99, 50},
		{hundred, 0, 1},
	} {
		if got := percentile(tc.sorted, tc.p); got != tc.want {
			t.Errorf("%d of %d: got %d, want %d", tc.p, len(tc.sorted), got, tc.want)
		}
	}
}

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

func TestProc(t *testing.T) {
	const machine = "cpu  100 20 3 9999 888 4 5 77 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"
	if got, err := machineTime(machine); err != nil || got != 1320*time.Millisecond {
		t.Errorf("machine: got %s, %v", got, err)
	}
	const process = "42 (a (b) c d) S 1 42 42 0 -1 4194304 9 9 9 9 150 50 7 7 20 0 9 0 1 1 1\n"
	if got, err := processTime(process); err != nil || got != 2*time.Second {
		t.Errorf("process: got %s, %v", got, err)
	}
	if got, err := peakMemory("Name:\tx\nVmHWM:\t   2048 kB\nVmRSS:\t 1 kB\n"); err != nil || got != 2<<20 {
		t.Errorf("memory: got %d, %v", got, err)
	}
	for _, text := range []string{"", "cpu", "cpu 1 2 3 4 5 6", "intr 1 2 3 4 5 6 7 8"} {
		if _, err := machineTime(text); !errors.Is(err, errProc) {
			t.Errorf("machineTime(%q): %v", text, err)
		}
	}
	for _, text := range []string{"", "42 (x) S 1", "no parenthesis"} {
		if _, err := processTime(text); !errors.Is(err, errProc) {
			t.Errorf("processTime(%q): %v", text, err)
		}
	}
	if _, err := machineTime("cpu 1 x 3 4 5 6 7 8"); err == nil {
		t.Error("a word is a number")
	}
	if _, err := peakMemory("VmRSS: 1 kB\n"); !errors.Is(err, errProc) {
		t.Errorf("no VmHWM: %v", err)
	}
}

func TestCPUModel(t *testing.T) {
	for text, want := range map[string]string{
		"processor\t: 0\nmodel name\t: A: B\nmodel name\t: C\n": "A: B",
		"processor\t: 0\nBogoMIPS\t: 50\n":                      "CPU of unknown model",
	} {
		if got := cpuModel(text); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestMinuteLoad(t *testing.T) {
	if got, err := minuteLoad("0.52 1.25 3.00 2/345 6789\n"); err != nil || got != 0.52 {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := minuteLoad("busy"); err == nil {
		t.Error("a word is a load")
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{
		math.NaN(): "-", 0: "0", 12345.6: "12346", 99.96: "100", 99.94: "99.9", 9.996: "10.0", 1.234: "1.23", 0.9996: "1.00", 0.0567: "0.057",
	} {
		if got := number(v); got != want {
			t.Errorf("%v: got %q, want %q", v, got, want)
		}
	}
}

// known is a report whose figures are easily told apart: three rounds of a machine
// that slows down, in which ratios stay.
func known(names ...string) Report {
	r := Report{
		Machine: Machine{CPU: "Z80", Cores: 1, Kernel: "6.1", Arch: "z80", Go: "go1", Day: "2026-01-02", Load: 0.25},
		Seconds: 0.5,
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

// checkGolden compares with a file that -update writes.
func checkGolden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
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
			checkGolden(t, name, out.Bytes())
		})
	}
}

// The ratio is that of each round, which the machine's slowing down cannot change,
// nor can one bad round.
func TestRatiosAreOfOneRound(t *testing.T) {
	r := known()
	r.Rounds[1][nameUDP][keyStream1] = 1e-9
	at := point{nameUDP, keyStream1}
	if got := median(r.toReference(at)); got != 2 {
		t.Errorf("got %v, want 2", got)
	}
	delete(r.Rounds[0][nameUDP], keyStream1)
	if got := len(r.toReference(at)); got != 2 {
		t.Errorf("got %d ratios of two rounds", got)
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
	if n := len(got.Variants[0].Figures); n != len(Figures())-2 {
		t.Errorf("bare veth has %d figures", n)
	}
}

func TestPlot(t *testing.T) {
	plot := known().Plot()
	checkGolden(t, "plot.svg", plot)
	for d := xml.NewDecoder(bytes.NewReader(plot)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// A variant without a figure has no bar, and the plot stays whole.
func TestPlotWithoutFigures(t *testing.T) {
	r := known(nameUDP)
	r.Rounds = nil
	if plot := string(r.Plot()); strings.Contains(plot, "NaN") || !strings.HasSuffix(plot, "</svg>\n") {
		t.Errorf("got:\n%s", plot)
	}
}

func TestReplaceSection(t *testing.T) {
	const begin, end = sectionBegin + "\n", sectionEnd + "\n"
	for name, tc := range map[string]struct{ page, want string }{
		"empty":      {"a\n" + begin + end + "b\n", "a\n" + begin + "\nnew\n\n" + end + "b\n"},
		"an old one": {begin + "\nold\n\n" + end, begin + "\nnew\n\n" + end},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := replaceSection([]byte(tc.page), []byte("new\n"))
			if err != nil || string(got) != tc.want {
				t.Errorf("got %q, %v, want %q", got, err, tc.want)
			}
		})
	}
	for name, page := range map[string]string{"nothing": "a\n", "no end": begin + "a\n", "reversed": end + begin} {
		t.Run(name, func(t *testing.T) {
			if _, err := replaceSection([]byte(page), nil); !errors.Is(err, ErrNoSection) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestWriteDocs(t *testing.T) {
	folder := t.TempDir()
	page := filepath.Join(folder, pageName)
	if err := CheckDocs(folder); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no page: %v", err)
	}
	if err := os.WriteFile(page, []byte("# Title\n\nown words\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := known()
	for _, err := range []error{CheckDocs(folder), r.WriteDocs(folder)} {
		if !errors.Is(err, ErrNoSection) {
			t.Errorf("no section: %v", err)
		}
	}
	if _, err := os.Stat(filepath.Join(folder, plotName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a plot that no page speaks of: %v", err)
	}
	text := "own words\n" + sectionBegin + "\n" + sectionEnd + "\nmore words\n"
	if err := os.WriteFile(page, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	// The second time changes nothing.
	for range 2 {
		if err := errors.Join(CheckDocs(folder), r.WriteDocs(folder)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		checkGolden(t, "page.md", got)
	}
	plot, err := os.ReadFile(filepath.Join(folder, plotName))
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
