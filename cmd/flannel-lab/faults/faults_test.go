package faults

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
)

var update = flag.Bool("update", false, "write golden files")

func TestBound(t *testing.T) {
	sample := func(lost int, gap, heal time.Duration) Sample {
		return Sample{Sent: 100, Received: 100 - lost, Gap: gap, Heal: heal}
	}
	for _, tc := range []struct {
		name   string
		bound  Bound
		sample Sample
		want   bool
	}{
		{"none lost", 0, sample(0, 0, 0), true},
		{"one lost where none may be", 0, sample(1, 5*time.Millisecond, 0), false},
		{"a short gap", 300 * ms, sample(9, 300*time.Millisecond, 0), true},
		{"a long gap", 300 * ms, sample(9, 301*time.Millisecond, 0), false},
		{"nothing ever answered", 300 * ms, sample(100, 0, 0), false},
		{"nothing sent", 0, Sample{}, false},
		{"none lost, and never healed", 0, sample(0, 0, never), false},
		{"none lost, and something else wrong", 300 * ms, Sample{Sent: 100, Received: 100, Wrong: "said twice"}, false},
		{"measured only", Unbounded, sample(100, time.Hour, never), true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.bound.met(tc.sample); got != tc.want {
				t.Errorf("met(%+v) = %t, want %t", tc.sample, got, tc.want)
			}
		})
	}
	for bound, want := range map[Bound]string{0: "0 lost", 300 * ms: "300 ms", 3000 * ms: "3 s", Unbounded: "none"} {
		if got := bound.String(); got != want {
			t.Errorf("Bound(%d) prints as %q, want %q", bound, got, want)
		}
	}
}

func TestWorse(t *testing.T) {
	a := Sample{Sent: 10, Received: 9, Gap: 40, Heal: 7}
	for name, tc := range map[string]struct{ other, want Sample }{
		"more lost":       {Sample{Sent: 20, Received: 15, Gap: 30, Heal: 8}, Sample{Sent: 20, Received: 15, Gap: 40, Heal: 8}},
		"a longer gap":    {Sample{Sent: 20, Received: 20, Gap: 50, Heal: 1}, Sample{Sent: 10, Received: 9, Gap: 50, Heal: 7}},
		"never healed":    {Sample{Sent: 20, Received: 20, Heal: never}, Sample{Sent: 10, Received: 9, Gap: 40, Heal: never}},
		"wrong":           {Sample{Sent: 20, Received: 20, Wrong: "x"}, Sample{Sent: 10, Received: 9, Gap: 40, Heal: 7, Wrong: "x"}},
		"disturbed":       {Sample{Sent: 20, Received: 20, Disturbed: true}, Sample{Sent: 10, Received: 9, Gap: 40, Heal: 7, Disturbed: true}},
		"no worse at all": {Sample{Sent: 20, Received: 20}, a},
	} {
		t.Run(name, func(t *testing.T) {
			for _, got := range []Sample{a.worse(tc.other), tc.other.worse(a)} {
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			}
		})
	}
}

// Every fault has a name of its own, and every backend a bound for it or a reason.
func TestAll(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range All() {
		if seen[f.Name] || f.Name == "" || f.Title == "" || f.do == nil {
			t.Errorf("%q: %q: not whole, or there twice", f.Name, f.Title)
		}
		seen[f.Name] = true
		for _, backend := range Backends() {
			if _, bounded := f.bounds[backend]; !bounded && f.Absent(backend) == "" {
				t.Errorf("%s: neither a bound nor a reason for %s", f.Name, backend)
			}
		}
		for backend := range f.absent {
			if !slices.Contains(Backends(), backend) {
				t.Errorf("%s: a reason for %q, which is no backend", f.Name, backend)
			}
		}
	}
}

func TestPick(t *testing.T) {
	var names []string
	for _, f := range Pick("kill", "restart") {
		names = append(names, f.Name)
	}
	if diff := cmp.Diff([]string{"restart", "kill"}, names); diff != "" {
		t.Errorf("in the order of tables (-want +got):\n%s", diff)
	}
	if got, want := len(Pick()), len(All()); got != want {
		t.Errorf("Pick of no names: %d faults, want all %d", got, want)
	}
}

func testReport() Report {
	second := time.Second
	r := Report{
		Machine: machine.Description{CPU: "a CPU", Cores: 2, Kernel: "6.18", Arch: "amd64", Go: "go1.26", Day: "2026-11-21", Load: 0.5},
		Rounds:  3, Outage: time.Minute, Backends: []string{vxlan, udp},
		Faults: []Fault{
			{Name: "restart", Title: "daemon restarted", bounds: byUDP(50 * ms)},
			{Name: "mac", Title: "MAC changed", bounds: alike(300 * ms), absent: lacking("no MAC", udp)},
			{Name: "key", Title: "key deleted", bounds: alike(0), once: true},
			{Name: "upgrade", Title: "upgraded", bounds: byUDP(50 * ms)},
			{Name: "flap", Title: "flapping", bounds: alike(300 * ms)},
		},
		Notes:   []string{"The previous build is that of Monday."},
		samples: map[cell]Sample{}, lacking: map[string]string{"upgrade": "no previous build was given"},
	}
	r.add(cell{"restart", vxlan}, Sample{Sent: 10, Received: 10})
	r.add(cell{"restart", udp}, Sample{Sent: 10, Received: 4, Gap: 40 * time.Millisecond})
	r.add(cell{"restart", udp}, Sample{Sent: 10, Received: 3, Gap: 45 * time.Millisecond, Heal: second})
	r.add(cell{"mac", vxlan}, Sample{Sent: 100, Received: 50, Gap: second / 2, Heal: never})
	r.add(cell{"key", vxlan}, Sample{Sent: 10, Heal: second, Disturbed: true})
	r.add(cell{"flap", vxlan}, Sample{Sent: 10, Received: 10, Wrong: "said twice\n30 repairs"})
	r.add(cell{"flap", udp}, Sample{Sent: 10, Received: 10})
	return r
}

