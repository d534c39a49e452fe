package bench

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// headerSum is that of RFC 1071 over a header: 0 when its own is right.
func headerSum(h []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < ipv4Header; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

func TestLowerTTL(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.SliceOfN(rapid.Byte(), ipv4Header, ipv4Header).Draw(t, "header")
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], headerSum(p))
		before := bytes.Clone(p)
		if got := lowerTTL(p); got != (before[8] > 1) {
			t.Fatalf("TTL %d passes: %t", before[8], got)
		}
		if before[8] <= 1 {
			if !bytes.Equal(p, before) {
				t.Fatal("a dropped packet was changed")
			}
			return
		}
		if p[8] != before[8]-1 || headerSum(p) != 0 {
			t.Errorf("TTL %d of %d, sum %#x", p[8], before[8], headerSum(p))
		}
	})
	if lowerTTL(make([]byte, ipv4Header-1)) || lowerTTL(nil) {
		t.Error("a piece of a header passes")
	}
}

// packetTo is an IPv4 packet with a right sum.
func packetTo(to string) []byte {
	p := make([]byte, ipv4Header+8)
	p[0], p[8] = 0x45, 9
	addr := netip.MustParseAddr(to).As4()
	copy(p[16:], addr[:])
	binary.BigEndian.PutUint16(p[10:], headerSum(p))
	return p
}

// What leaves the device for the peer's subnet comes out of the socket at the other end
// and enters its device, two hops older; what is for others does not. Pipes of packets
// stand for the devices.
func TestTurns(t *testing.T) {
	subnet := netip.MustParsePrefix("10.5.2.0/24")
	device := func() [2]int {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
		return fds
	}
	from, to := device(), device()
	var ends [2]*turns
	for i, tun := range []int{from[1], to[1]} {
		sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(sock) })
		addr := netip.AddrFrom4([4]byte{127, 0, 0, byte(2 + i)})
		if err := unix.Bind(sock, &unix.SockaddrInet4{Port: forwardPort, Addr: addr.As4()}); err != nil {
			t.Fatal(err)
		}
		ends[i] = newTurns(tun, sock, ForwardOptions{To: netip.AddrFrom4([4]byte{127, 0, 0, byte(3 - i)}), Subnet: subnet})
	}
	for _, dst := range []string{"10.5.3.9", "10.5.2.9"} {
		if _, err := unix.Write(from[0], packetTo(dst)); err != nil {
			t.Fatal(err)
		}
		if had, err := ends[0].send(); !had || err != nil {
			t.Fatalf("%s: %t, %v", dst, had, err)
		}
	}
	if had, err := ends[0].send(); had || err != nil {
		t.Errorf("an empty device had a packet: %t, %v", had, err)
	}
	// On the loopback what was sent arrives as soon as the kernel comes to it.
	ready := []unix.PollFd{{Fd: int32(ends[1].sock), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(ready, 60_000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			t.Fatalf("nothing arrives: %v", err)
		}
		break
	}
	if had, err := ends[1].receive(); !had || err != nil {
		t.Fatalf("nothing arrived: %t, %v", had, err)
	}
	if had, err := ends[1].receive(); had || err != nil {
		t.Errorf("what was for nobody arrived, too: %t, %v", had, err)
	}
	got := make([]byte, 100)
	n, err := unix.Read(to[0], got)
	if err != nil {
		t.Fatal(err)
	}
	want := packetTo("10.5.2.9")
	lowerTTL(want)
	lowerTTL(want)
	if !bytes.Equal(got[:n], want) {
		t.Errorf("got %x, want %x", got[:n], want)
	}
}
