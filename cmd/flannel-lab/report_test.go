package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// labOf is hosts with containers that exist on paper.
func labOf(names ...string) *lab.Lab {
	l := &lab.Lab{}
	for _, name := range names {
		l.Hosts = append(l.Hosts, &lab.Host{Container: &lab.Container{Node: &lab.Node{Name: name}}})
	}
	return l
}

func answered(sent, received int, median time.Duration) lab.PingResult {
	r := lab.PingResult{Sent: sent, Received: received}
	if received > 0 {
		r.Min, r.Median, r.Max = median-time.Microsecond, median, 3*median
	}
	return r
}

func TestShowMesh(t *testing.T) {
	const µs = time.Microsecond
	mesh := [][]lab.PingResult{
		{{}, answered(10, 10, 40*µs)},
		{answered(10, 9, 50*µs), {}},
	}
	for _, tc := range []struct {
		name string
		mesh [][]lab.PingResult
		want string
		lost int
	}{
		{"loss", mesh, `  ping between containers, 10 each way: median round trip, loss
  from \ to   c1                 c2
  c1          -                  40 µs
  c2          50 µs, 10 % lost   -
  20 sent, 19 received, 5 % lost; fastest 39 µs, slowest 150 µs
`, 1},
		{"nothing arrives", [][]lab.PingResult{{{}, answered(10, 0, 0)}, {answered(10, 0, 0), {}}}, `  ping between containers, 10 each way: median round trip, loss
  from \ to   c1           c2
  c1          -            100 % lost
  c2          100 % lost   -
  20 sent, 0 received, 100 % lost; fastest -, slowest -
`, 20},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			lost, err := showMesh(labOf("c1", "c2"), tc.mesh, 10, &out)
			if err != nil || lost != tc.lost {
				t.Errorf("%d lost (%v), want %d", lost, err, tc.lost)
			}
			if diff := cmp.Diff(tc.want, out.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Of many hosts only the pairs with loss are listed.
func TestShowMeshOfMany(t *testing.T) {
	var names []string
	for _, n := range "abcdefghij" {
		names = append(names, string(n))
	}
	mesh := make([][]lab.PingResult, len(names))
	for i := range mesh {
		mesh[i] = make([]lab.PingResult, len(names))
		for j := range mesh[i] {
			if i != j {
				mesh[i][j] = answered(4, 4, 40*time.Microsecond)
			}
		}
	}
	mesh[2][7] = answered(4, 3, 40*time.Microsecond)
	var out bytes.Buffer
	if _, err := showMesh(labOf(names...), mesh, 4, &out); err != nil {
		t.Fatal(err)
	}
	want := `  ping between containers, 4 each way: median round trip, loss
  c -> h   40 µs, 25 % lost
  360 sent, 359 received, 0.2778 % lost; fastest 39 µs, slowest 120 µs
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
