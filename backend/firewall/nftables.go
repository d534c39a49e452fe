package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
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
	delChain         = subsysNFTables<<8 | 5
	// flagNonRecursive: fail with EBUSY rather than delete what is inside
	// (NLM_F_NONREC, kernel 4.14).
	flagNonRecursive = 0x100
	attrTableName    = 1
	attrChainTable   = 1
	attrChainName    = 3
)

// RemoveTable speaks to the kernel itself: iptables cannot remove a table, and
// nft, if it is installed, would remove it with whatever came in a moment ago.
func (e *Exec) RemoveTable(_ context.Context, v Variant, table string) error {
	family := byte(syscall.AF_INET)
	if v.Family == subnet.IPv6 {
		family = syscall.AF_INET6
	}
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, netlinkNetfilter)
	if err != nil {
		return fmt.Errorf("open nfnetlink: %w", err)
	}
	defer func() { _ = syscall.Close(fd) }()
	// The kernel answers before the send returns; this is for a kernel that
	// does not answer at all.
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &syscall.Timeval{Sec: 1}); err != nil {
		return fmt.Errorf("set nfnetlink timeout: %w", err)
	}
	for _, chain := range []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"} {
		err := transact(fd, family, delChain, attribute(attrChainTable, table), attribute(attrChainName, chain))
		switch {
		case errors.Is(err, syscall.EBUSY):
			return nil // in use by others
		case err != nil && !errors.Is(err, syscall.ENOENT):
			return fmt.Errorf("delete chain %s of table %s: %w", chain, table, err)
		}
	}
	err = transact(fd, family, delTable, attribute(attrTableName, table))
	if err != nil && !errors.Is(err, syscall.EBUSY) && !errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("delete table %s: %w", table, err)
	}
	return nil
}

// transact does one deletion as a transaction of its own and returns the
// kernel's answer.
func transact(fd int, family byte, kind uint16, attrs ...[]byte) error {
	var body []byte
	for _, a := range attrs {
		body = append(body, a...)
	}
	const seq = 2
	msg := message(batchBegin, 0, 1, 0, subsysNFTables, nil)
	msg = append(msg, message(kind, syscall.NLM_F_ACK|flagNonRecursive, seq, family, 0, body)...)
	msg = append(msg, message(batchEnd, 0, 3, 0, subsysNFTables, nil)...)
	if err := syscall.Sendto(fd, msg, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to nfnetlink: %w", err)
	}
	buf := make([]byte, 8192)
	for {
		n, _, err := syscall.Recvfrom(fd, buf, 0)
		if err != nil {
			return fmt.Errorf("receive from nfnetlink: %w", err)
		}
		answers, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return fmt.Errorf("parse nfnetlink: %w", err)
		}
		for _, a := range answers {
			if a.Header.Type != syscall.NLMSG_ERROR || a.Header.Seq != seq || len(a.Data) < 4 {
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
