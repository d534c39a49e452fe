package hosts

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/subnet"
)

const (
	// dhcpLease is for how long an address is given: the client asks again after half
	// of it.
	dhcpLease = 6 * time.Second
	// dhcpPool is how many addresses the server has at a time, and where the first
	// of the pools begins in its network.
	dhcpPool, dhcpFirst = 20, 100
	// followsWithin is how long traffic may stand still once the host has its new
	// address.
	followsWithin = 3 * time.Second
)

// TestDHCP has the first machine get its address by DHCP: a real server, on the second
// machine, has another pool from one moment to the next, and the client does what it does
// then. The tunnel follows, with the same subnet, and the peer switches.
func TestDHCP(t *testing.T) {
	if !whole() {
		t.Skip("long matrix: run make hosts")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	o := newOverlay(ctx, t, setup{bookworm(), walks()[0], variants()[0]})
	o.prepareNetworkd(ctx, t)
	o.each(t, func(m *Machine) error {
		_, err := m.Run(ctx, "iptables", "-w", "-I", "INPUT", "-p", "udp", "--dport", "67:68", "-j", "ACCEPT")
		return err
	})
	client := o.machines[0]
	first := o.serveDHCP(ctx, t, 0)
	o.configureUplink(ctx, t, client, "DHCP=ipv4\n[DHCPv4]\nUseDNS=no\nUseHostname=no\n")
	client.waitAddr(ctx, t, first)
	for i, w := range walks() {
		t.Run(w.name, func(t *testing.T) {
			if _, err := o.Client().Put(ctx, prefix+"/config", w.config); err != nil {
				t.Fatal(err)
			}
			o.each(t, func(m *Machine) error { return m.Service(ctx, ourService, "restart") })
			o.waitReady(ctx, t)
			if err := o.bothWays(func(from, to *app) error { return wantPing(ctx, from, to) }); err != nil {
				t.Fatal(err)
			}
			o.moveByDHCP(ctx, t, i+1)
		})
	}
}

// moveByDHCP gives the first machine an address of another pool.
func (o *overlay) moveByDHCP(ctx context.Context, t *testing.T, pool int) {
	t.Helper()
	client := o.machines[0]
	before, err := subnetOf(ctx, client)
	if err != nil {
		t.Fatal(err)
	}
	ping, err := o.apps[0].StartPing(ctx, lab.PingOptions{To: o.apps[1].addr})
	if err != nil {
		t.Fatal(err)
	}
	addr := client.waitAddr(ctx, t, o.serveDHCP(ctx, t, pool))
	got := time.Now()
	err = o.bothWays(func(from, to *app) error { return from.WaitPing(ctx, to.addr) })
	took := time.Since(got)
	r := ping.Stop()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("pings both ways %s after the new address, %s; %s", took.Round(time.Millisecond), addr, r)
	if took > followsWithin {
		t.Errorf("pings both ways %s after the new address, want %s at most", took, followsWithin)
	}
	if after, err := subnetOf(ctx, client); err != nil || after != before {
		t.Errorf("subnet %s before, %s after (%v)", before, after, err)
	}
	err = o.machines[1].poll(ctx, "the peer's address", func() (bool, error) {
		text, err := o.machines[1].Run(ctx, "flannelctl", "status", "--json")
		var status struct {
			Ready bool
			Peers []struct {
				PublicIP string `json:"public_ip"`
				Error    string
			}
		}
		if err != nil || json.Unmarshal([]byte(text), &status) != nil {
			return false, err
		}
		return status.Ready && len(status.Peers) == 1 && status.Peers[0].PublicIP == addr.String() && status.Peers[0].Error == "", nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// serveDHCP has the second machine's networkd serve a pool, none of whose addresses is in
// another, and returns its first address.
func (o *overlay) serveDHCP(ctx context.Context, t *testing.T, pool int) netip.Addr {
	t.Helper()
	m, offset := o.machines[1], dhcpFirst+pool*dhcpPool
	network := m.Host.Addrs[subnet.IPv4].Masked().Addr().As4()
	network[3] += byte(offset)
	text := fmt.Sprintf("KeepConfiguration=static\nDHCPServer=yes\nAddress=%s\nGateway=%s\n[DHCPServer]\nPoolOffset=%d\nPoolSize=%d\nDefaultLeaseTimeSec=%d\nMaxLeaseTimeSec=%[5]d\nRouter=%[2]s\nEmitDNS=no\nEmitNTP=no\nEmitTimezone=no\n",
		m.Host.Addrs[subnet.IPv4], o.Gateway(subnet.IPv4).Addr(), offset, dhcpPool, int(dhcpLease.Seconds()))
	o.configureUplink(ctx, t, m, text)
	return netip.AddrFrom4(network)
}

// configureUplink makes the uplink of a machine what a section [Network], and what follows it, says.
func (o *overlay) configureUplink(ctx context.Context, t *testing.T, m *Machine, network string) {
	t.Helper()
	const write = `set -e
		mkdir -p /etc/systemd/network
		cat >/etc/systemd/network/20-uplink.network
		rm -f /run/udev/data/*
		for link in /run/links/class/net/*; do echo I:1 >/run/udev/data/n$(cat $link/ifindex); done
		systemctl restart systemd-networkd`
	text := "[Match]\nName=eth0\n[Network]\nIPv6AcceptRA=no\n" + network
	if _, err := m.Pipe(ctx, strings.NewReader(text), "sh", "-c", write); err != nil {
		t.Fatal(err)
	}
}

// waitAddr waits until the uplink's only address is one of the pool that begins at first.
func (m *Machine) waitAddr(ctx context.Context, t *testing.T, first netip.Addr) (addr netip.Addr) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	var seen string
	for {
		link, err := m.Host.Links().LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		list, err := m.Host.Links().AddrList(link, unix.AF_INET)
		if err != nil {
			t.Fatal(err)
		}
		seen = fmt.Sprint(list)
		if len(list) == 1 {
			addr, _ := netip.AddrFromSlice(list[0].IP.To4())
			if at := int(addr.As4()[3]) - int(first.As4()[3]); at >= 0 && at < dhcpPool {
				return addr
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatalf("%s: no address of the pool at %s: %s", m.Name, first, seen)
		}
	}
}
