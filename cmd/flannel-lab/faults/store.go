package faults

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

func storeFaults() []Fault {
	return []Fault{
		{Name: "etcd-down", Title: "etcd down", bounds: alike(0), once: true, common: true, do: stopEtcd, healed: isWell},
		{Name: "key-deleted", Title: "own key deleted in etcd", bounds: alike(0), do: deleteKey, healed: keyIsBack},
		{Name: "lease-revoked", Title: "own lease revoked in etcd", bounds: alike(0), do: revokeLease, healed: keyIsBack},
	}
}

// stopEtcd takes etcd away for a while.
func stopEtcd(ctx context.Context, n *network) (time.Time, error) {
	c := n.lab.Cluster()
	if err := c.Stop(ctx); err != nil {
		return time.Time{}, err
	}
	if err := lab.Wait(ctx, n.outage); err != nil {
		return time.Time{}, err
	}
	return time.Time{}, c.Start(ctx)
}

func deleteKey(ctx context.Context, n *network) (time.Time, error) {
	if _, err := n.lab.Client().Delete(ctx, n.key()); err != nil {
		return time.Time{}, fmt.Errorf("delete key: %w", err)
	}
	return time.Time{}, nil
}

func revokeLease(ctx context.Context, n *network) (time.Time, error) {
	resp, err := n.lab.Client().Get(ctx, n.key())
	if err != nil {
		return time.Time{}, fmt.Errorf("read key: %w", err)
	}
	if len(resp.Kvs) == 0 {
		return time.Time{}, fmt.Errorf("%s is not there", n.key())
	}
	if _, err := n.lab.Client().Revoke(ctx, clientv3.LeaseID(resp.Kvs[0].Lease)); err != nil {
		return time.Time{}, fmt.Errorf("revoke lease: %w", err)
	}
	return time.Time{}, nil
}

// keyIsBack looks for the key of the host's own subnet.
func keyIsBack(ctx context.Context, n *network) (bool, error) {
	resp, err := n.lab.Client().Get(ctx, n.key(), clientv3.WithCountOnly())
	if err != nil {
		return false, fmt.Errorf("read key: %w", err)
	}
	return resp.Count == 1, nil
}
