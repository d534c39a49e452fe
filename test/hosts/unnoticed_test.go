package hosts

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// TestRestartUnnoticed restarts and kills our daemon on both machines below a ping at
// 1,000 packets a second: systemd keeps the tunnel's descriptors meanwhile, packets
// wait in them, and none is lost. Where it may keep none, packets are lost: that is the
// control. A stop gives the device up.
func TestRestartUnnoticed(t *testing.T) {
	if !whole() {
		t.Skip("long matrix: run make hosts")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	o := newOverlay(ctx, t, setup{bookworm(), walks()[0], variants()[0]})
	if err := o.apps[0].WaitPing(ctx, o.apps[1].addr); err != nil {
		t.Fatal(err)
	}
	o.each(t, func(m *Machine) error {
		out, err := m.script(ctx, "cut -d' ' -f19 /proc/$(systemctl show --value --property=MainPID "+ourService+")/task/*/stat | sort -u")
		if err == nil && out != "-10\n" {
			err = fmt.Errorf("%s: threads have the niceness %q, want -10: they come before containers", m.Name, out)
		}
		return err
	})
	const restart = "systemctl restart " + ourService
	for _, how := range endings() {
		t.Run(how.name, func(t *testing.T) {
			if r := o.pingAcross(ctx, t, how.verb+ourService); r.Lost() != 0 {
				t.Errorf("%d of %d packets are lost, want none", r.Lost(), r.Sent)
			}
		})
	}
	t.Run("control: nothing is kept", func(t *testing.T) {
		const dir = "/run/systemd/system/" + ourService + ".service.d"
		set := func(script string) {
			o.each(t, func(m *Machine) error {
				if _, err := m.script(ctx, script+" && systemctl daemon-reload"); err != nil {
					return err
				}
				return m.restartBelow(ctx, ourService, restart) // what was kept before is dropped
			})
		}
		set("mkdir -p " + dir + " && printf '[Service]\nFileDescriptorStoreMax=0\n' >" + dir + "/control.conf")
		if r := o.pingAcross(ctx, t, restart); r.Lost() == 0 {
			t.Errorf("none of %d packets is lost without the store: the others prove nothing", r.Sent)
		}
		set("rm -r " + dir)
	})
	for _, m := range o.machines {
		out, err := m.script(ctx, "journalctl --no-pager -u "+ourService+" | grep -c 'forwarding goes on from the former process'")
		t.Logf("%s: resumed %s", m.Name, out)
		if err != nil {
			t.Errorf("%s never went on from the former process: %v", m.Name, err)
		}
	}
	m := o.machines[0]
	if err := m.Service(ctx, ourService, "stop"); err != nil {
		t.Fatal(err)
	}
	// A queue that somebody holds gives the device its carrier.
	if out, err := m.script(ctx, "ip -o link show flannel0"); err != nil || !strings.Contains(out, "NO-CARRIER") {
		t.Errorf("flannel0 after a stop: %q, %v; want it without a carrier, for nobody holds it", out, err)
	}
}

// endings are the ways in which a process of ours ends and another follows.
func endings() []struct{ name, verb string } {
	return []struct{ name, verb string }{
		{"restart", "systemctl restart "},
		{"kill", "systemctl kill --signal=KILL --kill-who=main "},
	}
}

// pingAcross pings from one machine to the other, every millisecond, while script ends
// our daemon on each of them in turn, and for longer than a second before and after.
func (o *overlay) pingAcross(ctx context.Context, t *testing.T, script string) lab.PingResult {
	t.Helper()
	const around, least = 1500 * time.Millisecond, 2000
	p, err := o.apps[0].StartPing(ctx, lab.PingOptions{To: o.apps[1].addr, Interval: time.Millisecond, Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	<-time.After(around)
	o.each(t, func(m *Machine) error { return m.restartBelow(ctx, ourService, script) })
	<-time.After(around)
	r := p.Stop()
	t.Logf("%d sent, %d lost, longest outage %s, slowest %s", r.Sent, r.Lost(), r.Gap, r.Max)
	if r.Sent < least {
		t.Errorf("only %d packets were sent, want at least %d", r.Sent, least)
	}
	return r
}

// restartBelow runs script, which ends the daemon of a unit, and waits until another
// process of it knows its peers again.
func (m *Machine) restartBelow(ctx context.Context, unit, script string, flags ...string) error {
	pid := "systemctl show --value --property=MainPID " + unit
	before, err := m.script(ctx, pid)
	if err != nil {
		return err
	}
	if _, err := m.script(ctx, script); err != nil {
		return err
	}
	err = m.poll(ctx, "another process", func() (bool, error) {
		after, err := m.script(ctx, pid)
		return err == nil && after != before && after != "0\n", err
	})
	if err != nil {
		return err
	}
	return m.waitPeers(ctx, 1, flags...)
}
