package robustness

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// What is loaded is what was saved, but that an empty list may become none.
func TestRecordSurvivesTheDisk(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		want := drawRecord(t)
		if err := want.Save(dir); err != nil {
			t.Fatal(err)
		}
		got, err := LoadRecord(dir)
		if err != nil {
			t.Fatal(err)
		}
		compare := []cmp.Option{cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
		if diff := cmp.Diff(want, got, compare...); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	})
}

// drawRecord draws samples freely, and something in every other place.
func drawRecord(t *rapid.T) *Record {
	addr := netip.MustParseAddr("198.18.0.1")
	r := &Record{
		Seed: rapid.Uint64().Draw(t, "seed"), TTL: 6 * time.Second, Duration: time.Hour,
		Hosts:  []Host{{Name: "h1", Node: "one", Addr: addr, Foreign: []netip.Prefix{netip.MustParsePrefix("10.5.9.0/24")}, Policy: subnet.Fence}},
		Epochs: []Epoch{{Began: 1, Why: whyRestore, Base: []Event{{Revision: 2, Key: "config"}}, Events: []Event{{At: 4, Revision: 3, Key: "subnets/a", Value: "\x00<>\u2028", Lease: 1 << 62, Created: 2, Operator: true}}}},
		Faults: []Fault{{Kind: "kill", From: 1, Until: 2, To: []string{"h1"}, Hosts: []string{"h1"}, Every: true, Unreachable: []string{"h1"}, Detail: "d", Err: "e"}},
		Runs:   []Run{{Host: "h1", From: 1, Until: 2, Killed: true, Asked: 1, Status: -1, Tail: "t"}},
		Pairs:  []Pair{{From: "h1", To: "h2", Began: 1, Ended: 6, Interval: 3, Sent: 4, Lost: []time.Duration{5}}},
		Final:  Final{Healed: 1, Leased: map[string]time.Duration{"h1": 2}, Ready: map[string]time.Duration{"h1": -1}, Mesh: -1, Silent: []string{"h1 -> h2"}},
		Load:   []Load{{Host: "h1", Requests: 1, CPU: 2, LogLines: 3, Course: []Cost{{At: 1, Requests: 1, CPU: 2, LogLines: 3}}}},
	}
	for range rapid.IntRange(0, 20).Draw(t, "samples") {
		r.Samples = append(r.Samples, drawSample(t))
	}
	return r
}

// drawSample draws of few values each, so that samples are often alike.
func drawSample(t *rapid.T) Sample {
	s := Sample{
		Host: rapid.SampledFrom([]string{"h1", "h2"}).Draw(t, "host"),
		From: time.Duration(rapid.Int64().Draw(t, "from")), Until: time.Duration(rapid.Int64().Draw(t, "until")),
		SubnetEnv:    File{Exists: rapid.Bool().Draw(t, "exists"), Text: rapid.SampledFrom([]string{"", "a"}).Draw(t, "text")},
		DockerConfig: File{Exists: rapid.Bool().Draw(t, "exists"), Text: rapid.SampledFrom([]string{"", "a"}).Draw(t, "text")},
	}
	if rapid.Bool().Draw(t, "own") {
		s.Own = []netip.Prefix{netip.MustParsePrefix("10.5.3.0/32")}
	}
	if rapid.Bool().Draw(t, "routes") {
		s.Routes = []Route{{Subnet: netip.MustParsePrefix("10.5.4.0/24"), MAC: "02:00:00:00:00:01"}}
	}
	if rapid.Bool().Draw(t, "status") {
		s.Status = &HostStatus{PID: rapid.IntRange(1, 2).Draw(t, "pid"), Ready: rapid.Bool().Draw(t, "ready"), Problems: []string{"etcd: gone"}}
	}
	return s
}

// Samples that show the same take the memory of one.
func TestAlikeSamplesAreStoredOnce(t *testing.T) {
	r := &Record{}
	for i := range 100 {
		r.Samples = append(r.Samples, Sample{Host: "h1", From: time.Duration(i), SubnetEnv: File{Exists: true, Text: "x"}}, Sample{Host: "h2"})
	}
	if p := r.pack(); len(p.Looks) != 2 || len(p.Samples) != 200 {
		t.Errorf("%d looks of %d samples, want 2 of 200", len(p.Looks), len(p.Samples))
	}
}

func TestLoadRecordRefuses(t *testing.T) {
	if _, err := LoadRecord(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of an empty folder: %v", err)
	}
	dir := t.TempDir()
	if err := writePacked(dir, saved{Samples: []savedSample{{Look: 1}}, Looks: []Sample{{}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadRecord(dir); !errors.Is(err, errLook) {
		t.Errorf("of a sample without a look: %v", err)
	}
	r := &Record{Samples: []Sample{{Host: "h1"}}}
	if err := r.Save(dir); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, recordName))
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		if err := os.WriteFile(filepath.Join(dir, recordName), whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadRecord(dir); err == nil {
			t.Errorf("%d of %d bytes are a record", n, len(whole))
		}
	}
}
