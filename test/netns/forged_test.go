package netns_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// forgedPort is where the container listens.
const forgedPort = 9999

// plainConfigs are those with which peers' packets come in as they are.
var plainConfigs = map[string]string{
	"host-gw":       configs["host-gw"],
	"DirectRouting": `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`,
	"udp direct":    `{"Network":"10.5.0.0/16","Backend":{"Type":"udp","DirectRouting":true}}`,
}

// A host that sends with another host's source is found out by its MAC, and a
// host whose MAC changes is not taken for a forger.
func TestPlainPacketsAreTheirSendersOwn(t *testing.T) {
	for name, config := range plainConfigs {
		t.Run(name, func(t *testing.T) {
			// Rounds of the daemon's own accord are so far apart that they mend nothing.
			l := newNetwork(t, 3, config, "--iptables-resync=30")
			startContainers(t, l)
			for _, h := range l.Hosts {
				// Without it a peer's new MAC is news only when the old one is asked for.
				if _, err := h.Run(t.Context(), "sysctl", "-qw", "net.ipv4.conf.eth0.arp_notify=1"); err != nil {
					t.Fatal(err)
				}
			}
			w := newWitness(t, l.Hosts[0], l.Hosts[1])
			honest, forged := l.Hosts[1].Container.Addr(), l.Hosts[2].Container.Addr()
			w.known(t, forged)
			w.await(t, w.send(t, honest)) // and all that was sent before
			before := w.dropped(t)
			for range 5 {
				if w.arrives(t, forged) {
					t.Error("a packet with another peer's source arrives")
				}
			}
			if got := w.drops(t, before, 5); got != 5 {
				t.Errorf("%d packets counted as dropped, want 5", got)
			}
			w.reported(t)
			t.Run("a new MAC", func(t *testing.T) { newMAC(t, l, w) })
			t.Run("MACs swapped", func(t *testing.T) { swapMACs(t, l) })
			// Nothing of all that has opened the door.
			w.known(t, forged)
		})
	}
}

// newMAC gives a peer a MAC that nobody has seen, under a ping both ways. Packets
// on the way to the old one are lost, and no others: a few as a rule, and more where a
// machine gives nobody time just then. None counts as forged.
func newMAC(t *testing.T, l *lab.Lab, w *witness) {
	here, peer := l.Hosts[0], l.Hosts[1]
	out, in := startPing(t, here.Container, peer.Container), startPing(t, peer.Container, here.Container)
	pause(t, 200*time.Millisecond)
	before := w.dropped(t)
	const changes = 3
	for i := range changes {
		setMAC(t, peer, net.HardwareAddr{2, 0xfa, 0, 0, 0, byte(i)})
		pause(t, 1500*time.Millisecond)
	}
	for way, r := range map[string]lab.PingResult{"out": out.Stop(), "in": in.Stop()} {
		t.Logf("%s: %s", way, r)
		if r.Lost() > r.Sent/2 {
			t.Errorf("%s: lost %d of %d with %d changes", way, r.Lost(), r.Sent, changes)
		}
	}
	if got := w.dropped(t) - before; got > 0 {
		t.Errorf("%d honest packets were dropped as forged", got)
	}
}

// swapMACs gives two peers each other's MAC, under pings of both: what is known
// of either is wrong until the kernel says otherwise, and then for a moment more.
func swapMACs(t *testing.T, l *lab.Lab) {
	const longest = 3 * time.Second // generous: one round
	const answered = time.Minute
	late := lateness(t)
	here := l.Hosts[0]
	var pings []*lab.Pinging
	var macs []net.HardwareAddr
	for _, h := range l.Hosts[1:] {
		pings = append(pings, startPing(t, h.Container, here.Container))
		link, err := h.Links().LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		macs = append(macs, link.Attrs().HardwareAddr)
	}
	pause(t, 200*time.Millisecond)
	setMAC(t, l.Hosts[1], net.HardwareAddr{2, 0xfa, 0, 0, 1, 0})
	setMAC(t, l.Hosts[2], macs[0])
	setMAC(t, l.Hosts[1], macs[1])
	swapped := time.Now()
	for i, p := range pings {
		for !p.Answered(swapped) {
			if time.Since(swapped) > answered {
				t.Fatalf("%s: no answer %s after the change", l.Hosts[1+i].Name, answered)
			}
			pause(t, 10*time.Millisecond)
		}
	}
	pause(t, 3*time.Second) // for what breaks later
	machine := late()
	for i, p := range pings {
		r := p.Stop()
		t.Logf("%s: %s", l.Hosts[1+i].Name, r)
		if r.Received == 0 || r.Gap > longest+machine {
			t.Errorf("%s: traffic stopped for %s, want %s at most, and %s that the machine was late", l.Hosts[1+i].Name, r.Gap, longest, machine)
		}
	}
}

