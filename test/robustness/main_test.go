package robustness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if err := os.RemoveAll(binDir()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	}))
}

// binDir is where this process keeps the binaries that it tests.
func binDir() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("flannel-robustness-%d", os.Getpid()))
}

// build builds commands of the module, edited, into binDir.
func build(name, pkg string, edits ...edit) (string, error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(binDir(), 0o700); err != nil {
		return "", err
	}
	return builder{root: root, dir: binDir()}.build(context.Background(), name, pkg, edits...)
}

// binaries are flannel-lab, which runs etcd, the daemon and flannelctl.
type binaries struct{ lab, daemon, ctl string }

// built builds them, once.
var built = sync.OnceValues(func() (binaries, error) {
	self, labErr := build("flannel-lab", "cmd/flannel-lab")
	daemon, daemonErr := build("flanneld-go", "cmd/flanneld-go")
	ctl, ctlErr := build("flannelctl", "cmd/flannelctl")
	return binaries{self, daemon, ctl}, errors.Join(labErr, daemonErr, ctlErr)
})

// prepared skips a test that cannot run here, and returns what it needs.
func prepared(t *testing.T) binaries {
	t.Helper()
	if err := lab.CheckRoot(); err != nil {
		t.Skip(err)
	}
	b, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return b
}
