package udp

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/udp/offload"
)

func TestLevel(t *testing.T) {
	h := newHost(t)
	var log bytes.Buffer
	h.sockets.log = slog.New(slog.NewTextHandler(&log, nil))
	h.joins.log = h.sockets.log
	if diff := cmp.Diff(backend.Level{}, h.Level()); diff != "" {
		t.Errorf("before Apply (-want +got):\n%s", diff)
	}
	if err := h.Apply(t.Context(), h.desired()); err != nil {
		t.Fatal(err)
	}
	want := backend.Level{Queues: 2, Offloads: map[string]bool{"tso": true, "uso": true, "udp_segment": true, "udp_gro": true, "join_tcp": true, "join_udp": true}}
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
	for what, kind := range map[string]offload.Kind{"join_tcp": offload.TCP6, "join_udp": offload.UDP} {
		for range 3 { // by any of the queues
			h.joins.giveUp(kind, unix.EINVAL)
		}
		want.Offloads[what] = false
		if diff := cmp.Diff(want, h.Level()); diff != "" {
			t.Errorf("after a refusal of %s (-want +got):\n%s", what, diff)
		}
		if n := strings.Count(log.String(), "offload="+what+" error=\"invalid argument\""); n != 1 {
			t.Errorf("said %d times of %s:\n%s", n, what, &log)
		}
	}
	if got := log.String(); strings.Count(got, "offload given up") != 3 || !strings.Contains(got, "offload=udp_segment error=\"input/output error\"") {
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
		want := backend.Level{Queues: 2, Offloads: map[string]bool{"tso": on, "uso": on, "udp_segment": on, "udp_gro": on, "join_tcp": true, "join_udp": on}}
		if on { // Linux 6.2
			want.Offloads["uso"] = m.Level().Offloads["uso"]
			want.Offloads["join_udp"] = want.Offloads["uso"]
		}
		if diff := cmp.Diff(want, m.Level()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", options, diff)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestKernelLevelIsLogged once for each device, whether Apply has opened it, it was left by
// a former process, or that handed it over.
func TestKernelLevelIsLogged(t *testing.T) {
	for name, tc := range map[string]struct {
		begin   func(*testing.T, *machine)
		message string
	}{
		"opened": {func(t *testing.T, m *machine) { m.mustApply(t) }, "attached to tunnel device"},
		"left": {func(t *testing.T, m *machine) {
			if in := m.inherit(t, nil); !in.Whole {
				t.Errorf("inherited %+v", in)
			}
		}, "took over tunnel device"},
		"handed over": {nil, "took over tunnel device"},
	} {
		t.Run(name, func(t *testing.T) {
			m := twoMachines(t)[0]
			m.boot(t)
			m.mustApply(t)
			files := m.keep(t)
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			if tc.begin != nil {
				for _, f := range files {
					f.Close()
				}
			}
			m.boot(t)
			var log bytes.Buffer
			m.log = slog.New(slog.NewTextHandler(&log, nil))
			if tc.begin == nil {
				if in := m.inherit(t, files); !in.Whole {
					t.Errorf("inherited %+v", in)
				}
			} else {
				tc.begin(t, m)
			}
			m.start(t)
			m.mustApply(t)
			m.ns.pingAnswered("-c 1 10.5.99.9")
			await(t, "a packet was read", func() bool { return m.Stats().Out.Packets[NoPeer] > 0 })
			m.stop(t)
			want := fmt.Sprintf("msg=%q device=flannel0 mtu=1472 queues=2 offloads=\"join_tcp ", tc.message)
			if got := log.String(); strings.Count(got, "tunnel device") != 1 || !strings.Contains(got, want) {
				t.Errorf("logged:\n%s\nwant %s", got, want)
			}
		})
	}
}
