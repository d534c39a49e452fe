package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// Numbers of nfnetlink and nf_tables (linux/netfilter/nfnetlink.h and
// linux/netfilter/nf_tables.h).
const (
	netlinkNetfilter = 12
	subsysNFTables   = 10
	batchBegin       = 0x10
	batchEnd         = 0x11
	delTable         = subsysNFTables<<8 | 2
	getChain         = subsysNFTables<<8 | 4
	delChain         = subsysNFTables<<8 | 5
	// flagNonRecursive: fail with EBUSY rather than delete what is inside
	// (NLM_F_NONREC, kernel 4.14).
	flagNonRecursive = 0x100
	attrTableName    = 1
	attrChainTable   = 1
	attrChainName    = 3
	// asked is the number of the message that an answer is waited for.
	asked = 2
)

// RemoveTable speaks to the kernel itself: iptables cannot remove a table, and
// nft, if it is installed, would remove it with whatever came in a moment ago.
func (e *Exec) RemoveTable(_ context.Context, v Variant, table string) error {
	return talk(v, func(c nfConn) error {
		for _, chain := range []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"} {
			err := c.deleteChain(table, chain)
			if errors.Is(err, syscall.EBUSY) {
				return nil // in use by others
			}
			if err != nil && !errors.Is(err, syscall.ENOENT) {
				return err
			}
		}
		err := c.transact(delTable, attribute(attrTableName, table))
		if err != nil && !errors.Is(err, syscall.EBUSY) && !errors.Is(err, syscall.ENOENT) {
			return fmt.Errorf("delete table %s: %w", table, err)
		}
		return nil
	})
}

// RemoveChain speaks to the kernel itself, too: not every iptables removes a chain
// that is built in.
func (e *Exec) RemoveChain(_ context.Context, v Variant, table, chain string) error {
	return talk(v, func(c nfConn) error {
		err := c.deleteChain(table, chain)
		if errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.ENOENT) {
			return nil
		}
		return err
	})
}

// HasChain asks the kernel.
func (e *Exec) HasChain(_ context.Context, v Variant, table, chain string) (has bool, err error) {
	err = talk(v, func(c nfConn) error {
		attrs := slices.Concat(attribute(attrChainTable, table), attribute(attrChainName, chain))
		err := c.exchange(message(getChain, syscall.NLM_F_ACK, asked, c.family, 0, attrs))
		has = err == nil
		if err == nil || errors.Is(err, syscall.ENOENT) {
			return nil
		}
		return fmt.Errorf("look for chain %s of table %s: %w", chain, table, err)
	})
	return has, err
}

// nfConn is a socket to the kernel's nf_tables, for one family.
type nfConn struct {
	fd     int
	family byte
}

// talk opens a socket for f, in the network namespace of the calling thread.
func talk(v Variant, f func(nfConn) error) error {
	c := nfConn{family: syscall.AF_INET}
	if v.Family == subnet.IPv6 {
		c.family = syscall.AF_INET6
	}
	var err error
	c.fd, err = syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, netlinkNetfilter)
	if err != nil {
		return fmt.Errorf("open nfnetlink: %w", err)
	}
	defer func() { _ = syscall.Close(c.fd) }()
	// The kernel answers before the send returns; this is for a kernel that
	// does not answer at all.
	if err := syscall.SetsockoptTimeval(c.fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &syscall.Timeval{Sec: 1}); err != nil {
		return fmt.Errorf("set nfnetlink timeout: %w", err)
	}
	return f(c)
}

// deleteChain fails with EBUSY if there is anything in the chain.
func (c nfConn) deleteChain(table, chain string) error {
	err := c.transact(delChain, slices.Concat(attribute(attrChainTable, table), attribute(attrChainName, chain)))
	if err != nil {
		return fmt.Errorf("delete chain %s of table %s: %w", chain, table, err)
	}
	return nil
}

// transact does one deletion as a transaction of its own and returns the
// kernel's answer.
func (c nfConn) transact(kind uint16, attrs []byte) error {
	return c.exchange(slices.Concat(
		message(batchBegin, 0, 1, 0, subsysNFTables, nil),
		message(kind, syscall.NLM_F_ACK|flagNonRecursive, asked, c.family, 0, attrs),
		message(batchEnd, 0, 3, 0, subsysNFTables, nil),
	))
}

// exchange sends messages and returns what the kernel says to the one asked.
func (c nfConn) exchange(msg []byte) error {
	if err := syscall.Sendto(c.fd, msg, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to nfnetlink: %w", err)
	}
	buf := make([]byte, 8192)
	for {
		n, _, err := syscall.Recvfrom(c.fd, buf, 0)
		if err != nil {
			return fmt.Errorf("receive from nfnetlink: %w", err)
		}
		answers, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return fmt.Errorf("parse nfnetlink: %w", err)
		}
		for _, a := range answers {
			if a.Header.Type != syscall.NLMSG_ERROR || a.Header.Seq != asked || len(a.Data) < 4 {
				continue
			}
			if code := int32(binary.NativeEndian.Uint32(a.Data)); code != 0 {
				return syscall.Errno(-code)
			}
			return nil
		}
	}
}

// message is a netlink header, an nfgenmsg and attributes.
func message(kind, flags uint16, seq uint32, family byte, resource uint16, attrs []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(syscall.NLMSG_HDRLEN+4+len(attrs)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, syscall.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, family, 0)
	b = binary.BigEndian.AppendUint16(b, resource)
	return append(b, attrs...)
}

// attribute is a netlink attribute that holds a string with its final zero,
// padded to 4 bytes.
func attribute(kind uint16, text string) []byte {
	n := 4 + len(text) + 1
	b := binary.NativeEndian.AppendUint16(nil, uint16(n))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, text...)
	return append(b, make([]byte, (n+3)/4*4-n+1)...)
}
