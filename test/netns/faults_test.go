package netns_test

import (
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/faults"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

const (
	// byEvent is how long traffic may stand still on a slow machine: as long as a fault
	// may last that is healed at all, since rounds of the daemon's own accord are an hour
	// apart. `make faults` holds it against the true bounds.
	byEvent = 10 * time.Second
)

// A host is broken in one way after the other, and must heal by itself. Where
// nothing may be lost, nothing is.
func TestFaultsAreHealed(t *testing.T) {
	daemon := command(t, "flanneld-go")
	l := bareLab(t, lab.Options{
		Hosts: faults.HostsFor(faults.Backends()), Daemon: daemon, DaemonArgs: []string{"--iptables-resync=3600"},
	})
	picked := faults.Pick("kill", "key-deleted", "device-deleted", "device-down", "mac-changed", "mtu-changed", "address-removed",
		"routes-deleted", "routes-replaced", "route-flapping", "fdb-deleted", "fdb-entry-deleted", "neighbours-replaced", "neighbour-replaced",
		"events-lost", "rules-flushed", "forwarding-off", "interface-forwarding-off", "uplink-flapped", "uplink-address-both")
	r, err := faults.Run(within(t, 15*time.Minute), l, faults.Options{
		Backends: faults.Backends(), Faults: picked, Rounds: 1, Current: daemon, Together: true, Progress: t.Output(),
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range picked {
		f := &picked[i]
		for _, backend := range faults.Backends() {
			if f.Absent(backend) != "" {
				continue
			}
			s, ok := r.Sample(f.Name, backend)
			most := max(byEvent, 2*time.Duration(f.Bound(backend)))
			switch {
			case !ok || s.Received == 0 || !s.Healed() || s.Wrong != "":
				t.Errorf("%s, %s: %s, done: %t", f.Name, backend, s, ok)
			case s.Disturbed:
				t.Logf("%s, %s: %s", f.Name, backend, s)
			case f.Bound(backend) == 0 && s.Lost() > 0, s.Gap > most, s.Heal > most:
				t.Errorf("%s, %s: %s, wanted %s, and never more than %s", f.Name, backend, s, f.Bound(backend), most)
			}
		}
	}
}
