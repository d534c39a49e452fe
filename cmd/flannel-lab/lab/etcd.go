package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// EtcdCommand is the subcommand of flannel-lab that runs a member of etcd.
const EtcdCommand = "etcd"

// Prefix is where the lab keeps config and leases: flannel's default.
const Prefix = "/coreos.com/network"

// Where every member listens, at its own address.
const (
	etcdPort = 2379
	peerPort = 2380
)

// EtcdURL is where the hosts reach etcd: all members, joined by commas.
func (l *Lab) EtcdURL() string {
	if c := l.Cluster(); c != nil {
		return c.URL()
	}
	return etcdURL(l.plan.gateways[0].Addr())
}

func etcdURL(a netip.Addr) string { return "http://" + netip.AddrPortFrom(a, etcdPort).String() }

// StartEtcd starts an etcd of one member on the switch, or starts it again on the
// data that it left, and waits until it answers.
func (l *Lab) StartEtcd(ctx context.Context) error {
	c := l.Cluster()
	if c == nil {
		m := &Member{Node: l.Switch, Number: 1, Addr: l.plan.gateways[0].Addr()}
		var err error
		if c, err = l.newCluster([]*Member{m}, ClusterOptions{Members: 1}); err != nil {
			return err
		}
	}
	return c.Start(ctx)
}

// Cluster is the lab's etcd; nil before StartEtcd or StartCluster.
func (l *Lab) Cluster() *Cluster {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cluster
}

// Etcd is the process of etcd's first member; nil before it was started.
func (l *Lab) Etcd() *Process {
	c := l.Cluster()
	if c == nil {
		return nil
	}
	return c.Members[0].Process()
}

// Client speaks to the lab's etcd; nil before StartEtcd or StartCluster.
func (l *Lab) Client() *clientv3.Client {
	c := l.Cluster()
	if c == nil {
		return nil
	}
	return c.Client()
}

// PutConfig puts the network config.
func (l *Lab) PutConfig(ctx context.Context, config string) error {
	c := l.Client()
	if c == nil {
		return errors.New("put config: etcd was not started")
	}
	if _, err := c.Put(ctx, Prefix+"/config", config); err != nil {
		return fmt.Errorf("put config: %w", err)
	}
	return nil
}

// How the lab's clients keep their connections.
const (
	// aliveEvery is the shortest that gRPC allows; aliveWithin is for the answer.
	aliveEvery, aliveWithin = 10 * time.Second, 3 * time.Second
	// redialAfter, redialMost: gRPC's own 1 s to 2 min are for a shared network.
	redialAfter, redialMost = 20 * time.Millisecond, 200 * time.Millisecond
	// connectWithin is for one connection attempt.
	connectWithin = 2 * time.Second
)

// newClient makes a client whose connections dial makes, from inside the lab.
func newClient(members []*Member, dial func(context.Context, netip.AddrPort) (net.Conn, error)) (*clientv3.Client, error) {
	var endpoints []string
	for _, m := range members {
		endpoints = append(endpoints, m.URL())
	}
	c, err := clientv3.New(clientv3.Config{
		Endpoints: endpoints,
		// What fails is returned; there is nothing more to log.
		Logger:               zap.NewNop(),
		DialKeepAliveTime:    aliveEvery,
		DialKeepAliveTimeout: aliveWithin,
		DialOptions: []grpc.DialOption{
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: redialAfter, Multiplier: 1.6, Jitter: 0.2, MaxDelay: redialMost},
				MinConnectTimeout: connectWithin,
			}),
			grpc.WithContextDialer(func(ctx context.Context, target string) (net.Conn, error) {
				addr, err := netip.ParseAddrPort(target)
				if err != nil {
					return nil, fmt.Errorf("dial etcd: %w", err)
				}
				return dial(ctx, addr)
			}),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("make etcd client: %w", err)
	}
	return c, nil
}
