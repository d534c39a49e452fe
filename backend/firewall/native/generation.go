package native

import (
	"cmp"
	"context"
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
func CurrentGeneration(ctx context.Context) (g Generation, err error) {
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
	answer, err := exchange(ctx)
	if err != nil {
		return g, err
	}
	g.id, err = generationID(answer)
	return g, err
}

// exchange asks, and returns the kernel's answer.
func exchange(ctx context.Context) ([]netlink.Message, error) {
	s, err := openSocket(ctx)
	if err != nil {
		return nil, err
	}
	defer s.close()
	header := netlink.Header{Length: syscall.NLMSG_HDRLEN + nfgenmsg, Type: msgGetGeneration, Flags: netlink.Request}
	if err := s.send(netlink.Message{Header: header, Data: make([]byte, nfgenmsg)}); err != nil {
		return nil, err
	}
	return s.receive()
}

// nfgenmsg is the length of the header that nfnetlink has behind netlink's.
const nfgenmsg = 4

// generationID finds the number in the kernel's answer. It is never zero.
func generationID(answer []netlink.Message) (uint32, error) {
	for _, m := range answer {
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
