package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
)

func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

func runStatus(ctx context.Context, inv *invocation) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	s, err := inv.fetchStatus(ctx)
	if err != nil {
		return err
	}
	if inv.json {
		enc := json.NewEncoder(inv.out)
		enc.SetIndent("", "  ")
		return enc.Encode(s)
	}
	return printStatus(inv.out, s, time.Now())
}

// maxPeers is how many peers fit the screen; those without a path come first.
// maxOddities is how many rows about etcd's keys do.
const (
	maxPeers    = 20
	maxOddities = 10
)

// printStatus writes one screen: first what is wrong and what to type, then
// what is.
func printStatus(out io.Writer, s status.Status, now time.Time) error {
	ready := "ready"
	if !s.Ready {
		ready = "NOT READY"
	}
	fmt.Fprintf(out, "%s, %s; flanneld-go %s, pid %d, up %s\n", strings.ToUpper(string(s.State)), ready, s.Version, s.PID, age(now, s.Started))
	for _, p := range s.Problems {
		fmt.Fprintf(out, "\n  %s, for %s:\n    %s\n", p.Component, age(now, p.Since), strings.ReplaceAll(p.Message, "\n", "\n    "))
		if p.Hint != "" {
			fmt.Fprintf(out, "    try: %s\n", p.Hint)
		}
	}
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	row("node", "%s", s.Node)
	row("etcd", "%s at %s, prefix %s, revision %d", connected(s.Etcd.Connected), orDash(strings.Join(s.Etcd.Endpoints, ",")), s.Etcd.Prefix, s.Etcd.Revision)
	row("network", "%s", known(s.Config.BackendType, "%s, backend %s, config revision %d", strings.Join(s.Config.Networks, ", "), s.Config.BackendType, s.Config.Revision))
	row("subnet", "%s", leaseLine(s.Lease, now))
	row("uplink", "%s", known(s.Uplink.Name, "%s, %s, mtu %d", s.Uplink.Name, orDash(strings.Join(s.Uplink.Public, ", ")), s.Uplink.MTU))
	row("data path", "%s", known(s.Backend.Type, "%s, mtu %d%s", strings.TrimSpace(s.Backend.Type+" "+strings.Join(s.Backend.Devices, ",")), s.Backend.MTU, levelNote(s.Backend)+pathNote(s.Backend)))
	row("loop", "%d rounds, %d failed; last %s ago in %s", s.Sync.Runs, s.Sync.Failures, age(now, s.Sync.LastRun), time.Duration(s.Sync.LastSeconds*float64(time.Second)).Round(time.Millisecond))
	for _, f := range s.Files {
		row("file", "%s", strings.TrimSpace(f.Path+" "+f.State+" "+f.Error))
	}
	for _, r := range oddities(s) {
		row(r[0], "%s", r[1])
	}
	if line := droppedLine(s.Dropped); line != "" {
		row("dropped", "%s", line)
	}
	if s.Docker != nil {
		row("docker", "%s", dockerLine(*s.Docker))
	}
	row("peers", "%s", peersLine(s))
	if err := w.Flush(); err != nil {
		return err
	}
	return printPeers(out, s.Peers)
}

// levelNote says what a data path in user space runs with; empty: there is none.
func levelNote(b status.Backend) string {
	if b.Queues == 0 {
		return ""
	}
	note := fmt.Sprintf(", queues %d", b.Queues)
	for _, on := range []bool{true, false} {
		word := map[bool]string{true: ", offloads", false: ", without"}[on]
		for _, name := range slices.Sorted(maps.Keys(b.Offloads)) {
			if b.Offloads[name] == on {
				note += word + " " + name
				word = ""
			}
		}
	}
	return note
}

// pathNote says when the data path is not what its line promises.
func pathNote(b status.Backend) string {
	switch b.DataPath {
	case status.PathApplied:
	case status.PathWithdrawn:
		return ", WITHDRAWN"
	case status.PathPending:
		return ", not set up yet"
	}
	return "" // a daemon that does not say
}

func peersLine(s status.Status) string {
	line := strconv.Itoa(len(s.Peers))
	if len(s.Peers) > 0 && s.Backend.DataPath == status.PathWithdrawn {
		line += ", none with a path from here"
	}
	return line
}

