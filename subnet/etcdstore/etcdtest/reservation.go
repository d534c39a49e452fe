package etcdtest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
)

// Reservation keeps a TCP port of one address for a server that is not always there,
// or never is: a socket that is bound to it and does not listen.
//
// A port that was found free need not stay free. Somebody else gets it who asks for
// any port, and a client that calls in vain may get it as the source of its own call:
// then it talks to itself, and the server cannot come back. The kernel gives a reserved
// port to neither. Who asks for it by its number gets it with SO_REUSEADDR, which Go's
// listeners set; as long as nobody does, connections are refused.
type Reservation struct {
	// Addr is the address with the port.
	Addr   netip.AddrPort
	socket *os.File
}

// Reserve reserves a port of a literal address. It is to be closed.
func Reserve(host string) (_ *Reservation, err error) {
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return nil, fmt.Errorf("reserve port: %w", err)
	}
	var family int
	var at syscall.Sockaddr
	if addr.Is4() {
		family, at = syscall.AF_INET, &syscall.SockaddrInet4{Addr: addr.As4()}
	} else {
		family, at = syscall.AF_INET6, &syscall.SockaddrInet6{Addr: addr.As16()}
	}
	fd, err := syscall.Socket(family, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("reserve port: %w", os.NewSyscallError("socket", err))
	}
	r := &Reservation{socket: os.NewFile(uintptr(fd), "reservation")}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("reserve port of %s: %w", addr, err), r.Close())
		}
	}()
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	if err := syscall.Bind(fd, at); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	if at, err = syscall.Getsockname(fd); err != nil {
		return nil, os.NewSyscallError("getsockname", err)
	}
	switch at := at.(type) {
	case *syscall.SockaddrInet4:
		r.Addr = netip.AddrPortFrom(addr, uint16(at.Port))
	case *syscall.SockaddrInet6:
		r.Addr = netip.AddrPortFrom(addr, uint16(at.Port))
	}
	return r, nil
}

// Close gives the port back.
func (r *Reservation) Close() error { return r.socket.Close() }
