package native

import (
	"os"
	"syscall"

	"github.com/mdlayher/netlink"
)

// socket is one to nf_tables, in the network namespace of the thread that opens it. It
// blocks: the kernel has done all and answered before a send returns, and to have the
// runtime poll for what is there already would cost several times as much. It is used
// once, and closed.
type socket struct {
	fd int
	// answers are read into this.
	buf []byte
}

// answerSpace is for answers of the usual size: acknowledgements.
const answerSpace = 512

// openSocket returns a socket that must be closed.
func openSocket() (s *socket, err error) {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_NETFILTER)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	wait := syscall.NsecToTimeval(answerWithin.Nanoseconds())
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &wait); err != nil {
		_ = syscall.Close(fd) // nothing was written
		return nil, os.NewSyscallError("setsockopt", err)
	}
	return &socket{fd: fd, buf: make([]byte, answerSpace)}, nil
}

// close may be called when the answers that matter have been read.
func (s *socket) close() { _ = syscall.Close(s.fd) }

// widen makes room for the largest transaction and its answers, beyond what the host
// allows others where we may.
func (s *socket) widen() error {
	for _, way := range [][2]int{{syscall.SO_SNDBUFFORCE, syscall.SO_SNDBUF}, {syscall.SO_RCVBUFFORCE, syscall.SO_RCVBUF}} {
		err := syscall.SetsockoptInt(s.fd, syscall.SOL_SOCKET, way[0], socketBuffer)
		if err != nil {
			err = syscall.SetsockoptInt(s.fd, syscall.SOL_SOCKET, way[1], socketBuffer)
		}
		if err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return nil
}

// send hands over messages at once.
func (s *socket) send(messages ...netlink.Message) error {
	var text []byte
	for _, m := range messages {
		b, err := m.MarshalBinary()
		if err != nil {
			return err
		}
		text = append(text, b...)
	}
	return os.NewSyscallError("sendto", syscall.Sendto(s.fd, text, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}))
}

// receive returns the messages of the next answer.
func (s *socket) receive() ([]netlink.Message, error) {
	// An answer that refuses a message holds it.
	size, err := s.read(syscall.MSG_PEEK | syscall.MSG_TRUNC)
	if err != nil {
		return nil, err
	}
	if size > len(s.buf) {
		s.buf = make([]byte, size)
	}
	n, err := s.read(0)
	if err != nil {
		return nil, err
	}
	parsed, err := syscall.ParseNetlinkMessage(s.buf[:n])
	if err != nil {
		return nil, os.NewSyscallError("recvfrom", err)
	}
	messages := make([]netlink.Message, len(parsed))
	for i, m := range parsed {
		messages[i] = netlink.Message{
			Header: netlink.Header{
				Length: m.Header.Len, Type: netlink.HeaderType(m.Header.Type), Flags: netlink.HeaderFlags(m.Header.Flags),
				Sequence: m.Header.Seq, PID: m.Header.Pid,
			},
			Data: append([]byte(nil), m.Data...), // the next answer has the buffer
		}
	}
	return messages, nil
}

// read reads an answer, and returns how long it is.
func (s *socket) read(flags int) (int, error) {
	for {
		n, _, err := syscall.Recvfrom(s.fd, s.buf, flags)
		if err != syscall.EINTR { //nolint:errorlint // a number; a wait with an end is not begun anew by itself
			return n, os.NewSyscallError("recvfrom", err)
		}
	}
}
