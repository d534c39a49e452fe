package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
)

const (
	// groupNFTables is the multicast group of nf_tables' changes
	// (NFNLGRP_NFTABLES in linux/netfilter/nfnetlink.h).
	groupNFTables        = 7
	solNetlink           = 270
	netlinkAddMembership = 1
	// newGeneration ends the events of each transaction, whatever it did.
	newGeneration = 15
	// eventBuffer holds the largest message of the kernel.
	eventBuffer = 1 << 16
)

// Changes implements Tools. Changes of nf_tables come as events; of what is lost
// in a storm of them one signal is left. The legacy variant has none: its tables
// are polled, see poller. Both belong to the network namespace of the calling
// thread.
func (e *Exec) Changes(ctx context.Context) (<-chan struct{}, error) {
	out := make(chan struct{}, 1)
	signal := func() {
		select {
		case out <- struct{}{}:
		default: // one that nobody has taken yet says the same
		}
	}
	var errs []error
	var workers sync.WaitGroup
	sock, err := subscribe()
	if err == nil {
		workers.Go(func() { watchEvents(ctx, sock, e.Instance.Alias(), signal) })
	}
	errs = append(errs, err)
	for _, family := range subnet.Families() {
		p, err := openPoller(family, e.hashSeed())
		if errors.Is(err, syscall.EAFNOSUPPORT) {
			continue // a kernel without IPv6 has no rules for it
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p.changed(true) // from here changes count
		workers.Go(func() { p.run(ctx, &e.wrote, signal) })
	}
	go func() {
		defer close(out)
		<-ctx.Done()
		workers.Wait()
	}()
	return out, errors.Join(errs...)
}

// subscribe opens a socket that is told of every change in nf_tables.
func subscribe() (sock *os.File, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("subscribe to changes of nf_tables: %w", err)
		}
	}()
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, netlinkNetfilter)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	err = syscall.Bind(fd, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK})
	if err == nil {
		err = syscall.SetsockoptInt(fd, solNetlink, netlinkAddMembership, groupNFTables)
	}
	if err != nil {
		_ = syscall.Close(fd) // nothing was written
		return nil, err
	}
	return os.NewFile(uintptr(fd), "nfnetlink"), nil
}

// watchEvents reads until ctx ends or the socket fails for good; the socket is
// its to close.
func watchEvents(ctx context.Context, sock *os.File, own string, signal func()) {
	stop := context.AfterFunc(ctx, func() {
		_ = sock.SetReadDeadline(time.Unix(1, 0)) // wakes the reader; fails only on a closed socket
	})
	defer sock.Close()
	defer stop()
	buf := make([]byte, eventBuffer)
	concerned := false
	for ctx.Err() == nil {
		n, err := sock.Read(buf)
		switch {
		case errors.Is(err, syscall.ENOBUFS):
			// Events were lost: whoever is told reads everything anyway.
			signal()
			continue
		case err != nil:
			return
		}
		concerned = readEvents(buf[:n], own, concerned, signal)
	}
}

// readEvents goes through the messages of one datagram. A signal is given at the
// end of a transaction that concerns us, when its outcome can be read: concerned
// says that one has begun, and is returned for the next datagram.
func readEvents(b []byte, own string, concerned bool, signal func()) bool {
	for len(b) >= syscall.NLMSG_HDRLEN {
		size := int(binary.NativeEndian.Uint32(b))
		if size < syscall.NLMSG_HDRLEN || size > len(b) {
			signal() // something happened
			return false
		}
		kind := binary.NativeEndian.Uint16(b[4:])
		if kind == subsysNFTables<<8|newGeneration {
			if concerned {
				signal()
			}
			concerned = false
		} else if kind>>8 == subsysNFTables {
			concerned = concerned || concerns(b[syscall.NLMSG_HDRLEN:size], own)
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return concerned
}

// concerns reports whether an event is about a table of iptables, or our own. The
// table's name is the first attribute in the messages of all objects. Tables of
// others, whose sets may change many times a second, are not read by us.
func concerns(b []byte, own string) bool {
	const nfgenmsg, attr = 4, 4
	if len(b) < nfgenmsg+attr {
		return true
	}
	family := b[0]
	if family != syscall.AF_INET && family != syscall.AF_INET6 {
		return false
	}
	for b = b[nfgenmsg:]; len(b) >= attr; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < attr || size > len(b) {
			return true
		}
		if binary.NativeEndian.Uint16(b[2:]) == attrTableName {
			name := string(b[attr:max(attr, size-1)]) // without the final zero
			return name == own || slices.Contains(watchedTables(), name)
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return true
}

// watchedTables are those of iptables that decide on what we write: also by whether
// somebody uses them.
func watchedTables() []string {
	return []string{"filter", "nat", tableRaw, "mangle", "security"}
}
