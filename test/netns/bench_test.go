package netns_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// benchReport is what this test looks at of the bench's JSON.
type benchReport struct {
	Rounds   int
	Variants []struct {
		Name    string
		Figures []struct {
			Key    string
			Median float64
			Ratio  *float64
			Rounds []float64
		}
	}
	Claims []struct {
		Found float64
		Holds bool
	}
}

// Every figure is there, of each kind of variant (host-gw differs from vxlan by a
// word); how large they are is not our concern.
func TestBench(t *testing.T) {
	name := benchName()
	cmd := exec.CommandContext(within(t, 10*time.Minute), command(t, "flannel-lab"),
		"bench", "--name", name, "--only", "veth,vxlan,udp,udp-off,forwarder,flannel-loop", "--rounds", "1", "--seconds", "0.01", "--output", "json")
	var out, progress bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &progress
	began := time.Now()
	err := cmd.Run()
	// Of so short a run claims are missed by chance, and that is said last.
	if err != nil && !strings.Contains(progress.String(), "\nflannel-lab: not as wanted: ") {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	t.Logf("took %s", time.Since(began))
	var r benchReport
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("%v in:\n%s", err, out.String())
	}
	// Bare veth has no daemon, so neither its memory nor its CPU time.
	const figures, ofDaemons = 15, 2
	want := map[string]int{
		"veth": figures - ofDaemons, "vxlan": figures, "udp": figures, "udp-off": figures, "forwarder": figures, "flannel-loop": figures,
	}
	if len(r.Variants) != len(want) || r.Rounds != 1 || len(r.Claims) != 7 {
		t.Errorf("got %d variants, %d rounds, %d claims", len(r.Variants), r.Rounds, len(r.Claims))
	}
	for _, c := range r.Claims {
		if !c.Holds && err == nil && !strings.Contains(progress.String(), "which proves nothing") {
			t.Errorf("a claim was missed, found %v, and nothing was said of it", c.Found)
		}
	}
	for _, v := range r.Variants {
		if len(v.Figures) != want[v.Name] {
			t.Errorf("%s has %d figures, want %d", v.Name, len(v.Figures), want[v.Name])
		}
		for _, f := range v.Figures {
			// In so short a time no rate may pass, and no clock tick.
			mayBeNone := f.Key == "cpu_daemons" || f.Key == "cpu_machine" || len(f.Key) > 4 && f.Key[:4] == "udp_"
			if len(f.Rounds) != 1 || f.Median < 0 || f.Median == 0 && !mayBeNone {
				t.Errorf("%s: %s: %v of %v", v.Name, f.Key, f.Median, f.Rounds)
			}
			if f.Key == "tcp_1_stream" && f.Ratio == nil {
				t.Errorf("%s: %s has no ratio", v.Name, f.Key)
			}
		}
	}
	checkNoTraces(t, name)
}

// A signal, at whatever moment, ends the bench and leaves nothing behind.
func TestBenchCleansUpOnASignal(t *testing.T) {
	for _, after := range []time.Duration{30 * time.Millisecond, time.Second, 4 * time.Second} {
		t.Run(after.String(), func(t *testing.T) {
			interrupt(t, after, "bench", "--name", benchName(), "--only", "udp,forwarder", "--seconds", "10")
			checkNoTraces(t, benchName())
		})
	}
}

func benchName() string { return fmt.Sprintf("bench%d", os.Getpid()) }
