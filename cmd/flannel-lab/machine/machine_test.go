package machine

import (
	"errors"
	"testing"
	"time"
)

func TestProc(t *testing.T) {
	const machine = "cpu  100 20 3 9999 888 4 5 77 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"
	if got, err := machineTime(machine); err != nil || got != 1320*time.Millisecond {
		t.Errorf("machine: got %s, %v", got, err)
	}
	const process = "42 (a (b) c d) S 1 42 42 0 -1 4194304 9 9 9 9 150 50 7 7 20 0 9 0 1 1 1\n"
	if got, err := processTime(process); err != nil || got != 2140*time.Millisecond {
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
