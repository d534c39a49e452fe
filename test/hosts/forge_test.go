package hosts

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// forgedPort is where the container listens.
const forgedPort = 9999

// lease is what etcd says of a machine.
type lease struct {
	PublicIP    netip.Addr
	BackendType string
	BackendData struct{ VtepMAC string }

	subnet netip.Prefix
}

// leases are those in etcd, by the machines' addresses.
func (o *overlay) leases(ctx context.Context) (map[netip.Addr]lease, error) {
	r, err := o.Client().Get(ctx, prefix+"/subnets/", clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	all := map[netip.Addr]lease{}
	for _, kv := range r.Kvs {
		var l lease
		if err := json.Unmarshal(kv.Value, &l); err != nil {
			return nil, fmt.Errorf("read lease: %w", err)
		}
		if l.subnet, err = netip.ParsePrefix(strings.Replace(path.Base(string(kv.Key)), "-", "/", 1)); err != nil {
			return nil, fmt.Errorf("read lease: %w", err)
		}
		all[l.PublicIP] = l
	}
	return all, nil
}

// forger sends packets from one machine's own namespace, past everything that
// its daemon and its firewall would say, to the container of the other.
type forger struct {
	from, to         *app
	fromLease, lease lease // of both machines
	tunnel           string
	// last marks the packet behind which no other is sent.
	last bool
}

// lastMark is what the payload of that one has besides.
const lastMark = ", the last one"

func (o *overlay) newForger(ctx context.Context, from, to *app) (*forger, error) {
	all, err := o.leases(ctx)
	if err != nil {
		return nil, err
	}
	return &forger{
		from: from, to: to, tunnel: o.walk.name,
		fromLease: all[from.machine.Host.Addrs[0].Addr()], lease: all[to.machine.Host.Addrs[0].Addr()],
	}, nil
}

// packet is a UDP datagram to the container with the source as its payload.
func (f *forger) packet(source netip.Addr) []byte {
	payload := source.String()
	if f.last {
		payload += lastMark
	}
	b := make([]byte, 28, 28+len(payload))
	b[0] = 4<<4 | 5 // version, words of header
	binary.BigEndian.PutUint16(b[2:], uint16(cap(b)))
	b[8], b[9] = 64, unix.IPPROTO_UDP // TTL
	copy(b[12:], source.AsSlice())
	copy(b[16:], f.to.addr.AsSlice())
	binary.BigEndian.PutUint16(b[10:], checksum(b[:20]))
	binary.BigEndian.PutUint16(b[20:], forgedPort)
	binary.BigEndian.PutUint16(b[22:], forgedPort)
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(payload)))
	return append(b, payload...) // a UDP checksum of 0 is none
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// throughTunnel sends what a machine could say to be from the overlay.
func (f *forger) throughTunnel(source netip.Addr) error {
	inner := f.packet(source)
	at := f.lease.PublicIP
	switch f.tunnel {
	case "udp":
		return sendUDP(f.from.machine.Host.Node, netip.AddrPortFrom(at, 8285), inner)
	case "vxlan":
		to, err := net.ParseMAC(f.lease.BackendData.VtepMAC)
		if err != nil {
			return err
		}
		from, err := net.ParseMAC(f.fromLease.BackendData.VtepMAC)
		if err != nil {
			return err
		}
		// RFC 7348: flags, reserved, VNI 1, reserved.
		frame := append([]byte{0x08, 0, 0, 0, 0, 0, 1, 0}, ethernet(to, from, inner)...)
		return sendUDP(f.from.machine.Host.Node, netip.AddrPortFrom(at, 8472), frame)
	default:
		return f.byUplink(source)
	}
}

func ethernet(to, from net.HardwareAddr, packet []byte) []byte {
	frame := append(append([]byte{}, to...), from...)
	return append(binary.BigEndian.AppendUint16(frame, unix.ETH_P_IP), packet...)
}

func sendUDP(from *lab.Node, to netip.AddrPort, payload []byte) error {
	return from.Do(func() error {
		conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
		if err != nil {
			return err
		}
		_, err = conn.Write(payload)
		return errors.Join(err, conn.Close())
	})
}

// byUplink puts a packet on the wire as it is.
func (f *forger) byUplink(source netip.Addr) error {
	to, err := f.to.machine.Host.Links().LinkByName("eth0")
	if err != nil {
		return err
	}
	from, err := f.from.machine.Host.Links().LinkByName("eth0")
	if err != nil {
		return err
	}
	frame := ethernet(to.Attrs().HardwareAddr, from.Attrs().HardwareAddr, f.packet(source))
	return f.from.machine.Host.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open packet socket: %w", err)
		}
		err = unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: from.Attrs().Index})
		return errors.Join(err, unix.Close(fd))
	})
}

