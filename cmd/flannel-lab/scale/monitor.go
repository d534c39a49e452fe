package scale

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// monitor notes when the kernel of a namespace told of a new entry.
type monitor struct {
	done    chan struct{}
	readers sync.WaitGroup

	// mu guards what follows.
	mu sync.Mutex
	// routes and ways are when the kernel told of a route, and of an FDB entry.
	routes map[netip.Prefix]time.Time
	ways   map[way]time.Time
	// err is why events were lost.
	err error
}

// way is an FDB entry.
type way struct {
	mac kernel.MAC
	dst netip.Addr
}

// monitorBuffer takes all events of a burst.
const monitorBuffer = 32 << 20

func newMonitor(n *lab.Node) (*monitor, error) {
	m := &monitor{done: make(chan struct{}), routes: map[netip.Prefix]time.Time{}, ways: map[way]time.Time{}}
	routes, neighbours := make(chan netlink.RouteUpdate, 1024), make(chan netlink.NeighUpdate, 1024)
	err := n.Do(func() error {
		return netlink.RouteSubscribeWithOptions(routes, m.done, netlink.RouteSubscribeOptions{
			ErrorCallback: m.fail, ReceiveBufferSize: monitorBuffer, ReceiveBufferForceSize: true,
		})
	})
	if err != nil {
		close(m.done)
		return nil, fmt.Errorf("watch routes: %w", err)
	}
	m.readers.Go(func() {
		for u := range routes {
			m.sawRoute(u)
		}
	})
	err = n.Do(func() error {
		return netlink.NeighSubscribeWithOptions(neighbours, m.done, netlink.NeighSubscribeOptions{
			ErrorCallback: m.fail, ReceiveBufferSize: monitorBuffer, ReceiveBufferForceSize: true,
		})
	})
	if err != nil {
		m.close()
		return nil, fmt.Errorf("watch FDB: %w", err)
	}
	m.readers.Go(func() {
		for u := range neighbours {
			m.sawNeighbour(u)
		}
	})
	return m, nil
}

// close ends the monitor.
func (m *monitor) close() {
	close(m.done)
	m.readers.Wait()
}

func (m *monitor) fail(err error) {
	select {
	case <-m.done: // This is how it ends.
		return
	default:
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.err = fmt.Errorf("watch the kernel: %w", err)
	}
}

func (m *monitor) sawRoute(u netlink.RouteUpdate) {
	now := time.Now()
	if u.Type != newRoute || u.Dst == nil {
		return
	}
	addr, _ := netip.AddrFromSlice(u.Dst.IP)
	bits, _ := u.Dst.Mask.Size()
	m.mu.Lock()
	defer m.mu.Unlock()
	if dst := netip.PrefixFrom(addr.Unmap(), bits); m.routes[dst].IsZero() {
		m.routes[dst] = now
	}
}

func (m *monitor) sawNeighbour(u netlink.NeighUpdate) {
	now := time.Now()
	dst, ok := netip.AddrFromSlice(u.IP)
	if u.Type != newNeighbour || !ok || len(u.HardwareAddr) != len(kernel.MAC{}) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if w := (way{kernel.MAC(u.HardwareAddr), dst.Unmap()}); m.ways[w].IsZero() {
		m.ways[w] = now
	}
}

// seen is when the kernel told of what a change means; zero: not yet.
func (m *monitor) seen(c change) (time.Time, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c.kind == move {
		return m.ways[way{c.peer.mac(), c.peer.public()}], m.err
	}
	return m.routes[c.peer.subnet()], m.err
}

// await waits until all changes are in the kernel, and returns how long each took.
func (m *monitor) await(ctx context.Context, changes []change) ([]time.Duration, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, changeWithin, fmt.Errorf("not within %s", changeWithin))
	defer cancel()
	took := make([]time.Duration, 0, len(changes))
	for _, c := range changes {
		for {
			at, err := m.seen(c)
			if err != nil {
				return nil, err
			}
			if !at.IsZero() {
				took = append(took, max(0, at.Sub(c.committed)))
				break
			}
			if err := lab.Wait(ctx, lookEvery); err != nil {
				return nil, fmt.Errorf("wait for peer %s: %w", c.peer.subnet(), err)
			}
		}
	}
	return took, nil
}
