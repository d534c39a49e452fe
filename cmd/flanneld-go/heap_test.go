package main

import (
	"runtime/debug"
	"testing"

	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
)

func TestPaceGC(t *testing.T) {
	before := debug.SetGCPercent(100)
	t.Cleanup(func() { debug.SetGCPercent(before) })
	paceGC(cli.EnvOf([]string{"GOGC=100"}))
	if got := debug.SetGCPercent(100); got != 100 {
		t.Errorf("with GOGC set: %d, want it left alone", got)
	}
	paceGC(cli.EnvOf(nil))
	if got := debug.SetGCPercent(100); got != gcPercent {
		t.Errorf("without GOGC: %d, want %d", got, gcPercent)
	}
}
