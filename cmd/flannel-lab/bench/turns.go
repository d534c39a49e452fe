package bench

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// turns stands for the loop of flannel's udp backend, which is a program in C: one thread
// for both directions, one packet per call, and a poll only when neither side had any.
//
//	poll --> [ read TUN -> route -> TTL - 1 -> sendto ] [ recv -> TTL - 1 -> write TUN ] --.
//	  ^                                                                                   |
//	  '------------------------- both found nothing ---------- one had a packet: again <--'
//
// It makes the same calls in the same order and does the same to a packet. What it calls
// does not block and is called without telling Go's scheduler (RawSyscall), so that a call
// costs what it costs in C.
type turns struct {
	tun, sock int
	peer      unix.RawSockaddrInet4
	// routes are looked through one after the other; there is one.
	routes []netip.Prefix
	buf    []byte
}

func newTurns(tun, sock int, o ForwardOptions) *turns {
	t := &turns{tun: tun, sock: sock, routes: []netip.Prefix{o.Subnet}, buf: make([]byte, forwardMTU)}
	t.peer = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: o.To.As4()}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&t.peer.Port))[:], forwardPort)
	return t
}

// run carries packets until a call fails for good.
func (t *turns) run() error {
	runtime.LockOSThread()
	if err := errors.Join(unix.SetNonblock(t.tun, true), unix.SetNonblock(t.sock, true)); err != nil {
		return err
	}
	ready := []unix.PollFd{{Fd: int32(t.tun), Events: unix.POLLIN}, {Fd: int32(t.sock), Events: unix.POLLIN}} //nolint:gosec // small
	for {
		if _, err := unix.Poll(ready, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		for {
			out, err := t.send()
			if err != nil {
				return err
			}
			in, err := t.receive()
			if err != nil {
				return err
			}
			if !out && !in {
				break
			}
		}
	}
}

// send carries one packet from the device to the socket; false: there was none.
func (t *turns) send() (bool, error) {
	n, _, err := unix.RawSyscall(unix.SYS_READ, uintptr(t.tun), uintptr(unsafe.Pointer(&t.buf[0])), uintptr(len(t.buf)))
	if err != 0 {
		return false, transient(err)
	}
	packet := t.buf[:n]
	if !t.leads(packet) || !lowerTTL(packet) {
		return true, nil // dropped
	}
	_, _, err = unix.RawSyscall6(unix.SYS_SENDTO, uintptr(t.sock), uintptr(unsafe.Pointer(&packet[0])), n,
		0, uintptr(unsafe.Pointer(&t.peer)), unix.SizeofSockaddrInet4)
	return true, transient(err)
}

// receive carries one packet from the socket to the device; false: there was none.
func (t *turns) receive() (bool, error) {
	n, _, err := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(t.sock), uintptr(unsafe.Pointer(&t.buf[0])), uintptr(len(t.buf)), unix.MSG_DONTWAIT, 0, 0)
	if err != 0 {
		return false, transient(err)
	}
	packet := t.buf[:n]
	if !lowerTTL(packet) {
		return true, nil // dropped
	}
	_, _, err = unix.RawSyscall(unix.SYS_WRITE, uintptr(t.tun), uintptr(unsafe.Pointer(&packet[0])), n)
	return true, transient(err)
}

// transient is nil for what is no more than the loss of a packet.
func transient(err unix.Errno) error {
	if err == 0 || err == unix.EAGAIN || passes(err) {
		return nil
	}
	return err
}

// ipv4Header is the length of a header without options.
const ipv4Header = 20

// leads reports whether there is a route to the destination of an IPv4 packet.
func (t *turns) leads(packet []byte) bool {
	if len(packet) < ipv4Header || packet[0]>>4 != 4 {
		return false
	}
	to := netip.AddrFrom4([4]byte(packet[16:20]))
	for _, r := range t.routes {
		if r.Contains(to) {
			return true
		}
	}
	return false
}

// lowerTTL takes one hop from an IPv4 packet and keeps its header's sum right (RFC 1624);
// false: it has none left, or is no packet.
func lowerTTL(packet []byte) bool {
	if len(packet) < ipv4Header || packet[8] <= 1 {
		return false
	}
	packet[8]--
	// One's complement: a byte that is 1 less in the upper half makes the sum 256 more.
	sum := uint32(binary.BigEndian.Uint16(packet[10:])) + 1<<8
	binary.BigEndian.PutUint16(packet[10:], uint16(sum+sum>>16)) //nolint:gosec // folded
	return true
}
