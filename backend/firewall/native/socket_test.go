package native

import (
	"encoding/binary"
	"errors"
	"syscall"
	"testing"

	"github.com/mdlayher/netlink"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
)

// An answer is whole, however long it is.
func TestSocket(t *testing.T) {
	t.Parallel()
	ns := kerneltest.NetNS(t, kernel.Options{})
	for _, size := range []int{nfgenmsg, 2 * answerSpace, 1 << 16} {
		var answer []netlink.Message
		var err error
		ns.Do(t, func() { answer, err = refusal(size) })
		if err != nil {
			t.Fatal(err)
		}
		if len(answer) != 1 || answer[0].Header.Type != netlink.Error || answer[0].Header.Sequence != 7 {
			t.Fatalf("%d bytes: answered by %+v", size, answer)
		}
		// A number, and the message that is refused.
		const number = 4
		data := answer[0].Data
		if errno := syscall.Errno(-int32(binary.NativeEndian.Uint32(data))); errno != syscall.EINVAL && errno != syscall.EOPNOTSUPP {
			t.Errorf("%d bytes: refused by %v", size, errno)
		}
		if want := number + syscall.NLMSG_HDRLEN + size; len(data) < want || data[want-1] != 0xff {
			t.Errorf("%d bytes: %d bytes of answer, want %d", size, len(data), want)
		}
	}
}

// refusal asks for what no kernel has, with a message of some size.
func refusal(size int) ([]netlink.Message, error) {
	s, err := openSocket()
	if err != nil {
		return nil, err
	}
	defer s.close()
	data := make([]byte, size)
	data[size-1] = 0xff
	const subsystem, unknown = 10 << 8, 0xfe
	header := netlink.Header{Length: uint32(syscall.NLMSG_HDRLEN + size), Type: subsystem | unknown, Flags: netlink.Request | netlink.Acknowledge, Sequence: 7}
	if err := errors.Join(s.widen(), s.send(netlink.Message{Header: header, Data: data})); err != nil {
		return nil, err
	}
	return s.receive()
}
