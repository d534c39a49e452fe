package netns_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The README's first command.
func TestDemo(t *testing.T) {
	name := demoName()
	began := time.Now()
	out, err := exec.CommandContext(within(t, 10*time.Minute), command(t, "flannel-lab"), "demo", "--name", name).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("took %s\n%s", time.Since(began), out)
	for _, want := range []string{
		"udp   {", "vxlan   {", "host-gw   {", "flannel0", "flannel.1", "1472", "1450", "1500", "sha256 equal",
		"0 % loss between 3 containers over udp, vxlan, host-gw",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is missing in the output", want)
		}
	}
	checkNoTraces(t, name)
}

// A signal, at whatever moment, ends the demo and leaves nothing behind.
func TestDemoCleansUpOnASignal(t *testing.T) {
	for _, after := range []time.Duration{0, 30 * time.Millisecond, 300 * time.Millisecond, 1500 * time.Millisecond} {
		t.Run(after.String(), func(t *testing.T) {
			interrupt(t, after, "demo", "--name", demoName(), "--keep")
			checkNoTraces(t, demoName())
		})
	}
}

// interrupt runs flannel-lab and sends it a signal, as Ctrl-C does.
func interrupt(t *testing.T, after time.Duration, args ...string) {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(command(t, "flannel-lab"), args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pause(t, after)
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	kill := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer kill()
	// Cut short it has shown nothing, which is a failure.
	_ = cmd.Wait()
	if ctx.Err() != nil {
		t.Fatalf("did not end:\n%s", out.String())
	}
}

func demoName() string { return fmt.Sprintf("demo%d", os.Getpid()) }

func checkNoTraces(t *testing.T, name string) {
	t.Helper()
	for _, pattern := range []string{"/run/netns/" + name + "-*", "/run/flannel-lab/" + name} {
		left, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		if len(left) > 0 {
			t.Errorf("left behind: %s", left)
		}
	}
}
