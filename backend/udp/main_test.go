package udp

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// TestMain fails when a test leaves a goroutine, a TUN descriptor, a socket or an epoll
// instance.
func TestMain(m *testing.M) {
	if r, w, err := os.Pipe(); err == nil { // from now on Go's poller has its instance
		_, _ = r.Close(), w.Close()
	}
	before := descriptors()
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if after := descriptors(); after != before {
			fmt.Fprintf(os.Stderr, "descriptors left open: %+v, at the start %+v\n", after, before)
			code = 1
		}
		os.Exit(code)
	}))
}

type openDescriptors struct{ tuns, sockets, epolls int }

func descriptors() (n openDescriptors) {
	all, _ := filepath.Glob("/proc/self/fd/*")
	for _, fd := range all {
		switch to, _ := os.Readlink(fd); {
		case to == tunNode:
			n.tuns++
		case strings.HasPrefix(to, "socket:"):
			n.sockets++
		case strings.HasSuffix(to, "[eventpoll]"):
			n.epolls++
		}
	}
	return n
}
