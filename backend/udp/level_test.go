package udp

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/backend"
)

func TestLevel(t *testing.T) {
	h := newHost(t)
	var log bytes.Buffer
	h.sockets.log = slog.New(slog.NewTextHandler(&log, nil))
	if diff := cmp.Diff(backend.Level{}, h.Level()); diff != "" {
		t.Errorf("before Apply (-want +got):\n%s", diff)
	}
	if err := h.Apply(t.Context(), h.desired()); err != nil {
		t.Fatal(err)
	}
	want := backend.Level{Queues: 2, Offloads: map[string]bool{"tso": true, "uso": true, "udp_segment": true, "udp_gro": true}}
	if diff := cmp.Diff(want, h.Level()); diff != "" {
		t.Errorf("after Apply (-want +got):\n%s", diff)
	}
	for range 3 { // by any of the sockets
		h.sockets.giveUpSegment(unix.EIO)
	}
	want.Offloads["udp_segment"] = false
	if diff := cmp.Diff(want, h.Level()); diff != "" {
		t.Errorf("after a refusal (-want +got):\n%s", diff)
	}
	if got := log.String(); strings.Count(got, "offload given up") != 1 || !strings.Contains(got, "offload=udp_segment error=\"input/output error\"") {
		t.Errorf("logged:\n%s", got)
	}
	for _, o := range h.outlets.load().sets[0].outlets {
		if o.conn.(*socket).level != &h.sockets {
			t.Error("a socket has not given it up")
		}
	}
	if got := listOn(want.Offloads); got != "tso udp_gro uso" {
		t.Errorf("named %q", got)
	}
}

func TestKernelLevel(t *testing.T) {
	for options, on := range map[string]bool{"": true, `{"Queues":2,"Offload":"off"}`: false} {
		m := twoMachines(t)[0]
		m.options = options
		m.boot(t)
		m.mustApply(t)
		want := backend.Level{Queues: 2, Offloads: map[string]bool{"tso": on, "uso": on, "udp_segment": on, "udp_gro": on}}
		if on { // Linux 6.2
			want.Offloads["uso"] = m.Level().Offloads["uso"]
		}
		if diff := cmp.Diff(want, m.Level()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", options, diff)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}
