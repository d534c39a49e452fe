package scale

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page/pagetest"
)

// script is what perf prints, of a program whose name has a space too.
const script = `flanneld-go   4711 
	ffffffff81a2b3c4
	          46f3a3
	          46f000

tmux: server     9 
	ffffffff81a2b3c4

iptables-restor  5001 
	    7f0000001000

flanneld-go   4711 
`

func TestReadSamples(t *testing.T) {
	got := slices.Collect(readSamples([]byte(script)))
	want := []sample{
		{"flanneld-go", 4711, []uint64{0xffffffff81a2b3c4, 0x46f3a3, 0x46f000}},
		{"tmux: server", 9, []uint64{0xffffffff81a2b3c4}},
		{"iptables-restor", 5001, []uint64{0x7f0000001000}},
		{"flanneld-go", 4711, nil},
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(sample{})); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	var firewall []bool
	for _, s := range got {
		firewall = append(firewall, s.ofFirewall())
	}
	if !slices.Equal(firewall, []bool{false, false, true, false}) {
		t.Errorf("of the firewall: %v", firewall)
	}
	for first := range readSamples([]byte(script)) {
		if first.pid != 4711 {
			t.Errorf("the first is of %d", first.pid)
		}
		break
	}
}

// This program is as a stripped one as far as its line table goes.
func TestSymbols(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s, err := readSymbols(self)
	if err != nil {
		t.Fatal(err)
	}
	here := uint64(reflect.ValueOf(TestSymbols).Pointer())
	// perf says of a stripped program, as this may be, where in the file it was.
	got := s.frames([]uint64{0xffffffff81a2b3c4, here + 1 - s.offset, 1})
	if len(got) != 1 || !strings.HasSuffix(got[0].function, "scale.TestSymbols") || !strings.HasSuffix(got[0].file, "scale/profile_test.go") {
		t.Errorf("got %+v", got)
	}
	if _, err := readSymbols("profile_test.go"); err == nil {
		t.Error("a text is a program")
	}
}

func TestPartOf(t *testing.T) {
	const loop = own + "cmd/flanneld-go/reconcile.go"
	frames := func(places ...string) (all []frame) {
		for _, p := range places {
			function, file, _ := strings.Cut(p, " ")
			all = append(all, frame{function, file})
		}
		return all
	}
	for name, tc := range map[string]struct {
		stack []frame
		want  part
	}{
		"nobody's":           {nil, partRuntime},
		"scheduler":          {frames("runtime.futex runtime/sys_linux_amd64.s", "runtime.mstart runtime/proc.go"), partRuntime},
		"collector":          {frames("runtime.scanobject runtime/mgcmark.go", "runtime.gcBgMarkWorker runtime/mgc.go"), partCollector},
		"memory that is due": {frames("runtime.gcAssistAlloc runtime/mgcmark.go", "x "+own+"subnet/scan.go"), partCollector},
		"memory":             {frames("runtime.mallocgc runtime/malloc.go", "x "+own+"subnet/scan.go", "y "+own+"subnet/etcdstore/load.go"), partDecode},
		"a library's":        {frames("x google.golang.org/grpc@v1.9/transport.go"), partEtcd},
		"the view":           {frames("x "+own+"subnet/view.go", "y "+loop), partView},
		"netlink":            {frames("x internal/poll/fd_unix.go", "y "+own+"backend/kernel/batch.go", "z "+own+"backend/vxlan/apply.go", "l "+loop), partNetlink},
		"the difference":     {frames("y "+own+"backend/reconcile/diff.go", "l "+loop), partDiff},
		"rules":              {frames("x os/exec/exec.go", "y "+own+"backend/firewall/native/write.go", "l "+loop), partFirewall},
		"the loop":           {frames("x slices/sort.go", "l "+loop), partDaemon},
	} {
		t.Run(name, func(t *testing.T) {
			if got := partOf(tc.stack); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestProfileTable(t *testing.T) {
	p := Profile{Peers: 10_000, Samples: map[part]int{partEtcd: 100, partNetlink: 300, partRuntime: 100}, Kernel: map[part]int{partNetlink: 150}}
	pagetest.Golden(t, *update, "profile.md", []byte(p.markdown()))
	seen := map[string]bool{}
	for _, in := range Parts() {
		if seen[in.String()] {
			t.Errorf("two parts are called %q", in)
		}
		seen[in.String()] = true
	}
}
