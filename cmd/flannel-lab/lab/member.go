package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Member is one etcd of a cluster.
type Member struct {
	// Node is the member's own namespace; the switch's for the member of
	// StartEtcd.
	*Node
	// Number is from 1.
	Number int
	Addr   netip.Addr

	cluster *Cluster
	dir     string
	client  *clientv3.Client

	// mu guards what follows.
	mu      sync.Mutex
	process *Process
	paused  bool
	// shared are the connections of the cluster's client.
	shared map[*sharedConn]struct{}
}

// Why a member cannot be asked.
var (
	// ErrNotRunning: the member was not started, or has ended.
	ErrNotRunning = errors.New("not running")
	// errPaused: the member would not answer.
	errPaused = errors.New("paused")
)

// name is the member's in its cluster, and that of its folder.
func (m *Member) name() string { return fmt.Sprintf("e%d", m.Number) }

func (m *Member) backup() string { return m.dir + ".backup" }

// URL is where clients reach this member.
func (m *Member) URL() string { return etcdURL(m.Addr) }

func (m *Member) peerURL() string {
	return "http://" + netip.AddrPortFrom(m.Addr, peerPort).String()
}

// Client speaks to this member alone. Its requests wait while the member is
// paused.
func (m *Member) Client() *clientv3.Client { return m.client }

// Process is the member's process started last; nil before that.
func (m *Member) Process() *Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.process
}

// Running reports whether the member's process lives. A paused one does.
func (m *Member) Running() bool {
	p := m.Process()
	return p != nil && p.Running()
}

// Start starts the member on the data that it left, and waits until it listens.
// It serves once a majority runs: Cluster.WaitHealthy waits for that.
func (m *Member) Start(ctx context.Context) error {
	p, err := m.launch()
	if err != nil {
		return err
	}
	// Clients that find nobody listening wait before they try again: they are
	// asked only once somebody is.
	err = poll(ctx, func() (bool, error) {
		if !p.Running() {
			return false, p.exited()
		}
		conn, err := m.dial(ctx)
		if err != nil {
			return false, nil
		}
		return true, conn.Close()
	})
	if err != nil {
		return fmt.Errorf("wait for %s to listen: %w", m.name(), err)
	}
	return nil
}

func (m *Member) launch() (*Process, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.process != nil && m.process.Running() {
		return nil, fmt.Errorf("start etcd %s: it is running", m.name())
	}
	args := []string{
		EtcdCommand, "--name", m.name(), "--dir", m.dir, "--listen", m.URL(),
		"--quota", strconv.FormatInt(m.cluster.opts.QuotaBytes, 10),
	}
	if len(m.cluster.Members) > 1 {
		args = append(args, "--peer", m.peerURL(), "--cluster", m.cluster.initial(), "--heartbeat", memberHeartbeat.String())
	}
	l := m.cluster.lab
	p, err := m.start(l.Name, Spec{Path: l.opts.Self, Args: args, Log: m.dir + ".log"})
	if err != nil {
		return nil, err
	}
	m.process, m.paused = p, false
	return p, nil
}

// Stop ends the member in good order: a leader hands the lead over first. One
// that does not run is no failure.
func (m *Member) Stop(ctx context.Context) error {
	if p := m.Process(); p != nil {
		return p.Stop(ctx)
	}
	return nil
}

// Kill ends the member with SIGKILL. One that does not run is no failure.
func (m *Member) Kill() error {
	if p := m.Process(); p != nil {
		return p.Kill()
	}
	return nil
}

// kill is Kill that waits no longer than ctx.
func (m *Member) kill(ctx context.Context) error {
	p := m.Process()
	if p == nil {
		return nil
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	_, err := p.ExitCode(ctx)
	return err
}

// Pause stops the member's process with SIGSTOP: its connections stay open, new
// ones are accepted by the kernel, and nothing is answered.
func (m *Member) Pause() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.process == nil || !m.process.Running() {
		return fmt.Errorf("pause etcd %s: %w", m.name(), ErrNotRunning)
	}
	if err := m.process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	m.paused = true
	// The cluster's client would send every third request here and wait for
	// its keepalive, 13 s, to learn better.
	for conn := range m.shared {
		_ = conn.Conn.Close()
	}
	return nil
}

// Resume continues a paused member with SIGCONT. One that is not paused goes on.
func (m *Member) Resume() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.process == nil || !m.process.Running() {
		return fmt.Errorf("resume etcd %s: %w", m.name(), ErrNotRunning)
	}
	m.paused = false
	return m.process.Signal(syscall.SIGCONT)
}

// waitServing waits until the member answers a read that the leader confirms.
func (m *Member) waitServing(ctx context.Context) error {
	p := m.Process()
	if p == nil {
		return fmt.Errorf("%s: %w", m.name(), ErrNotRunning)
	}
	var last error
	err := poll(ctx, func() (bool, error) {
		if !p.Running() {
			return false, fmt.Errorf("%w: %w", ErrNotRunning, p.exited())
		}
		ctx, cancel := context.WithTimeout(ctx, askWithin)
		defer cancel()
		_, last = m.client.Get(ctx, Prefix)
		return last == nil, nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", m.name(), errors.Join(err, last))
	}
	return nil
}

// status asks the member how it sees its cluster.
func (m *Member) status(ctx context.Context) (*clientv3.StatusResponse, error) {
	m.mu.Lock()
	paused := m.paused
	m.mu.Unlock()
	if paused {
		return nil, fmt.Errorf("ask %s: %w", m.name(), errPaused)
	}
	if !m.Running() {
		return nil, fmt.Errorf("ask %s: %w", m.name(), ErrNotRunning)
	}
	return m.client.Status(ctx, m.URL())
}

// dial opens a connection to the member from inside the lab.
func (m *Member) dial(ctx context.Context) (*net.TCPConn, error) {
	return m.cluster.lab.Switch.Dial(ctx, netip.AddrPortFrom(m.Addr, etcdPort))
}

// sharedConn is a connection of the cluster's client to one member.
type sharedConn struct {
	net.Conn
	member *Member
}

// Close implements [net.Conn].
func (c *sharedConn) Close() error {
	c.member.mu.Lock()
	defer c.member.mu.Unlock()
	delete(c.member.shared, c)
	return c.Conn.Close()
}

// dialShared opens a connection that ends when the member is paused.
func (m *Member) dialShared(ctx context.Context) (net.Conn, error) {
	conn, err := m.dial(ctx)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	// One that was accepted just before the pause would pass for a good one.
	if m.paused {
		return nil, errors.Join(fmt.Errorf("dial %s: %w", m.name(), errPaused), conn.Close())
	}
	c := &sharedConn{Conn: conn, member: m}
	if m.shared == nil {
		m.shared = make(map[*sharedConn]struct{})
	}
	m.shared[c] = struct{}{}
	return c, nil
}
