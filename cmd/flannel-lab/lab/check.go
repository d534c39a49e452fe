package lab

import (
	"errors"
	"fmt"
	"os"
)

// What a machine may lack.
var (
	// ErrNotRoot: network namespaces need root.
	ErrNotRoot = errors.New("needs root: it makes network namespaces")
	// ErrNoBinary: a program that the lab runs was not built.
	ErrNoBinary = errors.New("not built")
)

// CheckRoot says whether this process may make a lab at all.
func CheckRoot() error {
	if os.Geteuid() != 0 {
		return ErrNotRoot
	}
	return nil
}

// CheckBinary says whether a program can be run.
func CheckBinary(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoBinary, err)
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return fmt.Errorf("%w: %s is not executable", ErrNoBinary, path)
	}
	return nil
}
