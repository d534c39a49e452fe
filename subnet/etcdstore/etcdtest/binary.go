package etcdtest

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
)

// tail keeps the end of what is written to it, for an error message.
type tail struct {
	to io.Writer

	mu sync.Mutex
	// kept is guarded by mu.
	kept []byte
}

// tailSize is how much is kept, in bytes.
const tailSize = 4096

// Write implements [io.Writer].
func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, b...)
	t.kept = t.kept[max(0, len(t.kept)-tailSize):]
	if t.to == nil {
		return len(b), nil
	}
	return t.to.Write(b)
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.kept)
}

// StartTied starts a program in the calling thread's network namespace. The kernel kills
// it when this process ends, however it does. ended is told of its end.
func StartTied(cmd *exec.Cmd, ended func(error)) error {
	here, err := netns.Get()
	if err != nil {
		return err
	}
	cmd.SysProcAttr = cmp.Or(cmd.SysProcAttr, &syscall.SysProcAttr{})
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	started := make(chan error, 1)
	go func() {
		// The kernel takes the end of the thread that starts it for ours.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := startIn(cmd, here)
		started <- errors.Join(err, here.Close())
		if err == nil {
			ended(cmd.Wait())
		}
	}()
	return <-started
}

// startIn starts a program in a network namespace, which need not be the calling
// thread's.
func startIn(cmd *exec.Cmd, here netns.NsHandle) (err error) {
	own, err := netns.Get()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, own.Close()) }()
	if own.Equal(here) {
		return cmd.Start()
	}
	if err := netns.Set(here); err != nil {
		return err
	}
	return errors.Join(cmd.Start(), netns.Set(own))
}

// child is a server in a process of its own.
type child struct {
	cmd *exec.Cmd
	// exited is closed when the process is gone; err is its end, valid then.
	exited chan struct{}
	err    error
}

// end takes in how the process ended.
func (c *child) end(err error) {
	c.err = err
	close(c.exited)
}

func (s *Server) startBinary(ctx context.Context) (_ instance, err error) {
	// The process outlives ctx, which is about its start.
	cmd := exec.Command(s.opts.Binary,
		"--name", s.opts.Name,
		"--data-dir", s.data(),
		"--heartbeat-interval", strconv.FormatUint(uint64(s.heartbeatMillis()), 10),
		"--election-timeout", strconv.FormatUint(uint64(s.electionMillis()), 10),
		"--quota-backend-bytes", strconv.FormatInt(s.opts.QuotaBytes, 10),
		"--listen-client-urls", s.client.String(), "--advertise-client-urls", s.client.String(),
		"--listen-peer-urls", s.peer.String(), "--initial-advertise-peer-urls", s.peer.String(),
		"--initial-cluster", s.cluster(),
		"--bcrypt-cost", "4",
		"--auth-token", s.opts.AuthToken, "--auth-token-ttl", strconv.FormatUint(uint64(s.authTokenTTL()), 10),
		"--logger", "zap", "--log-outputs", "stderr",
		"--cert-file", s.opts.Cert, "--key-file", s.opts.Key, "--trusted-ca-file", s.opts.ClientCA,
		"--client-cert-auth="+strconv.FormatBool(s.opts.ClientCA != ""),
	)
	log := &tail{to: s.opts.Log}
	cmd.Stdout, cmd.Stderr = log, log
	// Settings for a production etcd of this machine must not leak in.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "ETCD_UNSUPPORTED_ARCH=" + os.Getenv("ETCD_UNSUPPORTED_ARCH")}
	c := &child{cmd: cmd, exited: make(chan struct{})}
	if err := StartTied(cmd, c.end); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.stop(), fmt.Errorf("its log ends with:\n%s", log))
		}
	}()
	return c, s.await(ctx, c)
}

// await returns when the server accepts connections, which it does once it has a
// leader.
func (s *Server) await(ctx context.Context, c *child) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if s.serves(ctx) {
			return nil
		}
		select {
		case <-tick.C:
		case <-c.exited:
			return fmt.Errorf("%s exited: %w", s.opts.Binary, c.err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// serves reports whether somebody answers on the client port. etcd opens it
// early and serves when there is a leader: a connection alone says little.
func (s *Server) serves(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", s.client.Host)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return false
	}
	if s.client.Scheme == "https" {
		// Whom it trusts and whom we trust is not the question.
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // see above
	}
	var answer [1]byte
	if _, err = conn.Write([]byte("GET /health HTTP/1.0\r\n\r\n")); err == nil {
		_, err = conn.Read(answer[:])
	}
	// Who wants a certificate that we do not have says so, which will do.
	var alert *net.OpError
	return err == nil || errors.As(err, &alert) && alert.Op == "remote error"
}

func (c *child) stop() error {
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	grace := time.NewTimer(5 * time.Second)
	defer grace.Stop()
	select {
	case <-c.exited:
		return nil
	case <-grace.C:
	}
	if err := c.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-c.exited
	return nil
}
