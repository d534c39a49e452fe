package storm

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
)

// Server is the etcd of a crowd. It keeps its address and its data over a stop.
type Server interface {
	Endpoint() string
	Stop() error
	Restart(ctx context.Context) error
}

// child is an etcd in a process of its own. In one process with thousands of hosts
// their goroutines would be in each other's way: etcd hands its locks from one to
// the next, and each of them would wait for its turn among all of the hosts'.
type child struct {
	self, dir, endpoint string
	// port is ours also while etcd is down and all its clients call.
	port *etcdtest.Reservation

	cmd *exec.Cmd
	// exited is closed when the process is gone; err is its end, valid then.
	exited chan struct{}
	err    error
	// memory is the most that any run has had until it was stopped.
	memory int64
}

// startServer starts `flannel-lab etcd`, which self is, on the loopback.
func startServer(ctx context.Context, self, dir string) (*child, error) {
	port, err := etcdtest.Reserve("127.0.0.1")
	if err != nil {
		return nil, err
	}
	c := &child{self: self, dir: dir, endpoint: "http://" + port.Addr.String(), port: port}
	if err := c.Restart(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Close stops etcd for good.
func (c *child) Close() error { return errors.Join(c.Stop(), c.port.Close()) }

// Endpoint implements [Server].
func (c *child) Endpoint() string { return c.endpoint }

// Restart implements [Server]: it returns when etcd serves.
func (c *child) Restart(ctx context.Context) error {
	if err := c.Stop(); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(c.dir, "etcd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	defer log.Close()
	// The process outlives ctx, which is about its start.
	cmd := exec.Command(c.self, lab.EtcdCommand, "--dir", filepath.Join(c.dir, "data"), "--listen", c.endpoint)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	exited := make(chan struct{})
	err = etcdtest.StartTied(cmd, func(err error) {
		c.err = err
		close(exited)
	})
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	c.cmd, c.exited = cmd, exited
	return c.await(ctx, log.Name())
}

// await returns when the server answers.
func (c *child) await(ctx context.Context, log string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if c.healthy(ctx) {
			return nil
		}
		select {
		case <-c.exited:
			c.cmd = nil
			return fmt.Errorf("start etcd: it ended: %w; see %s", c.err, log)
		case <-ctx.Done():
			return fmt.Errorf("start etcd: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
}

func (c *child) healthy(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.endpoint+"/health", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// Stop implements [Server], as a machine that loses its power stops: without a
// word to anybody.
func (c *child) Stop() error {
	if c.cmd == nil {
		return nil
	}
	// One that has ended by itself has no memory any more.
	if peak, err := machine.PeakMemory(c.cmd.Process.Pid); err == nil {
		c.memory = max(c.memory, peak)
	}
	if err := c.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop etcd: %w", err)
	}
	<-c.exited
	c.cmd = nil
	return nil
}
