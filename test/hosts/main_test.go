package hosts

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// whole reports whether the long matrix was asked for (make hosts); `make test`
// runs a slice of it.
func whole() bool { return os.Getenv("FLANNEL_TEST_HOSTS") == "all" }

// busyboxPath is Debian's static busybox, of which the containers' image is made.
const busyboxPath = "/bin/busybox"

// requirements skips a test that cannot run here, and says why.
func requirements(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: boots machines")
	}
	for _, tool := range []string{"debootstrap", "systemd-nspawn", "nsenter", busyboxPath} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: run make deps", filepath.Base(tool))
		}
	}
}

// built builds the product once, as its users do, and returns the folder of
// the checkout.
var built = sync.OnceValues(func() (string, error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return "", err
	}
	if out, err := exec.Command("make", "-C", root, "build").CombinedOutput(); err != nil {
		return "", fmt.Errorf("make build: %w: %s", err, tail(string(out), 20))
	}
	return root, nil
})

// site is a network of machines, with etcd on the switch.
type site struct {
	*lab.Lab
	machines []*Machine
}

// newSite boots machines of a recipe and a variant with the product installed,
// switched off, and Docker running.
func newSite(ctx context.Context, t *testing.T, r recipe, v variant, count int) *site {
	t.Helper()
	requirements(t)
	checkout, err := built()
	if err != nil {
		t.Fatal(err)
	}
	base, err := r.prepare(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// One host more than machines: a peer that is not there.
	l, err := lab.New(ctx, lab.Options{Hosts: count + 1, Self: filepath.Join(checkout, "bin/flannel-lab")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(context.Background()); err != nil {
			t.Errorf("close lab: %v", err)
		}
	})
	s := &site{Lab: l}
	if err := l.StartEtcd(ctx); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "flanneld-go-hosts-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(dir) }) // empty by then
	for _, h := range l.Hosts[:count] {
		m, err := newMachine(r, base, filepath.Join(dir, h.Name), h)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := m.Remove(); err != nil {
				t.Error(err)
			}
		})
		if err := v.choose(ctx, m); err != nil {
			t.Fatal(err)
		}
		s.machines = append(s.machines, m)
	}
	s.each(t, func(m *Machine) error { return m.Boot(ctx) })
	s.each(t, func(m *Machine) error {
		if out, err := exec.CommandContext(ctx, "make", "-C", checkout, "install", "DESTDIR="+m.Root).CombinedOutput(); err != nil {
			return fmt.Errorf("make install: %w: %s", err, tail(string(out), 20))
		}
		_, err := m.script(ctx, m.services.installed)
		return err
	})
	s.each(t, func(m *Machine) error { return loadImage(ctx, m) })
	t.Cleanup(func() {
		if t.Failed() {
			s.dump(t)
		}
	})
	return s
}

// each runs f for all machines at once.
func (s *site) each(t *testing.T, f func(*Machine) error) {
	t.Helper()
	errs := make([]error, len(s.machines))
	var wg sync.WaitGroup
	for i, m := range s.machines {
		wg.Go(func() { errs[i] = f(m) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// dump shows what a machine would show to whoever looks into a failure.
func (s *site) dump(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, m := range s.machines {
		if m.process == nil {
			continue
		}
		for _, args := range [][]string{
			{"flannelctl", "status"},
			{"sh", "-c", m.services.log, ourService},
			{"sh", "-c", m.services.log, dockerService},
			{"iptables-save", "-c"},
			{"ip", "route"},
			{"ip", "addr"},
		} {
			out, err := m.Run(ctx, args...)
			t.Logf("%s: %s (%v)\n%s", m.Name, strings.Join(args, " "), err, out)
		}
	}
}

// loadImage gives Docker an image, since no registry is in reach.
func loadImage(ctx context.Context, m *Machine) error {
	binary, err := os.ReadFile(busyboxPath)
	if err != nil {
		return err
	}
	var image bytes.Buffer
	w := tar.NewWriter(&image)
	headers := []*tar.Header{
		{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o777},
		{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(binary))},
	}
	for _, applet := range []string{"sh", "ping", "nc", "sleep", "sha256sum", "dd", "cat", "ip", "netstat", "httpd", "wget"} {
		headers = append(headers, &tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777})
	}
	for _, h := range headers {
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(binary); err != nil {
				return err
			}
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	_, err = m.Pipe(ctx, &image, "docker", "import", "-", "busybox")
	return err
}
