package netns_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// roundPause is what a daemon lets pass between two rounds at least.
const roundPause = 400 * time.Millisecond

// A change of one peer is in the path at once, and not by a round that looks at all of
// them: many changes, one after the other, take few rounds.
func TestChangesAreFollowedWithoutARound(t *testing.T) {
	for backend, config := range configs {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, lab.Options{Hosts: 3})
			putConfig(t, l, config)
			const ghosts, least = 150, 50
			for n := range ghosts {
				putGhost(t, l, ghostsOwn(least+n), newGhost(byte(least+n)), backend)
			}
			h := l.Hosts[0]
			if err := h.StartDaemon(); err != nil {
				t.Fatal(err)
			}
			if _, err := h.WaitReady(within(t, time.Minute), ghosts); err != nil {
				t.Fatal(err)
			}
			send := senderOf(t, l, backend)
			env, err := h.ReadSubnet()
			if err != nil {
				t.Fatal(err)
			}
			before, changes, began := rounds(t, h), uint64(0), time.Now()
			const subnets = 15
			for n := least + ghosts; n < least+ghosts+subnets; n++ {
				if env.Subnets[subnet.IPv4] == ghostsOwn(n) {
					continue
				}
				// It comes, and changes hands. Each time the address is a new one: what
				// two publish is not followed.
				for i, to := range l.Hosts[1:] {
					g := newGhost(byte(n + i*subnets))
					run(t, to, fmt.Sprintf("ip addr add %s/32 dev eth0", g.public))
					send.hear(t, to, g.public)
					putGhost(t, l, ghostsOwn(n), g, backend)
					send.until(t, ghostsOwn(n).Addr().Next(), g.public)
					changes++
				}
			}
			made := rounds(t, h) - before
			// On a machine so slow that a change takes as long as the pause between two
			// rounds each may have its own.
			slow := uint64(time.Since(began)/roundPause) + 1
			t.Logf("%d changes, %d rounds", changes, made)
			if made > max(changes/2, slow) || changes == 0 {
				t.Errorf("%d changes of single peers took %d rounds, want at most half of them or %d", changes, made, slow)
			}
		})
	}
}

// ghostsOwn is the subnet of a ghost by its number.
func ghostsOwn(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(n), 0}), 24)
}

// rounds is how many the daemon has made.
func rounds(t *testing.T, h *lab.Host) uint64 {
	t.Helper()
	s, err := h.Status(within(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	return s.Sync.Runs
}

// putGhost makes a subnet a ghost's.
func putGhost(t *testing.T, l *lab.Lab, s netip.Prefix, g ghost, backend string) {
	t.Helper()
	if backend == "udp" {
		backend = "" // as its leases have it
	}
	f := follower{t: t, lab: l}
	key := lab.Prefix + "/subnets/" + (subnet.Subnet{s}).Key()
	if _, err := l.Client().Put(within(t, time.Minute), key, g.value(t, backend), f.lease()); err != nil {
		t.Fatal(err)
	}
}

// sender finds out to which address a host sends what is for another.
type sender struct {
	host *lab.Host
	// conn sends from the host, and arrived is what ghosts received by udp; nil: the
	// kernel knows.
	conn    *net.UDPConn
	arrived chan arrival
}

// arrival is a packet of the overlay, by its destinations inside and outside.
type arrival struct{ dst, public netip.Addr }

// senderOf looks at the kernel, or for udp, whose paths are the daemon's own, at where
// packets arrive.
func senderOf(t *testing.T, l *lab.Lab, backend string) *sender {
	t.Helper()
	s := &sender{host: l.Hosts[0]}
	if backend == "udp" {
		s.arrived = make(chan arrival, 64)
		s.conn = listenUDP(t, s.host, netip.AddrPort{})
	}
	return s
}

func listenUDP(t *testing.T, h *lab.Host, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	err := h.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// hear notes what arrives at an address, until the test is over.
func (s *sender) hear(t *testing.T, h *lab.Host, public netip.Addr) {
	t.Helper()
	if s.conn == nil {
		return
	}
	done := make(chan struct{})
	t.Cleanup(func() { <-done })
	conn := listenUDP(t, h, netip.AddrPortFrom(public, 8285))
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, _, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return // closed
			}
			// The payload is one IP packet, whose destination stands at 16.
			if n < 20 {
				continue
			}
			select {
			case s.arrived <- arrival{netip.AddrFrom4([4]byte(buf[16:20])), public}:
			default: // nobody asks
			}
		}
	}()
}

// until waits until the host sends packets for dst to public.
func (s *sender) until(t *testing.T, dst, public netip.Addr) {
	t.Helper()
	ctx := within(t, follow)
	for ctx.Err() == nil {
		if s.conn == nil {
			got, err := nextHost(s.host, dst)
			if err != nil {
				t.Fatal(err)
			}
			if got == public {
				return
			}
			pause(t, time.Millisecond)
			continue
		}
		if _, err := s.conn.WriteToUDPAddrPort([]byte("?"), netip.AddrPortFrom(dst, 9)); err != nil {
			t.Fatal(err)
		}
		select {
		case a := <-s.arrived:
			if a == (arrival{dst, public}) {
				return
			}
		case <-time.After(2 * time.Millisecond):
		}
	}
	t.Fatalf("packets for %s do not go to %s within %s", dst, public, follow)
}
