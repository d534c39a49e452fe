package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/daemonconfig"
)

// widestTable is how many hosts a table of pairs still fits a terminal with.
const widestTable = 8

func newTable(out io.Writer) *tabwriter.Writer {
	return tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
}

// showHosts prints what each host was given.
func showHosts(l *lab.Lab, out io.Writer) error {
	t := newTable(out)
	fmt.Fprintln(t, "  host\taddress\tsubnet\tcontainer\tdevice\tmtu")
	for i, h := range l.Hosts {
		env, err := h.ReadSubnet()
		if err != nil {
			return err
		}
		peer := l.Hosts[(i+1)%len(l.Hosts)]
		device, err := h.DeviceTo(peer.Container.Addr())
		if err != nil {
			return err
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%s\t%d\n",
			h.Name, h.Addrs[0].Addr(), daemonconfig.HostAddr(env.Subnets[0]), h.Container.Addr(), device, env.MTU)
	}
	fmt.Fprintln(t)
	return t.Flush()
}

// showMesh prints a table of pairs, or for many hosts only those with loss, and
// returns how many packets were lost.
func showMesh(l *lab.Lab, mesh [][]lab.PingResult, count int, out io.Writer) (lost int, err error) {
	fmt.Fprintf(out, "  ping between containers, %d each way: median round trip, loss\n", count)
	if len(l.Hosts) > widestTable {
		err = showLossyPairs(l, mesh, out)
	} else {
		err = showPairs(l, mesh, out)
	}
	var all meshSummary
	for _, row := range mesh {
		for _, r := range row {
			all.add(r)
		}
	}
	fmt.Fprintf(out, "  %s\n", all)
	return all.sent - all.received, err
}

func showPairs(l *lab.Lab, mesh [][]lab.PingResult, out io.Writer) error {
	t := newTable(out)
	fmt.Fprint(t, "  from \\ to")
	for _, to := range l.Hosts {
		fmt.Fprintf(t, "\t%s", to.Container.Name)
	}
	fmt.Fprintln(t)
	for i, from := range l.Hosts {
		fmt.Fprintf(t, "  %s", from.Container.Name)
		for j := range l.Hosts {
			fmt.Fprintf(t, "\t%s", meshCell(mesh[i][j]))
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}

func showLossyPairs(l *lab.Lab, mesh [][]lab.PingResult, out io.Writer) error {
	t := newTable(out)
	for i, from := range l.Hosts {
		for j, to := range l.Hosts {
			if mesh[i][j].Lost() > 0 {
				fmt.Fprintf(t, "  %s -> %s\t%s\n", from.Container.Name, to.Container.Name, meshCell(mesh[i][j]))
			}
		}
	}
	return t.Flush()
}

// meshCell reads as "42 µs", or with loss "42 µs, 3 % lost".
func meshCell(r lab.PingResult) string {
	switch {
	case r.Sent == 0:
		return "-"
	case r.Received == 0:
		return "100 % lost"
	case r.Lost() > 0:
		return fmt.Sprintf("%s, %.0f %% lost", micros(r.Median), 100*float64(r.Lost())/float64(r.Sent))
	}
	return micros(r.Median)
}

type meshSummary struct {
	sent, received int
	best, worst    time.Duration
}

func (s *meshSummary) add(r lab.PingResult) {
	s.sent += r.Sent
	s.received += r.Received
	if r.Received == 0 {
		return
	}
	if s.best == 0 || r.Min < s.best {
		s.best = r.Min
	}
	s.worst = max(s.worst, r.Max)
}

// String reads as "300 sent, 300 received, 0 % lost; fastest 31 µs, slowest 220 µs".
func (s meshSummary) String() string {
	loss := 100 * float64(s.sent-s.received) / float64(max(1, s.sent))
	return fmt.Sprintf("%d sent, %d received, %.4g %% lost; fastest %s, slowest %s",
		s.sent, s.received, loss, micros(s.best), micros(s.worst))
}

func micros(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return fmt.Sprintf("%d µs", d.Microseconds())
}

func showTransfer(from, to *lab.Container, r lab.TransferResult, out io.Writer) {
	fmt.Fprintf(out, "  tcp %s -> %s: %d MiB in %.2f s, %.2f Gb/s, sha256 equal, source seen %s\n\n",
		from.Name, to.Name, r.Bytes>>20, r.Took.Seconds(), r.BitsPerSecond()/1e9, r.Source)
}

// showAround prints what to type in another terminal.
func showAround(o demoOptions, l *lab.Lab, out io.Writer) {
	h, peer := l.Hosts[0], l.Hosts[1]
	fmt.Fprintf(out, `The lab runs until Ctrl-C. To look around, in another terminal:

  %[1]s status --socket=%[2]s
  ip netns exec %[3]s %[1]s leases --etcd-endpoints=%[4]s
  ip netns exec %[5]s ip route
  ip netns exec %[6]s ping %[7]s
  tail -f %[8]s
  kill -9 %[9]d    # the daemon on %[5]s: traffic goes on without it
`,
		o.ctl, h.Socket(), l.Switch.Name, l.EtcdURL(), h.Name,
		h.Container.Name, peer.Container.Addr(), h.Daemon.Spec.Log, h.Daemon.PID())
}
