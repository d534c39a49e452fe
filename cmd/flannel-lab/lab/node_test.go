package lab

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMainThreadStays: no function that may change its namespace runs on the one thread
// that does not end afterwards.
func TestMainThreadStays(t *testing.T) {
	for range 100 {
		runtime.Gosched() // so that another thread takes the next one, too
		err := onOwnThread(func() error {
			if unix.Gettid() == os.Getpid() {
				t.Error("it runs on the main thread")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
