package status

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestBoard(t *testing.T) {
	now := time.Unix(1000, 0)
	b := NewBoard(func() time.Time { return now }, Status{Version: "v1"})
	b.Update(func(s *Status) { s.State, s.Ready = StateRunning, true })

	if s := b.Snapshot(); s.State != StateRunning || !s.Ready {
		t.Fatalf("state %s, ready %t; want running, ready", s.State, s.Ready)
	}
	b.Report(Problem{Component: ComponentFirewall, Message: "a"})
	now = now.Add(time.Minute)
	b.Report(Problem{Component: ComponentFirewall, Message: "b"})
	b.Report(Problem{Component: ComponentEtcd, Message: "c"})
	s := b.Snapshot()
	want := []Problem{
		{Component: ComponentFirewall, Since: time.Unix(1000, 0), Message: "b"},
		{Component: ComponentEtcd, Since: time.Unix(1060, 0), Message: "c"},
	}
	if diff := cmp.Diff(want, s.Problems); diff != "" {
		t.Errorf("problems, oldest first (-want +got):\n%s", diff)
	}
	if s.State != StateDegraded || !s.Ready {
		t.Errorf("state %s, ready %t; want degraded, ready", s.State, s.Ready)
	}
	b.Report(Problem{Component: ComponentKernel, Message: "d", Blocking: true})
	if s := b.Snapshot(); s.Ready {
		t.Error("ready with a blocking problem")
	}
	b.Clear(ComponentKernel)
	b.Clear(ComponentEtcd)
	b.Clear(ComponentFirewall)
	<-b.Changed()
	b.Clear(ComponentFirewall)
	select {
	case <-b.Changed():
		t.Error("to clear nothing is a change")
	default:
	}
	if s := b.Snapshot(); s.State != StateRunning || !s.Ready {
		t.Errorf("state %s, ready %t; want running, ready", s.State, s.Ready)
	}
}

func TestLine(t *testing.T) {
	s := Status{State: StateWaiting, Problems: []Problem{{Component: ComponentConfig, Message: "no network config yet"}}}
	if got, want := s.Line(), "waiting; config: no network config yet"; got != want {
		t.Errorf("line %q, want %q", got, want)
	}
	s = Status{State: StateWaiting, Problems: []Problem{{Component: ComponentConfig, Message: "Network: missing\nSubnetLen: x"}, {Component: ComponentEtcd, Message: "down"}}}
	if got, want := s.Line(), "waiting; config: Network: missing, SubnetLen: x; etcd: down"; got != want {
		t.Errorf("line %q, want %q", got, want)
	}
	s = Status{State: StateRunning, Lease: Lease{Subnet: "10.5.72.0/24"}, Backend: Backend{Type: "vxlan"}, Peers: make([]Peer, 3)}
	if got, want := s.Line(), "running 10.5.72.0/24 by vxlan, 3 peers"; got != want {
		t.Errorf("line %q, want %q", got, want)
	}
}
