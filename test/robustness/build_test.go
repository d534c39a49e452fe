package robustness

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// newBuilder builds into a folder of the test.
func newBuilder(t *testing.T) builder {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return builder{root: root, dir: t.TempDir()}
}

// The daemon's clocks go where the file says, while it runs.
func TestClockJumps(t *testing.T) {
	b := newBuilder(t)
	probe, err := b.build(t.Context(), "probe", "test/robustness/testdata/probe")
	if err != nil {
		t.Fatal(err)
	}
	clock, err := newClockFile(filepath.Join(t.TempDir(), "clock"))
	if err != nil {
		t.Fatal(err)
	}
	p := startProbe(t, probe, clock.path)
	wall, boot := p.read()
	for _, tc := range []struct{ wall, boot time.Duration }{
		{time.Hour, 0}, {-3 * time.Hour, 0}, {0, time.Minute}, {time.Second, time.Hour},
	} {
		if err := clock.jump(tc.wall, tc.boot); err != nil {
			t.Fatal(err)
		}
		nextWall, nextBoot := p.read()
		const slack = 20 * time.Second // between two looks, on a busy machine
		for name, d := range map[string]time.Duration{"wall": nextWall - wall - tc.wall, "boot": nextBoot - boot - tc.boot} {
			if d < 0 || d > slack {
				t.Errorf("after a jump of %s and %s the %s clock went on by %s", tc.wall, tc.boot, name, d)
			}
		}
		wall, boot = nextWall, nextBoot
	}
}

type probe struct {
	t     *testing.T
	lines *bufio.Scanner
	ask   func() error
}

func startProbe(t *testing.T, path, clock string) probe {
	t.Helper()
	cmd := exec.Command(path)
	cmd.Env = append(os.Environ(), clockEnv+"="+clock)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
			t.Error(err)
		}
	})
	return probe{t, bufio.NewScanner(out), func() error { _, err := fmt.Fprintln(in); return err }}
}

func (p probe) read() (wall, boot time.Duration) {
	p.t.Helper()
	if err := p.ask(); err != nil {
		p.t.Fatal(err)
	}
	if !p.lines.Scan() {
		p.t.Fatal("the probe ended")
	}
	if _, err := fmt.Sscan(p.lines.Text(), &wall, &boot); err != nil {
		p.t.Fatalf("%q: %v", p.lines.Text(), err)
	}
	return wall, boot
}

func TestEditMustFit(t *testing.T) {
	for name, tc := range map[string]struct {
		e    edit
		want string
	}{
		"once":    {edit{old: "b", new: "x"}, "axa"},
		"nowhere": {edit{old: "c"}, ""},
		"twice":   {edit{old: "a"}, ""},
	} {
		got, err := tc.e.apply("aba")
		if got != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
		if err != nil && !errors.Is(err, errEdit) {
			t.Errorf("%s: %v is not errEdit", name, err)
		}
	}
}

// Source that moves on shows here, within a second, that a mutant must follow.
func TestMutantsFitTheSource(t *testing.T) {
	b := newBuilder(t)
	names := map[string]bool{}
	for _, m := range mutants() {
		if _, err := b.overlay(filepath.Join(b.dir, m.name), []edit{m.edit}); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
		if names[m.name] || m.name == "" || !strings.Contains(m.bug, " ") {
			t.Errorf("%q: %q: wants a name of its own and a sentence", m.name, m.bug)
		}
		if m.proof.validator == "" || m.proof.says == "" {
			t.Errorf("%s: %+v is no proof of one bug", m.name, m.proof)
		}
		names[m.name] = true
	}
	if len(names) != 7 {
		t.Errorf("%d mutants, want 7", len(names))
	}
}

func TestProof(t *testing.T) {
	p := proof{validator: LostWrite, host: "h1", says: "wrote over"}
	for name, tc := range map[string]struct {
		v    Violation
		p    proof
		want bool
	}{
		"the bug":            {Violation{Validator: LostWrite, Host: "h1", Message: "h1 wrote over it"}, p, true},
		"another validator":  {Violation{Validator: OneOwner, Host: "h1", Message: "h1 wrote over it"}, p, false},
		"another host":       {Violation{Validator: LostWrite, Host: "h2", Message: "h2 wrote over it"}, p, false},
		"another bug":        {Violation{Validator: LostWrite, Host: "h1", Message: "h1 was superseded"}, p, false},
		"whichever the host": {Violation{Validator: LostWrite, Host: "h2", Message: "h2 wrote over it"}, proof{LostWrite, "", "wrote over"}, true},
	} {
		if got := tc.p.is(tc.v); got != tc.want {
			t.Errorf("%s: got %t", name, got)
		}
	}
}
