package native

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
)

// ReadAnyway is how long what was read once is trusted while the kernel says that
// nothing has changed since. It bounds the harm of a kernel that says so wrongly.
const ReadAnyway = 5 * time.Minute

// Generation is a state of everything in nf_tables, in one network namespace. The
// kernel counts it up with every transaction, whoever commits it; packets, which
// move counters and may add to sets, do not. Equal ones mean equal rules.
type Generation struct {
	namespace uint64
	id        uint32
}

// Numbers of nf_tables (linux/netfilter/nf_tables.h).
const (
	msgNewGeneration = 10<<8 | 15
	msgGetGeneration = 10<<8 | 16
	attrGenerationID = 1
)

var errNoGeneration = errors.New("the kernel tells no generation")

// CurrentGeneration asks the kernel, in the network namespace of the calling
// thread, without any program: one exchange of some microseconds. What is read
// afterwards is of this generation or of a later one.
func CurrentGeneration() (g Generation, err error) {
	defer func() {
		if err != nil {
			g, err = Generation{}, fmt.Errorf("ask nf_tables for its generation: %w", err)
		}
	}()
	var namespace syscall.Stat_t
	if err := syscall.Stat("/proc/thread-self/ns/net", &namespace); err != nil {
		return g, err
	}
	g.namespace = namespace.Ino
	answer, err := exchange()
	if err != nil {
		return g, err
	}
	g.id, err = generationID(answer)
	return g, err
}

// exchange asks on a socket of its own: as often as this is asked, a connection that
// the runtime polls would cost several times as much.
func exchange() ([]byte, error) {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	defer func() { _ = syscall.Close(fd) }() // nothing was written
	wait := syscall.NsecToTimeval(answerWithin.Nanoseconds())
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &wait); err != nil {
		return nil, err
	}
	ask := make([]byte, syscall.NLMSG_HDRLEN+nfgenmsg)
	binary.NativeEndian.PutUint32(ask, uint32(len(ask))) //nolint:gosec // 20
	binary.NativeEndian.PutUint16(ask[4:], msgGetGeneration)
	binary.NativeEndian.PutUint16(ask[6:], syscall.NLM_F_REQUEST)
	if err := syscall.Sendto(fd, ask, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return nil, err
	}
	answer := make([]byte, 512) // it takes some 60: a number, and two that name the asker
	n, _, err := syscall.Recvfrom(fd, answer, 0)
	return answer[:max(n, 0)], err
}

// nfgenmsg is the length of the header that nfnetlink has behind netlink's.
const nfgenmsg = 4

// generationID finds the number in the kernel's answer. It is never zero.
func generationID(answer []byte) (uint32, error) {
	messages, err := syscall.ParseNetlinkMessage(answer)
	if err != nil {
		return 0, err
	}
	for _, m := range messages {
		if m.Header.Type != msgNewGeneration || len(m.Data) < nfgenmsg {
			continue
		}
		attrs, err := netlink.NewAttributeDecoder(m.Data[nfgenmsg:])
		if err != nil {
			return 0, err
		}
		attrs.ByteOrder = binary.BigEndian
		for attrs.Next() {
			if attrs.Type() == attrGenerationID {
				id := attrs.Uint32()
				return id, attrs.Err()
			}
		}
	}
	return 0, errNoGeneration
}

// Step is what happened from one generation to another.
type Step struct{ From, To Generation }

// Alone reports whether it was one transaction. What that did not touch is as it was.
func (s Step) Alone() bool {
	next := s.From
	next.id = cmp.Or(next.id+1, 1) // the kernel leaves zero out
	return s.From != Generation{} && s.To == next
}
