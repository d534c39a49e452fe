package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// batchMessages and batchBytes bound one datagram to the kernel: few
	// enough that even a refusal of each fits the receive buffer an
	// unprivileged process may have, and below the default send buffer.
	batchMessages = 256
	batchBytes    = 64 << 10
	// receiveBuffer is the size asked for; dumps and events want room.
	receiveBuffer = 4 << 20
	// datagram is the size of a read: the kernel makes no larger dump parts
	// than 32 KiB, and a cut one is noticed.
	datagram = 64 << 10
	// answerSeconds bounds the wait for an answer, which no context ends. The
	// kernel answers before it returns from the request, so this only ends a hang.
	answerSeconds = 10
	// attempts is how often an interrupted dump or a batch whose answers were
	// lost is tried: often enough to halve a batch down to single messages.
	attempts = 9
)

// errInterrupted says that the tables changed under each attempt to read them.
var errInterrupted = errors.New("dump was interrupted again and again")

// conn is a socket for requests. It is used by one goroutine at a time.
type conn struct {
	fd  int
	seq uint32
	// batch is how many messages go out at once.
	batch int
	buf   []byte
	enc   encoder
}

// openConn opens a socket in the calling thread's network namespace.
func openConn() (_ *conn, err error) {
	fd, err := openSocket(0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd) // the first error is the one to tell
		}
	}()
	// A connected socket takes messages from the kernel only, so plain reads
	// and writes are safe.
	if err := unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	tv := unix.Timeval{Sec: answerSeconds}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	return &conn{fd: fd, batch: batchMessages, buf: make([]byte, datagram)}, nil
}

// openSocket opens an rtnetlink socket. Options that the kernel may not know
// are wishes: extended acknowledgements (4.12) improve messages, strict checking
// (4.20) lets the kernel filter dumps that are filtered here as well.
func openSocket(flags int) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|flags, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	for _, option := range []int{unix.NETLINK_CAP_ACK, unix.NETLINK_EXT_ACK, unix.NETLINK_GET_STRICT_CHK} {
		_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, option, 1)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		_ = unix.Close(fd)
		return -1, os.NewSyscallError("bind", err)
	}
	return fd, nil
}

// requests are n messages for one batch.
type requests struct {
	n int
	// encode writes message i, without its end.
	encode func(e *encoder, i int)
	// reply, when set, is given what the kernel answers to message i.
	reply func(i int, m message)
}

// failure is the refusal of one message of a batch.
type failure struct {
	i   int
	err error
}

// do sends requests and returns which of them the kernel refused, in their
// order. The error is for what is not known: the messages from sent on were not
// answered.
//
// Many messages share one datagram. The kernel works on them in order and
// reports every refusal by sequence number; success is asked of the last only,
// for an answer to it says that all before it were worked on. What is saved is
// one buffer and one read per entry.
func (c *conn) do(ctx context.Context, r requests) (failed []failure, sent int, err error) {
	for lost := 0; sent < r.n; {
		if err := ctx.Err(); err != nil {
			return failed, sent, err
		}
		first := c.seq + 1
		n := c.encode(r, sent)
		part, err := c.exchange(r, sent, first, n)
		switch {
		case errors.Is(err, unix.ENOBUFS) && lost < attempts:
			// Answers were lost for want of memory. Every request of this
			// package may be repeated; fewer at once have fewer answers.
			lost++
			c.batch = max(1, n/2)
			if err := c.drain(); err != nil {
				return failed, sent, err
			}
		case err != nil:
			return failed, sent, err
		default:
			lost = 0
			failed = append(failed, part...)
			sent += n
		}
	}
	return failed, sent, nil
}

// encode fills the buffer with messages from i on and returns how many.
func (c *conn) encode(r requests, i int) int {
	c.enc.reset()
	n := 0
	for i+n < r.n && n < c.batch && len(c.enc.b) < batchBytes {
		r.encode(&c.enc, i+n)
		c.seq++
		c.enc.end(c.seq)
		n++
	}
	c.enc.addFlags(unix.NLM_F_ACK)
	return n
}