// droppedLine says how many packets lied about their source, and how; empty: none.
func droppedLine(dropped map[string]uint64) string {
	var sum uint64
	var parts []string
	for _, reason := range slices.Sorted(maps.Keys(dropped)) {
		if n := dropped[reason]; n > 0 {
			sum += n
			parts = append(parts, fmt.Sprintf("%s %d", reason, n))
		}
	}
	if sum == 0 {
		return ""
	}
	return fmt.Sprintf("%d forged packets: %s", sum, strings.Join(parts, ", "))
}

// oddities are rows about what stands in etcd and should not: which key and why,
// which address and who publishes it. A problem says what to type.
func oddities(s status.Status) [][2]string {
	var rows [][2]string
	for _, b := range s.BadKeys {
		rows = append(rows, [2]string{"bad key", fmt.Sprintf("%s/subnets/%s: %s", s.Etcd.Prefix, b.Key, b.Error)})
	}
	for _, a := range s.SharedAddresses {
		var holders []string
		for _, h := range a.Holders {
			holders = append(holders, h.Subnet+" of node "+h.Node)
		}
		rows = append(rows, [2]string{"shared", a.PublicIP + ": " + strings.Join(holders, " and ")})
	}
	if more := len(rows) - maxOddities; more > 0 {
		rows = append(rows[:maxOddities], [2]string{"", fmt.Sprintf("and %d more: flannelctl status --json", more)})
	}
	return rows
}

func printPeers(out io.Writer, peers []status.Peer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	shown, failed := 0, 0
	for _, broken := range []bool{true, false} {
		for _, p := range peers {
			if broken != (p.Error != "") {
				continue
			}
			if broken {
				failed++
			}
			if shown < maxPeers {
				shown++
				fmt.Fprintln(w, strings.TrimRight("  "+p.Subnet+"\t"+p.PublicIP+"\t"+p.Error, "\t"))
			}
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if more := len(peers) - shown; more > 0 {
		fmt.Fprintf(out, "  and %d more, %d of them without a path: flannelctl status --json\n", more, max(failed-shown, 0))
	}
	return nil
}

func leaseLine(l status.Lease, now time.Time) string {
	if l.Subnet == "" {
		return "-"
	}
	line := l.Subnet + ", " + l.State + " for " + age(now, l.Since)
	switch {
	case l.Reservation:
		line += ", reserved for ever"
	case !l.Expires.IsZero() && l.Expires.Before(now):
		line += ", expired " + age(now, l.Expires) + " ago"
	case !l.Expires.IsZero():
		line += ", expires in " + age(l.Expires, now) + " unless renewed"
	}
	if l.Reason != "" {
		line += ": " + l.Reason
	}
	return line
}

// dockerLine is what Docker is and has.
func dockerLine(d status.Docker) string {
	line := orDash(d.Version)
	if !d.Running {
		line += ", not running"
	}
	if d.Firewall != "" {
		line += ", firewall " + d.Firewall
	}
	if d.Bridge != "" {
		line += ", " + strings.TrimSpace(d.Bridge+" "+strings.Join(d.Addresses, " "))
		if d.MTU != 0 {
			line += fmt.Sprintf(" mtu %d", d.MTU)
		}
	}
	if d.Network != "" {
		line += ", network " + d.Network
	}
	if len(d.Differs) > 0 {
		line += "; DIFFERS: " + strings.Join(d.Differs, "; ") + ": " + d.Hint
	}
	return line
}

func connected(yes bool) string {
	if yes {
		return "connected"
	}
	return "NOT CONNECTED"
}

// known is the line, or a dash while nothing is known of its subject.
func known(subject, format string, args ...any) string {
	if subject == "" {
		return "-"
	}
	return fmt.Sprintf(format, args...)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// age is the time from since to now, rounded to what a person reads.
func age(now, since time.Time) string {
	if since.IsZero() {
		return "never"
	}
	d := max(now.Sub(since), 0)
	switch {
	case d < time.Minute:
		return d.Round(time.Second).String()
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}
