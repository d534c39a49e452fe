package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// EtcdCommand is the subcommand of flannel-lab that runs etcd.
const EtcdCommand = "etcd"

// Prefix is where the lab keeps config and leases: flannel's default.
const Prefix = "/coreos.com/network"

const etcdPort = 2379

// EtcdURL is where the hosts reach etcd.
func (l *Lab) EtcdURL() string {
	return "http://" + l.etcdAddr().String()
}

func (l *Lab) etcdAddr() netip.AddrPort {
	return netip.AddrPortFrom(l.plan.gateways[0].Addr(), etcdPort)
}

// StartEtcd starts etcd on the switch, or starts it again on the data that it
// left, and waits until it answers.
func (l *Lab) StartEtcd(ctx context.Context) error {
	dir := filepath.Join(l.Dir, "etcd")
	p, err := l.start(l.Switch, Spec{
		Path: l.opts.Self,
		Args: []string{EtcdCommand, "--dir", dir, "--listen", l.EtcdURL()},
		Log:  dir + ".log",
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.etcd = p
	l.mu.Unlock()
	// A client that finds nobody listening waits a second before it tries
	// again: it is asked only once somebody is.
	err = poll(ctx, func() (bool, error) {
		if !p.Running() {
			return false, p.exited()
		}
		conn, err := l.Switch.Dial(ctx, l.etcdAddr())
		if err != nil {
			return false, nil
		}
		return true, conn.Close()
	})
	if err != nil {
		return fmt.Errorf("wait for etcd: %w", err)
	}
	if l.client == nil {
		if l.client, err = l.newClient(); err != nil {
			return err
		}
	}
	if _, err := l.client.Status(ctx, l.EtcdURL()); err != nil {
		return fmt.Errorf("ask etcd for its status: %w", err)
	}
	return nil
}

// newClient makes a client that dials from inside the switch.
func (l *Lab) newClient() (*clientv3.Client, error) {
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{l.EtcdURL()},
		// What fails is returned; there is nothing more to log.
		Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				return l.Switch.Dial(ctx, l.etcdAddr())
			}),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("make etcd client: %w", err)
	}
	return c, nil
}

// Etcd is the running etcd, nil before StartEtcd.
func (l *Lab) Etcd() *Process {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.etcd
}

// Client speaks to the lab's etcd; nil before StartEtcd.
func (l *Lab) Client() *clientv3.Client { return l.client }

// PutConfig puts the network config.
func (l *Lab) PutConfig(ctx context.Context, config string) error {
	if l.client == nil {
		return errors.New("put config: etcd was not started")
	}
	if _, err := l.client.Put(ctx, Prefix+"/config", config); err != nil {
		return fmt.Errorf("put config: %w", err)
	}
	return nil
}
