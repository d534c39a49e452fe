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

// binaries are the lab's etcd, the daemon, and the daemon with a bug by the
// mutant's name.
type binaries struct {
	lab, daemon string
	mutants     map[string]string
}

// built builds them, once.
var built = sync.OnceValues(func() (binaries, error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return binaries{}, err
	}
	if err := os.Mkdir(binDir(), 0o700); err != nil {
		return binaries{}, err
	}
	b := builder{root: root, dir: binDir()}
	all := binaries{mutants: map[string]string{}}
	ctx := context.Background()
	var labErr, daemonErr error
	all.lab, labErr = b.build(ctx, "flannel-lab", "cmd/flannel-lab")
	all.daemon, daemonErr = b.build(ctx, "flanneld-go", "cmd/flanneld-go")
	errs := []error{labErr, daemonErr}
	for _, m := range mutants() {
		all.mutants[m.name], err = b.build(ctx, "flanneld-go-"+m.name, "cmd/flanneld-go", m.edit)
		errs = append(errs, err)
	}
	return all, errors.Join(errs...)
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
