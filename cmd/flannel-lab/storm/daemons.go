package storm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
)

// daemonsConfig is the network of the real daemons.
const daemonsConfig = `{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}`

// Daemons is what real daemons that were started at once came to.
type Daemons struct {
	Hosts int `json:"hosts"`
	// Leased is when all had a subnet, Connected when each had a path to each.
	Leased    time.Duration `json:"leased_ns"`
	Connected time.Duration `json:"connected_ns"`
	// Counts are those of all hosts until then, Start how many requests a host had
	// sent, on average, when it had a path to each other: what it asked for while it
	// waited for those that were slower is not among them.
	Counts Counts  `json:"counts"`
	Start  float64 `json:"start_requests"`
	// Subnets is how many different ones they had, Pairs how many paths the kernels
	// had, Pings how many of the pairs of containers that were tried answered.
	Subnets int `json:"subnets"`
	Pairs   int `json:"pairs"`
	Pings   int `json:"pings"`
	// Memory is the most that all daemons had, added; Largest what one had, and
	// Etcd what etcd had, in bytes.
	Memory  int64 `json:"memory"`
	Largest int64 `json:"largest"`
	Etcd    int64 `json:"etcd"`
}

const (
	// lookEvery is how often hosts are looked at: hundreds of them share the
	// machine with who looks.
	lookEvery = 250 * time.Millisecond
	// upWithin bounds the start of all daemons.
	upWithin = 3 * time.Minute
	// mostPings is how many pairs of containers are tried.
	mostPings = 20
)

// RunDaemons starts the daemons of a lab on which nothing runs yet, all at once.
// What it starts is the lab's to end.
func RunDaemons(ctx context.Context, l *lab.Lab, progress io.Writer) (Daemons, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, upWithin, fmt.Errorf("not within %s", upWithin))
	defer cancel()
	d := Daemons{Hosts: len(l.Hosts)}
	if err := l.StartEtcd(ctx); err != nil {
		return d, err
	}
	if err := l.PutConfig(ctx, daemonsConfig); err != nil {
		return d, err
	}
	client := clientIn(l.Switch)
	defer client.CloseIdleConnections()
	before, err := fetchCounts(ctx, client, l.EtcdURL())
	if err != nil {
		return d, err
	}
	begin := time.Now()
	for _, h := range l.Hosts {
		if err := h.StartDaemon(); err != nil {
			return d, err
		}
	}
	if err := awaitLeases(ctx, l); err != nil {
		return d, err
	}
	d.Leased = time.Since(begin)
	fmt.Fprintf(progress, "%d daemons: all leased after %.1f s\n", d.Hosts, d.Leased.Seconds())
	if err := d.awaitReady(ctx, l); err != nil {
		return d, err
	}
	d.Connected = time.Since(begin)
	after, err := fetchCounts(ctx, client, l.EtcdURL())
	if err != nil {
		return d, err
	}
	d.Counts = after.since(before)
	fmt.Fprintf(progress, "%d daemons: all ready after %.1f s, %.2f requests of each until it had a path to each\n", d.Hosts, d.Connected.Seconds(), d.Start)
	return d, errors.Join(d.checkPaths(l), d.ping(ctx, l), d.weigh(l))
}

// clientIn speaks HTTP from inside a namespace.
func clientIn(n *lab.Node) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			addr, err := netip.ParseAddrPort(address)
			if err != nil {
				return nil, err
			}
			return n.Dial(ctx, addr)
		},
	}}
}

// look looks at every host again and again until it is as wanted.
func look(ctx context.Context, l *lab.Lab, what string, wanted func(*lab.Host) (bool, error)) error {
	return l.Each(ctx, func(ctx context.Context, h *lab.Host) error {
		for {
			ok, err := wanted(h)
			switch {
			case err != nil:
				return err
			case ok:
				return nil
			case !h.Daemon.Running():
				return fmt.Errorf("%s: daemon ended; the end of %s:\n%s", h.Name, h.Daemon.Spec.Log, h.Daemon.Tail(10))
			}
			if err := lab.Wait(ctx, lookEvery+rand.N(lookEvery)); err != nil {
				return fmt.Errorf("%s: wait for %s: %w", h.Name, what, err)
			}
		}
	})
}

// awaitLeases returns when every host has a subnet.
func awaitLeases(ctx context.Context, l *lab.Lab) error {
	return look(ctx, l, "a subnet", func(h *lab.Host) (bool, error) {
		_, err := h.ReadSubnet()
		return err == nil, nil // It is not written yet.
	})
}

// awaitReady returns when every daemon says that it reaches all others, and notes how
// many requests each had sent by then.
func (d *Daemons) awaitReady(ctx context.Context, l *lab.Lab) error {
	var requests atomic.Uint64
	err := look(ctx, l, "readiness", func(h *lab.Host) (bool, error) {
		s, err := h.Status(ctx)
		// Until it listens there is no answer.
		ready := err == nil && s.Ready && len(s.Peers) == len(l.Hosts)-1
		if ready {
			requests.Add(s.Etcd.Traffic.Requests)
		}
		return ready, nil
	})
	d.Start = float64(requests.Load()) / float64(d.Hosts)
	return err
}

// checkPaths asks every host's kernel for the path to every other host.
func (d *Daemons) checkPaths(l *lab.Lab) error {
	var targets []netip.Addr
	owners := map[netip.Prefix]string{}
	for _, h := range l.Hosts {
		env, err := h.ReadSubnet()
		if err != nil {
			return err
		}
		targets = append(targets, env.Subnets[0].Addr())
		owners[env.Subnets[0].Masked()] = h.Name
	}
	d.Subnets = len(owners)
	for i, h := range l.Hosts {
		for j, to := range targets {
			if i == j {
				continue
			}
			device, err := h.DeviceTo(to)
			if err != nil {
				return err
			}
			if device == vxlanDevice {
				d.Pairs++
			}
		}
	}
	return nil
}

// vxlanDevice is flannel's name for it.
const vxlanDevice = "flannel.1"

// ping tries some pairs, by containers on them.
func (d *Daemons) ping(ctx context.Context, l *lab.Lab) error {
	order := rand.Perm(len(l.Hosts))[:min(mostPings, len(l.Hosts))]
	var g errgroup.Group
	for _, i := range order {
		g.Go(func() error {
			env, err := l.Hosts[i].ReadSubnet()
			if err != nil {
				return err
			}
			return l.Hosts[i].StartContainer(env)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for n, i := range order {
		from, to := l.Hosts[i], l.Hosts[order[(n+1)%len(order)]]
		if err := from.Container.WaitPing(ctx, to.Container.Addr()); err != nil {
			return err
		}
		d.Pings++
	}
	return nil
}

// weigh adds up memory.
func (d *Daemons) weigh(l *lab.Lab) error {
	var all []int64
	for _, h := range l.Hosts {
		m, err := machine.PeakMemory(h.Daemon.PID())
		if err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
		all = append(all, m)
		d.Memory += m
	}
	d.Largest = slices.Max(all)
	var err error
	d.Etcd, err = machine.PeakMemory(l.Etcd().PID())
	return err
}