// forgery is one kind of packet that must not arrive.
type forgery struct {
	name   string
	source netip.Addr
	send   func(netip.Addr) error
	// reason is what it is counted as; empty: the machine's own policies drop it.
	reason string
}

// wantDropped sends forgeries between two honest packets: these must arrive,
// those not, and each of those must be counted.
func (f *forger) wantDropped(ctx context.Context, forgeries []forgery) error {
	want, err := f.to.machine.dropped(ctx)
	if err != nil {
		return err
	}
	// The status is as of the last round; the kernel counts on.
	counted, err := f.to.machine.counted(ctx)
	if err != nil {
		return err
	}
	maps.Copy(want, counted)
	if err := f.sendBetween(ctx, forgeries); err != nil {
		return err
	}
	for _, forged := range forgeries {
		if forged.reason != "" {
			want[forged.reason]++
		}
	}
	var diff string
	err = f.to.machine.poll(ctx, "the counters", func() (bool, error) {
		got, err := f.to.machine.dropped(ctx)
		diff = cmp.Diff(want, got)
		return diff == "", err
	})
	if err != nil {
		return fmt.Errorf("%w: dropped, by reason (-want +got):\n%s", err, diff)
	}
	return nil
}

// counted is what the kernel has counted, by reason.
func (m *Machine) counted(ctx context.Context) (map[string]uint64, error) {
	out, err := m.Host.Run(ctx, "nft", "-j", "list", "counters")
	if err != nil {
		return nil, err
	}
	var ruleset struct {
		Nftables []struct {
			Counter struct {
				Table, Name string
				Packets     uint64
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &ruleset); err != nil {
		return nil, fmt.Errorf("%s: read counters: %w", m.Name, err)
	}
	all := map[string]uint64{}
	for _, entry := range ruleset.Nftables {
		if c := entry.Counter; c.Table == "flanneld-go" {
			all[c.Name] += c.Packets // of both families
		}
	}
	return all, nil
}

// dropped is what flannelctl says of dropped packets, by reason, as of the
// daemon's last round.
func (m *Machine) dropped(ctx context.Context) (map[string]uint64, error) {
	out, err := m.Run(ctx, "flannelctl", "status", "--json")
	if err != nil {
		return nil, err
	}
	var status struct {
		Dropped map[string]uint64
		Backend struct{ Counters map[string]uint64 }
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		return nil, fmt.Errorf("%s: read status: %w", m.Name, err)
	}
	if len(status.Dropped) == 0 {
		return nil, fmt.Errorf("%s counts nothing: %s", m.Name, out)
	}
	if n, ok := status.Backend.Counters[byUDP]; ok {
		status.Dropped[byUDP] = n
	}
	return status.Dropped, nil
}

// byUDP is what the udp backend counts foreign sources as: it looks at each packet
// before it is one of the tunnel's device.
const byUDP = "in_unknown_source_packets"

func (f *forger) sendBetween(ctx context.Context, forgeries []forgery) error {
	var conn *net.UDPConn
	err := f.to.Do(func() error {
		var err error
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: forgedPort})
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	honest := forgery{name: "honest", source: f.from.addr, send: f.throughTunnel}
	if err := f.wantHonest(ctx, conn, honest); err != nil {
		return err
	}
	for _, forged := range forgeries {
		if err := forged.send(forged.source); err != nil {
			return fmt.Errorf("send %s: %w", forged.name, err)
		}
	}
	f.last = true
	if err := honest.send(honest.source); err != nil {
		return err
	}
	arrived, err := arrivals(conn, honest.source.String()+lastMark)
	if err != nil {
		return err
	}
	var errs []error
	for _, forged := range forgeries {
		if arrived[forged.source.String()] {
			errs = append(errs, fmt.Errorf("a packet with the source %s (%s) reached the container", forged.source, forged.name))
		}
	}
	return errors.Join(errs...)
}

// arrivals are what a socket receives until the last packet is there, and for a moment
// more: what was under way is there as a rule when all that comes behind it is.
func arrivals(conn *net.UDPConn, last string) (map[string]bool, error) {
	const moment = 300 * time.Millisecond
	arrived := map[string]bool{}
	if err := conn.SetReadDeadline(time.Now().Add(answerWithin)); err != nil {
		return nil, err
	}
	for buf := make([]byte, 1500); ; {
		n, err := conn.Read(buf)
		switch {
		case err != nil && arrived[last]:
			return arrived, nil // the moment is over
		case err != nil:
			return nil, fmt.Errorf("an honest packet behind the forged ones did not arrive: the cell proves nothing: %w", err)
		}
		arrived[string(buf[:n])] = true
		if string(buf[:n]) != last {
			continue
		}
		if err := conn.SetReadDeadline(time.Now().Add(moment)); err != nil {
			return nil, err
		}
	}
}

// wantHonest sends until one arrives: the first may only teach an address.
func (f *forger) wantHonest(ctx context.Context, conn *net.UDPConn, honest forgery) error {
	buf := make([]byte, 1500)
	for {
		if err := honest.send(honest.source); err != nil {
			return fmt.Errorf("send honest: %w", err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			return err
		}
		if _, err := conn.Read(buf); err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return errors.New("no honest packet arrives: the cell proves nothing")
		}
	}
}

// countedWithin bounds a cell that waits for the daemon's rounds, which learn and
// count what is told by no event.
const countedWithin = 2 * answerWithin

// absent is a peer that has a lease and an address, and runs nothing.
const absent = `{"PublicIP":"%s","BackendType":"%s","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:03"}}`

// absentSubnet is its subnet, one that no machine has leased; other addresses in the
// network are nobody's.
func (o *overlay) absentSubnet(ctx context.Context) (netip.Prefix, error) {
	all, err := o.leases(ctx)
	if err != nil {
		return netip.Prefix{}, err
	}
	leased := map[netip.Prefix]bool{}
	for _, l := range all {
		leased[l.subnet] = true
	}
	for third := byte(251); ; third-- {
		if s := netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 20, third, 0}), 24); !leased[s] {
			return s, nil
		}
	}
}

