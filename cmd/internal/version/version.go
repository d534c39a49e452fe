// Package version says which build this is.
package version

import (
	"runtime"
)

// version is set by the linker (see Makefile).
var version = "devel"

// String returns the version alone, such as "v0.1.0-3-g1234567".
func String() string { return version }

// Line returns what --version prints.
func Line(command string) string {
	return command + " " + version + " (" + runtime.Version() + ", " + runtime.GOOS + "/" + runtime.GOARCH + ")"
}
