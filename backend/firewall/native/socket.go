package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
)

// socket is one to nf_tables, in the network namespace of the thread that opens it. It
// blocks: the kernel has done all and answered before a send returns, and to have the
// runtime poll for what is there already would cost several times as much. It is used
// once, and closed.
//
// A wait for an answer ends with ctx, within answerSlice. A send does not: that is the
// kernel's work itself, which nothing interrupts, and which is bounded by what is sent
// and by the transactions of others that it waits for.
type socket struct {
	ctx context.Context // that of its one use
	fd  int
	// answers are read into this.
	buf []byte
	// within is how long an answer may take.
	within time.Duration
}

const (
	// answerSpace is for answers of the usual size: acknowledgements.
	answerSpace = 512
	// answerSlice is how often a wait for an answer looks whether it is to end.
	answerSlice = 50 * time.Millisecond
)

// errNoAnswer is that of a kernel that does not answer.
var errNoAnswer = errors.New("nf_tables does not answer")

// noAnswer says how a wait ended that was allowed so long.
func noAnswer(ctx context.Context, within time.Duration) error {
	if ctx.Err() != nil {
		return fmt.Errorf("wait for nf_tables: %w", context.Cause(ctx))
	}
	return fmt.Errorf("%w within %s", errNoAnswer, within)
}

// openSocket returns a socket that must be closed.
func openSocket(ctx context.Context) (s *socket, err error) {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_NETFILTER)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	wait := syscall.NsecToTimeval(answerSlice.Nanoseconds())
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &wait); err != nil {
		_ = syscall.Close(fd) // nothing was written
		return nil, os.NewSyscallError("setsockopt", err)
	}
	return &socket{ctx: ctx, fd: fd, buf: make([]byte, answerSpace), within: answerWithin}, nil
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

// send hands over messages at once, or not at all when ctx has ended.
func (s *socket) send(messages ...netlink.Message) error {
	if s.ctx.Err() != nil {
		return fmt.Errorf("ask nf_tables: %w", context.Cause(s.ctx))
	}
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
	// As a rule the answer is there: nothing of what follows is needed then.
	for began := (time.Time{}); ; {
		n, _, err := syscall.Recvfrom(s.fd, s.buf, flags)
		switch {
		case errors.Is(err, syscall.EINTR), errors.Is(err, syscall.EAGAIN):
		default:
			return n, os.NewSyscallError("recvfrom", err)
		}
		if began.IsZero() {
			began = time.Now()
		}
		if s.ctx.Err() != nil || time.Since(began) >= s.within {
			return 0, noAnswer(s.ctx, s.within)
		}
	}
}