func setMAC(t *testing.T, h *lab.Host, mac net.HardwareAddr) {
	t.Helper()
	link, err := h.Links().LinkByName("eth0")
	if err == nil {
		err = h.Links().LinkSetHardwareAddr(link, mac)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// witness listens in one host's container to what another host sends there past
// its own daemon.
type witness struct {
	at, from *lab.Host
	conn     *net.UDPConn
	sent     int
	wakes    int
}

func newWitness(t *testing.T, at, from *lab.Host) *witness {
	t.Helper()
	w := &witness{at: at, from: from}
	err := at.Container.Do(func() error {
		var err error
		w.conn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: forgedPort})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.conn.Close() }) // who listens is gone
	return w
}

// known waits until the host knows who is who: its rounds learn what ARP has
// heard. Until then a forged packet passes.
func (w *witness) known(t *testing.T, forged netip.Addr) {
	t.Helper()
	before := w.dropped(t)
	for end := time.Now().Add(time.Minute); w.dropped(t) == before; pause(t, 200*time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no forged packet is dropped in a minute")
		}
		w.wake(t)
		w.send(t, forged)
	}
}

// wake has the daemon make a round, by a change that means nothing.
func (w *witness) wake(t *testing.T) {
	t.Helper()
	w.wakes++
	if _, err := w.at.Run(t.Context(), "ip", "link", "set", "lo", "txqueuelen", strconv.Itoa(1000+w.wakes)); err != nil {
		t.Fatal(err)
	}
}

// dropped is how many packets with another peer's source the kernel has dropped.
func (w *witness) dropped(t *testing.T) uint64 {
	t.Helper()
	out, err := w.at.Run(t.Context(), "nft", "list", "counter", "ip", "flanneld-go", "peer_source")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(out, "packets ")
	number, _, _ := strings.Cut(rest, " ")
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		t.Fatalf("no number of packets in %q: %v", out, err)
	}
	return n
}

// drops is how many packets were dropped since there were so many, once it is at least
// what is wanted: those sent last may still be under way.
func (w *witness) drops(t *testing.T, before, want uint64) uint64 {
	t.Helper()
	for ctx := within(t, time.Minute); ; pause(t, 10*time.Millisecond) {
		if got := w.dropped(t) - before; got >= want || ctx.Err() != nil {
			return got
		}
	}
}

// reported waits until the daemon's status has all that were dropped.
func (w *witness) reported(t *testing.T) {
	t.Helper()
	want := w.dropped(t)
	w.wake(t)
	if _, err := w.at.WaitStatus(within(t, time.Minute), "the dropped packets", func(s lab.Status) bool {
		return s.Dropped["peer_source"] == want
	}); err != nil {
		t.Error(err)
	}
}

// arrives sends a packet and reports whether the container has got it before the
// one that is sent next, which is honest.
func (w *witness) arrives(t *testing.T, source netip.Addr) bool {
	t.Helper()
	number := w.send(t, source)
	return w.await(t, w.send(t, w.from.Container.Addr()))[fmt.Sprint(number)]
}

// await waits for an honest packet, and returns what the container has got until then.
func (w *witness) await(t *testing.T, honest int) (got map[string]bool) {
	t.Helper()
	got = map[string]bool{}
	if err := w.conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	for buf := make([]byte, 1500); !got[fmt.Sprint(honest)]; {
		n, err := w.conn.Read(buf)
		if err != nil {
			t.Fatalf("a packet with the sender's own source does not arrive: %v", err)
		}
		got[string(buf[:n])] = true
	}
	return got
}

// send puts a packet with that source on the segment and returns its number,
// which is its payload.
func (w *witness) send(t *testing.T, source netip.Addr) (number int) {
	t.Helper()
	w.sent++
	payload := fmt.Sprint(w.sent)
	to, err := w.at.Links().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	from, err := w.from.Links().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	frame := append(append([]byte{}, to.Attrs().HardwareAddr...), from.Attrs().HardwareAddr...)
	frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_IP)
	frame = append(frame, datagram(source, w.at.Container.Addr(), payload)...)
	err = w.from.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		err = unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: from.Attrs().Index})
		return errors.Join(err, unix.Close(fd))
	})
	if err != nil {
		t.Fatal(err)
	}
	return w.sent
}

// datagram is an IPv4 packet with a UDP datagram (RFC 791, RFC 768).
func datagram(from, to netip.Addr, payload string) []byte {
	b := make([]byte, 28, 28+len(payload))
	b[0] = 4<<4 | 5 // version, words of header
	binary.BigEndian.PutUint16(b[2:], uint16(cap(b)))
	b[8], b[9] = 64, unix.IPPROTO_UDP // TTL
	copy(b[12:], from.AsSlice())
	copy(b[16:], to.AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	binary.BigEndian.PutUint16(b[20:], forgedPort)
	binary.BigEndian.PutUint16(b[22:], forgedPort)
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(payload)))
	return append(b, payload...) // a UDP checksum of 0 is none
}
