package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// flow sends datagrams from one node to an address of another until the first
// arrives, or, if none shall, until enough had the time to.
func flow(t *testing.T, from, to *Node, addr netip.Addr, arrives bool) {
	t.Helper()
	var in, out *net.UDPConn
	err := to.Do(func() error {
		var err error
		in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	err = from.Do(func() error {
		var err error
		out, err = net.DialUDP("udp", nil, in.LocalAddr().(*net.UDPAddr))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	deadline := time.Now().Add(silence)
	if arrives {
		deadline = time.Now().Add(patience)
	}
	if err := in.SetReadDeadline(deadline); err != nil {
		t.Fatal(err)
	}
	received := make(chan error, 1)
	go func() {
		_, err := in.Read(make([]byte, 1))
		received <- err
	}()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		// One that cannot be sent does not arrive.
		_, _ = out.Write([]byte("x"))
		select {
		case err := <-received:
			if (err == nil) != arrives {
				t.Errorf("a datagram from %s to %s at %s: %v, want arrival: %v", from.Name, to.Name, addr, err, arrives)
			}
			return
		case <-tick.C:
		}
	}
}

func TestPartition(t *testing.T) {
	l := newTestLab(t, 3, "sleep 60")
	h, peer, bystander := l.Hosts[0], l.Hosts[1], l.Hosts[2]
	for _, tc := range []struct {
		drop    []Direction
		out, in bool // what is dropped
	}{
		{[]Direction{Out}, true, false},
		{[]Direction{In}, false, true},
		{[]Direction{Both}, true, true},
		{[]Direction{In, Out}, true, true},
	} {
		var name []string
		for _, d := range tc.drop {
			name = append(name, d.String())
		}
		t.Run(strings.Join(name, " then "), func(t *testing.T) {
			// Neighbours that are known need no answer to be sent to.
			meet(t, l)
			for _, d := range tc.drop {
				if err := h.Partition(d); err != nil {
					t.Fatal(err)
				}
			}
			for family := range 2 {
				addr, peerAddr := h.Addrs[family].Addr(), peer.Addrs[family].Addr()
				flow(t, h.Node, peer.Node, peerAddr, !tc.out)
				flow(t, h.Node, l.Switch, l.plan.gateways[family].Addr(), !tc.out)
				flow(t, peer.Node, h.Node, addr, !tc.in)
				flow(t, l.Switch, h.Node, addr, !tc.in)
				flow(t, peer.Node, bystander.Node, bystander.Addrs[family].Addr(), true)
				flow(t, bystander.Node, l.Switch, l.plan.gateways[family].Addr(), true)
			}
			if err := h.Rejoin(); err != nil {
				t.Fatal(err)
			}
			meet(t, l)
		})
	}
}

// meet waits until every host hears every other and the switch. From then on they know
// each other: without an answer the kernel would forget a neighbour after some seconds.
func meet(t *testing.T, l *Lab) {
	t.Helper()
	for _, n := range l.nodes {
		if err := n.Do(keepNeighbours); err != nil {
			t.Fatal(err)
		}
	}
	for _, from := range l.Hosts {
		for family := range 2 {
			to := []netip.Addr{l.plan.gateways[family].Addr()}
			for _, other := range l.Hosts {
				to = append(to, other.Addrs[family].Addr())
			}
			for _, addr := range to {
				if err := from.WaitPing(within(t, patience), addr); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// keepNeighbours lets none of a namespace's neighbours be asked for in the next hour.
func keepNeighbours() error {
	for name, value := range map[string]string{"base_reachable_time_ms": "3600000", "delay_first_probe_time": "3600"} {
		paths, _ := filepath.Glob("/proc/sys/net/ipv[46]/neigh/*/" + name) // fails for a bad pattern only
		if len(paths) == 0 {
			return fmt.Errorf("no neighbours have %s", name)
		}
		for _, path := range paths {
			if err := os.WriteFile(path, []byte(value), 0); err != nil {
				return err
			}
		}
	}
	return nil
}

func TestRejoinEndsOnesOwnPartition(t *testing.T) {
	l := newTestLab(t, 3, "sleep 60")
	meet(t, l)
	first, second, third := l.Hosts[0], l.Hosts[1], l.Hosts[2]
	if err := errors.Join(first.Partition(Both), second.Partition(Out), third.Rejoin(), first.Rejoin()); err != nil {
		t.Fatal(err)
	}
	flow(t, first.Node, third.Node, third.Addrs[0].Addr(), true)
	flow(t, second.Node, third.Node, third.Addrs[0].Addr(), false)
	flow(t, third.Node, second.Node, second.Addrs[0].Addr(), true)
	if err := second.Rejoin(); err != nil {
		t.Fatal(err)
	}
	if rules, err := l.Switch.Run(t.Context(), "nft", "list", "ruleset"); err != nil || rules != "" {
		t.Errorf("rules are left, %v:\n%s", err, rules)
	}
}

// What the kernel refused is not remembered, and does not stand in the way.
func TestPartitionFails(t *testing.T) {
	l := newTestLab(t, 2, "sleep 60")
	h := l.Hosts[0]
	path := t.TempDir()
	t.Run("no nft", func(t *testing.T) {
		t.Setenv("PATH", path)
		if err := h.Partition(Both); err == nil {
			t.Error("parts without nft")
		}
	})
	if err := l.Hosts[1].Partition(In); err != nil {
		t.Fatal(err)
	}
	flow(t, h.Node, l.Switch, l.plan.gateways[0].Addr(), true)
}

func TestDirections(t *testing.T) {
	for d, want := range map[Direction]string{0: "neither way", Out: "out", In: "in", Both: "both ways", 9: "no direction"} {
		if d.String() != want {
			t.Errorf("Direction(%d) is %q, want %q", uint8(d), d.String(), want)
		}
	}
	if Out.opposite() != In || In.opposite() != Out {
		t.Error("the way back of out is in, and the other way round")
	}
}
