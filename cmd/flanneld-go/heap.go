package main

import (
	"runtime/debug"

	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
)

// gcPercent is by how much the heap may outgrow what lives before it is collected. A
// start with thousands of peers leaves several times as much garbage as lives after
// it: by Go's own 100 that becomes the process's peak. Afterwards little is allocated,
// and collections are rare whatever the figure.
const gcPercent = 50

// paceGC sets it, unless the operator chose another by Go's own variable. The other
// one, GOMEMLIMIT, the runtime heeds by itself.
func paceGC(env cli.Env) {
	if _, chosen := env("GOGC"); !chosen {
		debug.SetGCPercent(gcPercent)
	}
}
