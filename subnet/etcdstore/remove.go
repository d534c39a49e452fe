package etcdstore

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// RemoveBad deletes a key that could not be read, and the lease it hangs on,
// provided that the key is unchanged since b.Modified. [subnet.ErrLeaseLost],
// [subnet.ErrStoreChanged].
func (s *Store) RemoveBad(ctx context.Context, b subnet.BadKey) error {
	if err := s.removeBad(ctx, b); err != nil {
		return s.fail(ctx, "remove "+b.Key, err)
	}
	return nil
}

func (s *Store) removeBad(ctx context.Context, b subnet.BadKey) error {
	if s.opts.ReadOnly {
		return ErrReadOnly
	}
	key, known := s.subnets+b.Key, s.identity()
	// The revision says enough: a key that hangs on another lease was put again.
	cmps := []clientv3.Cmp{
		clientv3.Compare(clientv3.ModRevision(key), "=", int64(b.Modified)),
		clientv3.Compare(clientv3.CreateRevision(key), ">", 0),
	}
	if known != "" {
		cmps = append(cmps, clientv3.Compare(clientv3.Value(s.identityKey), "=", known))
	}
	resp, err := s.client.Txn(ctx).If(cmps...).
		Then(clientv3.OpDelete(key, clientv3.WithPrevKV())).
		Else(s.reads(key)...).
		Commit()
	if err != nil {
		return err
	}
	if !resp.Succeeded {
		if f := foundIn(resp); known != "" && f.identity != known || f.revision < b.Modified {
			return subnet.ErrStoreChanged
		}
		return subnet.ErrLeaseLost
	}
	for _, kv := range resp.Responses[0].GetResponseDeleteRange().PrevKvs {
		if kv.Lease != 0 {
			s.revokeUnused(ctx, subnet.LeaseID(kv.Lease))
		}
	}
	return nil
}