func TestReport(t *testing.T) {
	r := testReport()
	for name, write := range map[string]func(*bytes.Buffer) error{
		"table.md":   func(b *bytes.Buffer) error { return r.Markdown(b) },
		"table.json": func(b *bytes.Buffer) error { return r.JSON(b) },
	} {
		t.Run(name, func(t *testing.T) {
			var got bytes.Buffer
			if err := write(&got); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", name)
			if *update {
				if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if name == "table.json" && !json.Valid(got.Bytes()) {
				t.Error("no JSON")
			}
		})
	}
	want := []string{
		"mac, vxlan: 50 lost, 500 ms; not healed in 10 s, wanted 300 ms",
		"key, vxlan: all lost; healed in 1000 ms (the machine dropped packets), wanted 0 lost",
		"key, udp: not done, wanted 0 lost",
		"flap, vxlan: 0 lost; healed in 0 ms; said twice, 30 repairs, wanted 300 ms",
	}
	if diff := cmp.Diff(want, r.Missed()); diff != "" {
		t.Errorf("missed (-want +got):\n%s", diff)
	}
	if err := r.Err(); !errors.Is(err, ErrMissed) {
		t.Errorf("Err() = %v", err)
	}
	if err := (&Report{}).Err(); err != nil {
		t.Errorf("Err() of nothing = %v", err)
	}
}

// What lasts is done in the last round alone, what something is missing for never.
func TestDue(t *testing.T) {
	r := Report{Rounds: 3, lacking: map[string]string{"upgrade": "no previous build", "kill": ""}}
	for _, tc := range []struct {
		fault Fault
		want  []bool
	}{
		{Fault{Name: "kill"}, []bool{true, true, true}},
		{Fault{Name: "etcd-down", once: true}, []bool{false, false, true}},
		{Fault{Name: "upgrade"}, []bool{false, false, false}},
		{Fault{Name: "upgrade", once: true}, []bool{false, false, false}},
	} {
		for round, want := range tc.want {
			if got := r.due(&tc.fault, round); got != want {
				t.Errorf("%+v in round %d: %t, want %t", tc.fault, round, got, want)
			}
		}
	}
}

// What takes part is named by what it says of itself, and only what does take part.
func TestNotes(t *testing.T) {
	daemon := filepath.Join(t.TempDir(), "flanneld-go")
	if err := os.WriteFile(daemon, []byte("#!/bin/sh\n[ $1 = --version ] && echo flanneld-go v7-3-gabc && echo more\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name    string
		faults  []Fault
		lacking map[string]string
		want    []string
	}{
		{"nothing to name", Pick("kill", "etcd-down"), nil, nil},
		{"a previous build", Pick("upgrade"), nil, []string{"The previous build is flanneld-go v7-3-gabc."}},
		{"the way back alone", Pick("downgrade"), nil, []string{"The previous build is flanneld-go v7-3-gabc."}},
		{"none", Pick("upgrade", "networkd"), map[string]string{"upgrade": "none given", "networkd": "not installed"}, nil},
	} {
		got, err := notes(t.Context(), Options{Faults: tc.faults, Previous: daemon}, tc.lacking)
		if diff := cmp.Diff(tc.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", tc.name, err, diff)
		}
	}
	if _, err := notes(t.Context(), Options{Faults: Pick("upgrade"), Previous: "/nonexistent/daemon"}, nil); err == nil {
		t.Error("a previous build that does not start is not reported")
	}
	if got := lacksPrevious(Options{}); got == "" {
		t.Error("no previous build is missed")
	}
	if got := lacksPrevious(Options{Previous: daemon}); got != "" {
		t.Errorf("with a previous build %q", got)
	}
}

// The page has a place for the table.
func TestPageHasASection(t *testing.T) {
	if err := Section().Check(filepath.Join("..", "..", "..", "docs")); err != nil {
		t.Error(err)
	}
	folder := t.TempDir()
	page := filepath.Join(folder, "benchmarks.md")
	text := "words\n<!-- faults: written by make faults -->\n<!-- faults: end -->\nmore\n"
	if err := os.WriteFile(page, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	r := testReport()
	if err := r.WriteDocs(folder); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(page)
	if err != nil || !bytes.Contains(got, []byte("| daemon restarted | 0 lost, 50 ms |")) || !bytes.HasSuffix(got, []byte("end -->\nmore\n")) {
		t.Errorf("%v, page:\n%s", err, got)
	}
}

// Who repairs too often, or says too much of it, is found out.
func TestFlapCost(t *testing.T) {
	before := cost{repairs: 100, said: 3, cpu: time.Minute}
	for _, tc := range []struct {
		name  string
		after cost
		bad   int
	}{
		{"as wanted", cost{101, 4, time.Minute}, 0},
		{"at most", cost{100 + mostRepairs, 4, time.Minute + mostFlapCPU}, 0},
		{"no repair", cost{100, 4, time.Minute}, 1},
		{"each repaired", cost{150, 4, time.Minute}, 1},
		{"not said", cost{101, 3, time.Minute}, 1},
		{"said twice, at some cost", cost{101, 5, time.Minute + mostFlapCPU + 1}, 2},
	} {
		err := tc.after.sub(before).check()
		if got := strings.Count(fmt.Sprint(err), "want"); (err != nil) != (tc.bad > 0) || got != tc.bad {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}
