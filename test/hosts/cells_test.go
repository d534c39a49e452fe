package hosts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// cell is one question to a setup. What it answers with success may carry a
// note for the table. Cells run in their order on the same machines, and leave
// them as they found them, the last one aside.
type cell struct {
	name string
	run  func(context.Context, *overlay) (note string, err error)
}

func cells() []cell {
	return []cell{
		{"rules", rulesCell},
		{"ping", pingCell},
		{"tcp", tcpCell},
		{"source kept", sourceCell},
		{"published", publishedCell},
		{"forged", forgedCell},
		{"forged inside", forgedInsideCell},
		{"network create", networkCell},
		{"DOCKER-USER", userDropCell},
		{"docker restart", dockerRestartCell},
		{"icc=false", iccCell},
		{"our restart", ourRestartCell},
		{"flush", flushCell},
	}
}

const (
	// answerWithin bounds the wait for anything that should come at once.
	answerWithin = time.Minute
	// restartWithin bounds a restart of Docker and its containers.
	restartWithin = 3 * time.Minute
	// longestStart bounds an outage for as long as a program takes to start, which
	// carries every packet where nobody keeps its sockets: that is the machine's.
	longestStart = 5 * time.Second
)

// longestOutage is what is promised, which `make hosts` holds against the product. In
// `make test` the machine does much else, and gives nobody time for longer than that.
func longestOutage() time.Duration {
	if whole() {
		return time.Second
	}
	return 5 * time.Second
}

// rulesCell looks whether the rules on source addresses are where the variant
// wants them, and nowhere else.
func rulesCell(ctx context.Context, o *overlay) (string, error) {
	var errs []error
	for _, m := range o.machines {
		where := map[string]bool{}
		for _, tool := range []string{"iptables-nft", "iptables-legacy"} {
			out, err := m.Run(ctx, tool+"-save", "-t", "nat")
			errs = append(errs, err)
			where[tool] = strings.Contains(out, "FLANNELD-GO-NAT")
		}
		out, err := m.Host.Run(ctx, "nft", "list", "ruleset")
		errs = append(errs, err)
		_, ours, _ := strings.Cut(out, "table ip flanneld-go {")
		ours, _, _ = strings.Cut(ours, "\n}")
		where["nftables"] = strings.Contains(ours, "type nat")
		// Our own table keeps sources inside the network in any case.
		want := map[string]bool{"iptables-nft": false, "iptables-legacy": false, "nftables": true}
		want[o.variant.name] = true
		if diff := cmp.Diff(want, where); diff != "" {
			errs = append(errs, fmt.Errorf("%s: where rules on source addresses are (-want +got):\n%s", m.Name, diff))
		}
	}
	return "", errors.Join(errs...)
}

func pingCell(ctx context.Context, o *overlay) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	return "", o.bothWays(func(from, to *app) error { return wantPing(ctx, from, to) })
}

func tcpCell(ctx context.Context, o *overlay) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	return "", o.bothWays(func(from, to *app) error {
		_, err := lab.Transfer(ctx, from.Node, to.Node, to.addr, 8<<20)
		return err
	})
}

func sourceCell(ctx context.Context, o *overlay) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	return "", o.bothWays(func(from, to *app) error {
		r, err := lab.Transfer(ctx, from.Node, to.Node, to.addr, 1)
		if err == nil && r.Source != from.addr {
			err = fmt.Errorf("%s sees %s, want the container's own %s", to.Name, r.Source, from.addr)
		}
		return err
	})
}

// publishedCell asks for a port published on one machine from the other: from
// the machine itself, and from its container.
func publishedCell(ctx context.Context, o *overlay) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	return "", o.bothWays(func(from, to *app) error {
		ln, err := to.Listen(netip.AddrPortFrom(to.addr, 80))
		if err != nil {
			return err
		}
		defer ln.Close()
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return // closed: the question is answered
				}
				_, _ = io.WriteString(conn, to.Name) // who asks notices
				_ = conn.Close()
			}
		}()
		at := netip.AddrPortFrom(to.machine.Host.Addrs[0].Addr(), 8080)
		return errors.Join(
			wantAnswer(ctx, from.machine.Host.Node, at, to.Name),
			wantAnswer(ctx, from.Node, at, to.Name),
		)
	})
}

