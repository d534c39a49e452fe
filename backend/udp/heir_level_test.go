package udp

import (
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// Where nobody said how many queues there must be, those of the former process are
// taken over, whatever became of the cores; what does not make a whole is replaced.
func TestKernelInheritsQueues(t *testing.T) {
	tests := []struct {
		name          string
		options       string
		before, cores int
		drop          string
		queues        int
		whole         bool
	}{
		{name: "fewer cores", options: "{}", before: 4, cores: 2, queues: 4, whole: true},
		{name: "more cores", options: "{}", before: 2, cores: 4, queues: 2, whole: true},
		{name: "more than one core", options: "{}", before: 1, cores: 3, queues: 1, whole: true},
		{name: "one queue is missing", options: "{}", before: 3, cores: 3, drop: queue1, queues: 3},
		{name: "one queue is missing, fewer cores", options: "{}", before: 3, cores: 2, drop: queue1, queues: 2},
		{name: "one socket is missing", options: "{}", before: 3, cores: 2, drop: socket1, queues: 3},
		{name: "the number is set", options: `{"Queues":2}`, before: 2, cores: 4, queues: 2, whole: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cores := runtime.GOMAXPROCS(2 * tt.before) // a queue for two
			defer runtime.GOMAXPROCS(cores)
			m := twoMachines(t)
			a, b := m[0], m[1]
			b.boot(t)
			b.mustApply(t, a)
			b.start(t)
			a.options = tt.options
			a.boot(t)
			a.mustApply(t, b)
			files := a.keep(t)
			a.Close()
			if tt.drop != "" {
				files = drop(files, tt.drop)
			}
			runtime.GOMAXPROCS(2 * tt.cores)
			a.boot(t)
			in := a.inherit(t, files, b)
			if in.Whole != tt.whole || tt.whole && in.Refused != nil {
				t.Errorf("inherited %+v", in)
			}
			a.mustApply(t, b)
			if got := a.Level().Queues; got != tt.queues || len(a.Descriptors()) != 2*tt.queues {
				t.Errorf("%d queues, descriptors %v; want %d", got, names(a.Descriptors()), tt.queues)
			}
			a.start(t)
			mustPing(t, a.container, "10.5.2.2")
			mustPing(t, b.container, "10.5.1.2")
		})
	}
}

// Who has no offloads takes the queues of one that had, and turns theirs off; sockets
// that join datagrams cannot be told not to, and are opened anew.
func TestKernelInheritsWithoutOffloads(t *testing.T) {
	a, b := joined(t)
	if tso, _ := a.tunnel.offloads(); !tso {
		t.Fatal("the first process has no offloads: the test proves nothing")
	}
	files := a.keep(t)
	a.stop(t)
	a.options = `{"Queues":2,"Offload":"off"}`
	a.boot(t)
	in := a.inherit(t, files, b)
	var refused []string
	for _, err := range in.Refused {
		refused = append(refused, err.Error())
	}
	if diff := cmp.Diff(both(socket0, socket1, "it joins datagrams, and Offload is off"), refused); diff != "" || in.Whole {
		t.Errorf("whole: %t; refused (-want +got):\n%s", in.Whole, diff)
	}
	if tso, uso := a.tunnel.offloads(); tso || uso {
		t.Errorf("the queues have tso %t, uso %t", tso, uso)
	}
	a.mustApply(t, b)
	a.start(t)
	echoStream(t, a, b, subnet.IPv4)
	echoStream(t, b, a, subnet.IPv4)
}

// Who inherits is like one that opens all anew: it has the offloads, also where the process
// before had none, and the further ports to send from. Those of the tunnel's own port
// are asked alone, for the others bring theirs.
func TestKernelInheritsAll(t *testing.T) {
	for ports, senders := range map[string]int{"vary": 1 + sourcesMost, "fixed": 1} {
		t.Run(ports, func(t *testing.T) {
			a := twoMachines(t)[0]
			options := `{"Queues":2,"SourcePorts":"` + ports + `"`
			a.options = options + "}"
			a.boot(t)
			a.mustApply(t)
			want := a.Level()
			a.Close()
			a.options = options + `,"Offload":"off"}`
			a.boot(t)
			a.mustApply(t)
			files := a.keep(t)
			a.Close()
			a.options = options + "}"
			a.boot(t)
			defer func() { a.Close() }()
			if in := a.inherit(t, files); !in.Whole || in.Refused != nil {
				t.Fatalf("inherited %+v", in)
			}
			if diff := cmp.Diff(want, a.Level()); diff != "" {
				t.Errorf("level (-of one that opens all +of the heir):\n%s", diff)
			}
			for i, o := range a.outlets.load().sets[0].outlets {
				joins := 0
				err := control(o.conn.(*socket).raw, func(fd int) (err error) {
					joins, err = unix.GetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO)
					return err
				})
				if err != nil || (joins != 0) != want.Offloads[offloadGRO] {
					t.Errorf("queue %d: joins datagrams: %d, %v; want %t", i, joins, err, want.Offloads[offloadGRO])
				}
				if len(o.senders) != senders {
					t.Errorf("queue %d sends from %d ports, want %d", i, len(o.senders), senders)
				}
			}
		})
	}
}