// forgedCell sends sources that the network does not have by the tunnel, and
// those that it has around the tunnel.
func forgedCell(ctx context.Context, o *overlay) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, countedWithin)
	defer cancel()
	f, err := o.newForger(ctx, o.apps[1], o.apps[0])
	if err != nil {
		return "", err
	}
	foreign := forgery{"a foreign source by the tunnel", netip.MustParseAddr("203.0.113.7"), f.throughTunnel, "foreign_source"}
	switch o.walk.name {
	case "udp":
		foreign.reason = byUDP
	case "host-gw":
		// Its tunnel is the uplink, by which the LAN comes too: not ours to judge.
		foreign.reason = ""
		return "", f.wantDropped(ctx, []forgery{foreign})
	}
	return "", f.wantDropped(ctx, []forgery{
		foreign, {"a source of the overlay by the uplink", f.from.addr.Next(), f.byUplink, "outside_source"},
	})
}

// forgedInsideCell sends sources of the network that are others', by the tunnel.
func forgedInsideCell(ctx context.Context, o *overlay) (_ string, err error) {
	ctx, cancel := context.WithTimeout(ctx, countedWithin)
	defer cancel()
	f, err := o.newForger(ctx, o.apps[1], o.apps[0])
	if err != nil {
		return "", err
	}
	backendType := o.walk.name
	if backendType == "udp" {
		backendType = ""
	}
	theirs, err := o.absentSubnet(ctx)
	if err != nil {
		return "", err
	}
	key := prefix + "/subnets/" + strings.Replace(theirs.String(), "/", "-", 1)
	third := o.Hosts[2].Addrs[0].Addr()
	if _, err := o.Client().Put(ctx, key, fmt.Sprintf(absent, third, backendType)); err != nil {
		return "", err
	}
	defer func() {
		_, removed := o.Client().Delete(context.WithoutCancel(ctx), key)
		err = errors.Join(err, removed, o.waitPeers(ctx, 1))
	}()
	if err := o.waitPeers(ctx, 2); err != nil {
		return "", err
	}
	if o.walk.name == "host-gw" {
		if err := f.to.waitKnown(ctx, f.from.machine.Host, o.Hosts[2]); err != nil {
			return "", err
		}
	}
	return "", f.wantDropped(ctx, []forgery{
		{"of another peer", theirs.Addr().Next().Next(), f.throughTunnel, "peer_source"},
		{"of the machine's own subnet", f.to.addr.Next(), f.throughTunnel, "own_source"},
	})
}

// waitKnown waits until the machine knows the others by their MACs, by which the
// senders of plain packets are told apart. They must have talked for that.
func (a *app) waitKnown(ctx context.Context, others ...*lab.Host) error {
	for _, other := range others {
		if _, err := a.machine.Host.Ping(ctx, lab.PingOptions{To: other.Addrs[0].Addr(), Count: 1}); err != nil {
			return err
		}
		link, err := other.Links().LinkByName("eth0")
		if err != nil {
			return err
		}
		mac := link.Attrs().HardwareAddr.String()
		err = a.machine.poll(ctx, "the MAC "+mac+" in the firewall", func() (bool, error) {
			// There is no such set before the first is known.
			out, err := a.machine.Host.Run(ctx, "nft", "list", "table", "ip", "flanneld-go")
			return strings.Contains(out, mac), err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