func wantAnswer(ctx context.Context, from *lab.Node, at netip.AddrPort, want string) error {
	conn, err := from.Dial(ctx, at)
	if err != nil {
		return fmt.Errorf("published port, asked by %s: %w", from.Name, err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != want {
		return fmt.Errorf("published port, asked by %s: %q (%w), want %q", from.Name, got, err, want)
	}
	return nil
}

// under pings every 5 ms from the first container to the second while f runs,
// and returns the longest outage, which must not be longer than limit.
func (o *overlay) under(ctx context.Context, limit time.Duration, f func() error) (time.Duration, error) {
	p, err := o.apps[0].StartPing(ctx, lab.PingOptions{To: o.apps[1].addr})
	if err != nil {
		return 0, err
	}
	err = errors.Join(f(), o.apps[0].WaitPing(ctx, o.apps[1].addr))
	r := p.Stop()
	if err == nil && r.Gap > limit {
		err = fmt.Errorf("an outage of %s, longer than %s", r.Gap, limit)
	}
	return r.Gap, err
}

// networkCell makes and removes a network, for which Docker writes rules anew.
func networkCell(ctx context.Context, o *overlay) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, restartWithin)
	defer cancel()
	gap, err := o.under(ctx, longestOutage(), func() error {
		m := o.machines[1]
		if _, err := m.Run(ctx, "docker", "network", "create", "other"); err != nil {
			return err
		}
		err := wantPing(ctx, o.apps[0], o.apps[1])
		_, removed := m.Run(ctx, "docker", "network", "rm", "other")
		return errors.Join(err, removed)
	})
	return outage(gap), err
}

func outage(gap time.Duration) string { return gap.Round(time.Millisecond).String() }

// userDropCell puts a drop into DOCKER-USER where a user would: first. It must
// keep its effect on what it names, and on nothing else.
func userDropCell(ctx context.Context, o *overlay) (_ string, err error) {
	ctx, cancel := context.WithTimeout(ctx, restartWithin)
	defer cancel()
	from, to := o.apps[0], o.apps[1]
	rule := []string{"DOCKER-USER", "-s", from.addr.String(), "-d", to.addr.String(), "-p", "icmp", "-j", "DROP"}
	if _, err := to.machine.Run(ctx, append([]string{"iptables", "-w", "-I"}, rule...)...); err != nil {
		return "", err
	}
	// Longer than our daemon takes to look at a table that was changed.
	r, err := from.Ping(ctx, lab.PingOptions{To: to.addr, Count: 100, Interval: 20 * time.Millisecond})
	if err == nil && r.Received > 0 {
		err = fmt.Errorf("in spite of a DROP in DOCKER-USER: %s", r)
	}
	_, transferred := lab.Transfer(ctx, from.Node, to.Node, to.addr, 1<<20)
	_, removed := to.machine.Run(ctx, append([]string{"iptables", "-w", "-D"}, rule...)...)
	return "", errors.Join(err, transferred, removed, wantPing(ctx, from, to))
}

// dockerRestartCell restarts both dockerds, and wants the containers to be
// reached as soon as they run.
func dockerRestartCell(ctx context.Context, o *overlay) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, restartWithin)
	defer cancel()
	if err := o.restartDocker(ctx, o.machines...); err != nil {
		return "", err
	}
	began := time.Now()
	err := o.apps[0].WaitPing(ctx, o.apps[1].addr)
	took := time.Since(began)
	if err == nil && took > longestOutage() {
		err = fmt.Errorf("no answer for %s after the containers ran", took)
	}
	return outage(took), errors.Join(err, o.bothWays(func(from, to *app) error { return wantPing(ctx, from, to) }))
}

// restartDocker returns when the containers run again.
func (o *overlay) restartDocker(ctx context.Context, machines ...*Machine) error {
	for _, m := range machines {
		if err := m.Service(ctx, dockerService, "restart"); err != nil {
			return err
		}
	}
	return o.openApps(ctx)
}

