package native

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
)

// udpPacket is an IP packet with a UDP datagram, sums included (RFC 768, 791, 8200).
func udpPacket(from, to netip.AddrPort, payload []byte) []byte {
	u := binary.BigEndian.AppendUint16(nil, from.Port())
	u = binary.BigEndian.AppendUint16(u, to.Port())
	u = binary.BigEndian.AppendUint16(u, uint16(8+len(payload)))
	u = append(u, 0, 0)
	u = append(u, payload...)
	pseudo := append(append(append(from.Addr().AsSlice(), to.Addr().AsSlice()...), 0, 17), u[4:6]...)
	binary.BigEndian.PutUint16(u[6:], ^sum(append(pseudo, u...)))
	return ipPacket(from.Addr(), to.Addr(), 17, u, 0)
}

// ipPacket puts a header in front; the last 16 bits of IPv4's fragment field are
// given, and ignored for IPv6.
func ipPacket(from, to netip.Addr, proto byte, payload []byte, fragment uint16) []byte {
	if from.Is6() {
		b := []byte{0x60, 0, 0, 0}
		b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
		b = append(b, proto, 64)
		return bytes.Join([][]byte{b, from.AsSlice(), to.AsSlice(), payload}, nil)
	}
	b := []byte{0x45, 0}
	b = binary.BigEndian.AppendUint16(b, uint16(20+len(payload)))
	b = binary.BigEndian.AppendUint16(b, 0x4711)
	b = binary.BigEndian.AppendUint16(b, fragment)
	b = append(b, 64, proto, 0, 0)
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	binary.BigEndian.PutUint16(b[10:], ^sum(b))
	return append(b, payload...)
}

// sum is the ones' complement sum of RFC 1071.
func sum(b []byte) uint16 {
	var s uint32
	for i, x := range b {
		s += uint32(x) << (8 * (1 - i%2))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func etherTypeOf(packet []byte) []byte {
	if packet[0]>>4 == 6 {
		return []byte{0x86, 0xdd}
	}
	return []byte{0x08, 0x00}
}

// frame is an Ethernet frame; tag is a VLAN tag or nothing.
func frame(to, from kernel.MAC, tag, packet []byte) []byte {
	return bytes.Join([][]byte{to[:], from[:], tag, etherTypeOf(packet), packet}, nil)
}

func vxlanHeaderOf(vni byte) []byte { return []byte{8, 0, 0, 0, 0, 0, vni, 0} }

// mac reads an interface's address.
func mac(t testing.TB, ns *kerneltest.Namespace, name string) kernel.MAC {
	t.Helper()
	l, err := ns.LinkByName(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return l.MAC
}

// sendFrame sends a whole frame by an interface.
func sendFrame(t testing.TB, ns *kerneltest.Namespace, name string, f []byte) {
	t.Helper()
	l, err := ns.LinkByName(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	ns.Do(t, func() {
		fd, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer syscall.Close(fd)
		if err := syscall.Sendto(fd, f, 0, &syscall.SockaddrLinklayer{Ifindex: l.Index, Halen: 6}); err != nil {
			t.Fatal(err)
		}
	})
}

// sendPacket sends an IP packet as it is, the way that the host routes it.
func sendPacket(t testing.TB, ns *kerneltest.Namespace, to netip.Addr, packet []byte) {
	t.Helper()
	family, address := syscall.AF_INET, syscall.Sockaddr(nil)
	if to.Is6() {
		family, address = syscall.AF_INET6, &syscall.SockaddrInet6{Addr: to.As16()}
	} else {
		address = &syscall.SockaddrInet4{Addr: to.As4()}
	}
	ns.Do(t, func() {
		fd, err := syscall.Socket(family, syscall.SOCK_RAW, syscall.IPPROTO_RAW)
		if err != nil {
			t.Fatal(err)
		}
		defer syscall.Close(fd)
		if err := syscall.Sendto(fd, packet, 0, address); err != nil {
			t.Fatal(err)
		}
	})
}

// ear hears UDP datagrams.
type ear struct {
	mu    sync.Mutex
	heard map[string]netip.Addr
}

// listen hears what comes to a port in a namespace, until the test ends.
func listen(t testing.TB, ns *kerneltest.Namespace, port int) *ear {
	t.Helper()
	e := &ear{heard: map[string]netip.Addr{}}
	// Two sockets: whether one can do for both is decided once per process, by
	// the namespace that happens to ask first.
	for _, network := range []string{"udp4", "udp6"} {
		var conn *net.UDPConn
		var err error
		// A program that another test starts has the sockets of this process, between
		// its fork and its exec: also one that was closed a moment ago.
		for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			ns.Do(t, func() { conn, err = net.ListenUDP(network, &net.UDPAddr{Port: port}) })
			if !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(end) {
				break
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			e.hear(conn)
		}()
		t.Cleanup(func() {
			conn.Close()
			<-done
		})
	}
	return e
}

func (e *ear) hear(conn *net.UDPConn) {
	for buf := make([]byte, 65536); ; {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		e.mu.Lock()
		e.heard[string(buf[:n])] = from.Addr().Unmap()
		e.mu.Unlock()
	}
}

// from returns who sent a text, invalid if it was not heard within the time.
func (e *ear) from(text string, within time.Duration) netip.Addr {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(within); ; <-tick.C {
		e.mu.Lock()
		a := e.heard[text]
		e.mu.Unlock()
		if a.IsValid() || time.Now().After(deadline) {
			return a
		}
	}
}