// exchange sends the buffer's n messages, from i on, and reads the answers.
func (c *conn) exchange(r requests, i int, first uint32, n int) (failed []failure, err error) {
	if err := c.send(); err != nil {
		return nil, err
	}
	err = c.answers(first, n, func(k int, m message) {
		if m.typ != unix.NLMSG_ERROR {
			if r.reply != nil {
				r.reply(i+k, m)
			}
		} else if err := m.status(); err != nil {
			failed = append(failed, failure{i + k, err})
		}
	})
	return failed, err
}

// answers reads until message n of the sequence was answered.
func (c *conn) answers(first uint32, n int, each func(k int, m message)) error {
	for {
		b, err := c.receive(0)
		if err != nil {
			return err
		}
		for len(b) > 0 {
			var m message
			if m, b, err = nextMessage(b); err != nil {
				return err
			}
			k := int(m.seq - first) // anything of another sequence is late
			if k < 0 || k >= n {
				continue
			}
			each(k, m)
			if m.typ == unix.NLMSG_ERROR && k == n-1 {
				return nil
			}
		}
	}
}

// dump reads a whole table: all for one pass, again when the kernel says that
// the pass was not consistent. Restart empties what each has gathered.
func (c *conn) dump(ctx context.Context, encode func(*encoder), restart func(), each func(message) error) error {
	for range attempts {
		if err := ctx.Err(); err != nil {
			return err
		}
		restart()
		c.enc.reset()
		encode(&c.enc)
		c.enc.addFlags(unix.NLM_F_DUMP)
		c.seq++
		c.enc.end(c.seq)
		if err := c.send(); err != nil {
			return err
		}
		whole, err := c.parts(each)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			if err := c.drain(); err != nil {
				return err
			}
		case err != nil:
			return err
		case whole:
			return nil
		}
	}
	return errInterrupted
}

// parts reads the parts of a dump. It reads to the end even when one cannot be
// understood, for the socket serves the next request.
func (c *conn) parts(each func(message) error) (whole bool, err error) {
	var bad error
	whole = true
	for {
		b, err := c.receive(0)
		if err != nil {
			return false, err
		}
		for len(b) > 0 {
			var m message
			if m, b, err = nextMessage(b); err != nil {
				return false, err
			}
			if m.seq != c.seq {
				continue
			}
			whole = whole && m.flags&unix.NLM_F_DUMP_INTR == 0
			switch {
			case m.typ == unix.NLMSG_DONE, m.typ == unix.NLMSG_ERROR:
				return whole, errors.Join(bad, m.status())
			case bad == nil:
				bad = each(m)
			}
		}
	}
}

func (c *conn) send() error {
	for {
		_, err := unix.Write(c.fd, c.enc.b)
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("write netlink", err)
		}
	}
}

func (c *conn) receive(flags int) ([]byte, error) {
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf, flags)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN) && flags&unix.MSG_DONTWAIT == 0:
			return nil, fmt.Errorf("read netlink: no answer in %d s: %w", answerSeconds, os.ErrDeadlineExceeded)
		case err != nil:
			return nil, os.NewSyscallError("read netlink", err)
		default:
			return c.buf[:n], nil
		}
	}
}

// drain throws away what is left after lost answers.
func (c *conn) drain() error {
	for {
		_, err := c.receive(unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil && !errors.Is(err, unix.ENOBUFS):
			return err
		}
	}
}

// one sends a single request and returns the kernel's refusal.
func (c *conn) one(ctx context.Context, encode func(*encoder), reply func(message)) error {
	failed, _, err := c.do(ctx, requests{
		n:      1,
		encode: func(e *encoder, _ int) { encode(e) },
		reply: func(_ int, m message) {
			if reply != nil {
				reply(m)
			}
		},
	})
	if err == nil && len(failed) > 0 {
		err = failed[0].err
	}
	return err
}

// code is the kernel's errno in err, or 0.
func code(err error) syscall.Errno {
	var refused *Error
	if errors.As(err, &refused) {
		return refused.Code
	}
	return 0
}