// iccCell forbids containers of one machine to talk to each other: what comes in
// by the overlay is another matter, and stays.
func iccCell(ctx context.Context, o *overlay) (_ string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*restartWithin)
	defer cancel()
	m := o.machines[1]
	if err := m.setDocker(ctx, "icc", false); err != nil {
		return "", err
	}
	defer func() {
		_, removed := m.Run(ctx, "docker", "rm", "-f", "neighbour")
		err = errors.Join(err, removed, m.setDocker(ctx, "icc", nil), o.restartDocker(ctx, m))
	}()
	if err := o.restartDocker(ctx, m); err != nil {
		return "", err
	}
	if _, err := m.Run(ctx, "docker", "run", "-d", "--name=neighbour", "--stop-signal=KILL", "busybox", "sleep", "86400"); err != nil {
		return "", err
	}
	neighbour, err := m.openApp(ctx, "neighbour")
	if err != nil {
		return "", err
	}
	defer neighbour.Close()
	r, err := neighbour.Ping(ctx, lab.PingOptions{To: o.apps[1].addr, Count: 100})
	if err == nil && r.Received > 0 {
		err = fmt.Errorf("with icc=false, from the container beside: %s", r)
	}
	return "", errors.Join(err, wantPing(ctx, o.apps[0], o.apps[1]), wantPing(ctx, o.apps[0], neighbour))
}

// setDocker sets a key of daemon.json as an admin would; nil removes it.
func (m *Machine) setDocker(ctx context.Context, key string, value any) error {
	const path = "/etc/docker/daemon.json"
	text, err := m.Read(ctx, path)
	if err != nil {
		return err
	}
	config := map[string]any{}
	if err := json.Unmarshal([]byte(text), &config); err != nil {
		return fmt.Errorf("read daemon.json: %w", err)
	}
	if value == nil {
		delete(config, key)
	} else {
		config[key] = value
	}
	changed, err := json.Marshal(config)
	if err != nil {
		return err
	}
	_, err = m.Pipe(ctx, strings.NewReader(string(changed)), "tee", path)
	return err
}

// ourRestartCell restarts our daemon on both machines in turn.
func ourRestartCell(ctx context.Context, o *overlay) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, restartWithin)
	defer cancel()
	before, err := o.processes(ctx)
	if err != nil {
		return "", err
	}
	limit := longestOutage()
	if o.walk.name == "udp" && !o.machines[0].services.keeps {
		limit = longestStart
	}
	gap, err := o.under(ctx, limit, func() error {
		for _, m := range o.machines {
			if err := m.Service(ctx, ourService, "restart"); err != nil {
				return err
			}
			if err := m.waitPeers(ctx, len(o.machines)-1); err != nil {
				return err
			}
		}
		return nil
	})
	after, listed := o.processes(ctx)
	if before != after {
		err = errors.Join(err, fmt.Errorf("processes before and after (-before +after):\n%s", cmp.Diff(before, after)))
	}
	return outage(gap), errors.Join(err, listed)
}

// flushCell does to both machines at once what people do to firewalls. It comes
// last: what Docker had there is gone.
func flushCell(ctx context.Context, o *overlay) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, restartWithin)
	defer cancel()
	// A flush with INPUT's policy DROP cuts off the machine, not the overlay.
	for _, m := range o.machines {
		if _, err := m.Run(ctx, "iptables", "-w", "-P", "INPUT", "ACCEPT"); err != nil {
			return "", err
		}
	}
	gap, err := o.under(ctx, longestOutage(), func() error {
		errs := make(chan error, len(o.machines))
		for _, m := range o.machines {
			go func() {
				_, err := m.Run(ctx, "sh", "-c", "iptables -w -P FORWARD DROP; iptables -w -F")
				errs <- err
			}()
		}
		var all error
		for range o.machines {
			all = errors.Join(all, <-errs)
		}
		// The first answer may be of a moment before the flush.
		return errors.Join(all, wantPing(ctx, o.apps[1], o.apps[0]))
	})
	return outage(gap), err
}
