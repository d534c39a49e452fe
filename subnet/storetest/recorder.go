package storetest

import (
	"runtime"
	"slices"
	"sync"
	"testing"
)

// recorder is a double of a [testing.T] that is allowed to fail.
type recorder struct {
	testing.TB

	mu sync.Mutex
	// The fields below are guarded by mu.

	failed   bool
	cleanups []func()
}

// run calls f as a test, and what it registered to clean up.
func (r *recorder) run(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
	for _, cleanup := range slices.Backward(r.cleanups) {
		cleanup()
	}
}

func (r *recorder) fail() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = true
}

// Failed implements [testing.TB].
func (r *recorder) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

// Cleanup implements [testing.TB].
func (r *recorder) Cleanup(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cleanups = append(r.cleanups, f)
}

// Helper implements [testing.TB].
func (r *recorder) Helper() {}

// Error implements [testing.TB].
func (r *recorder) Error(...any) { r.fail() }

// Errorf implements [testing.TB].
func (r *recorder) Errorf(string, ...any) { r.fail() }

// Fatal implements [testing.TB].
func (r *recorder) Fatal(...any) {
	r.fail()
	runtime.Goexit()
}

// Fatalf implements [testing.TB].
func (r *recorder) Fatalf(string, ...any) {
	r.fail()
	runtime.Goexit()
}
