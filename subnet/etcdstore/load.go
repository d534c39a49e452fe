package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/internal/layout"
)

// pageSize is how many leases one answer holds at most: some 1.5 MB of them. What
// etcd and we hold in memory beside the leases themselves is a page, however many
// hosts there are.
const pageSize = 5000

// loadTries is how often a load begins anew because etcd compacted the revision
// that it was reading at. Compactions are minutes apart.
const loadTries = 3

// Load reads everything at one revision: in one transaction, and what is more than
// a page in further requests. See [subnet.Store].
func (s *Store) Load(ctx context.Context) (subnet.World, error) {
	r, err := s.read(ctx)
	if err == nil && r.world.Identity == "" && !s.opts.ReadOnly {
		if err = s.identify(ctx); err == nil {
			r, err = s.read(ctx)
		}
		if err == nil && r.world.Identity == "" {
			err = subnet.ErrStoreChanged
		}
	}
	if err != nil {
		return subnet.World{}, s.fail(ctx, "load", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known = r.world.Identity
	s.hosts = len(r.world.Leases)
	s.loaded = past{at: r.world.Revision, identity: r.world.Identity, witness: r.witness}
	return r.world, nil
}

// read reads a world, again if a compaction comes in between.
func (s *Store) read(ctx context.Context) (reading, error) {
	for try := 1; ; try++ {
		r, err := s.readPages(ctx)
		if !errors.Is(err, rpctypes.ErrCompacted) || try == loadTries {
			return r, err
		}
	}
}

// reading is a world in the making.
type reading struct {
	world subnet.World
	// witness is the key written last of all that were read.
	witness *mvccpb.Event
	// last is the last key of a lease that was read, left how many follow.
	last string
	left int64
}

func (s *Store) readPages(ctx context.Context) (reading, error) {
	const identity, config, leases = 0, 1, 2
	resp, err := s.client.Txn(ctx).Then(
		clientv3.OpGet(s.identityKey),
		clientv3.OpGet(s.configKey),
		clientv3.OpGet(s.subnets, clientv3.WithPrefix(), clientv3.WithLimit(s.page)),
	).Commit()
	if err != nil {
		return reading{}, err
	}
	first := resp.Responses[leases].GetResponseRange()
	r := reading{left: first.Count, world: subnet.World{
		Identity: identityOf(answer(resp, identity)),
		Revision: subnet.Revision(resp.Header.Revision),
		Config:   documentOf(answer(resp, config)),
		Leases:   make([]subnet.Lease, 0, first.Count),
	}}
	r.remember(answer(resp, identity))
	r.remember(answer(resp, config))
	r.take(s, first.Kvs)
	for r.left > 0 {
		if err := s.readPage(ctx, &r); err != nil {
			return reading{}, err
		}
	}
	return r, nil
}

// readPage reads what follows, as it was at the world's revision.
func (s *Store) readPage(ctx context.Context, r *reading) error {
	page, err := s.client.Get(ctx, r.last+"\x00",
		clientv3.WithRange(clientv3.GetPrefixRangeEnd(s.subnets)),
		clientv3.WithRev(int64(r.world.Revision)), clientv3.WithLimit(s.page))
	switch {
	case errors.Is(err, rpctypes.ErrFutureRev):
		return fmt.Errorf("%w: %w", subnet.ErrStoreChanged, err)
	case err != nil:
		return err
	case page.Count != r.left || len(page.Kvs) == 0:
		// At that revision there were others: it is another past's.
		return subnet.ErrStoreChanged
	}
	r.take(s, page.Kvs)
	return nil
}

// take adds a page of leases.
func (r *reading) take(s *Store, kvs []*mvccpb.KeyValue) {
	r.left -= int64(len(kvs))
	if len(kvs) == 0 {
		return
	}
	r.last = string(kvs[len(kvs)-1].Key)
	r.remember(kvs)
	read := layout.Read(s.subnetsOf(kvs))
	// Pages come in the order of keys, which is that of leases.
	r.world.Leases, r.world.Bad = append(r.world.Leases, read.Leases...), append(r.world.Bad, read.Bad...)
}

// remember looks for the key written last.
func (r *reading) remember(kvs []*mvccpb.KeyValue) {
	for _, kv := range kvs {
		if r.witness == nil || kv.ModRevision > r.witness.Kv.ModRevision {
			// Without its value: that would keep a whole page.
			r.witness = &mvccpb.Event{Type: mvccpb.PUT, Kv: &mvccpb.KeyValue{
				Key: kv.Key, CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision,
			}}
		}
	}
}

// past is up to where a store is known.
type past struct {
	at       subnet.Revision
	identity string
	// witness is the last event up to there, or one that stands for it: a
	// store that does not know of it has another past. nil: there was none.
	witness *mvccpb.Event
}

// pastAt is what is known of a past that reaches to a revision, and how many leases
// there were at the last load. Where a watch ended counts before what was loaded: that
// may be of a store that has taken the place of the watched one.
func (s *Store) pastAt(at subnet.Revision) (_ past, leases int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.watched.identity != "" && s.watched.at == at:
		return s.watched, s.hosts
	case s.loaded.at == at:
		return s.loaded, s.hosts
	}
	return past{identity: s.known}, s.hosts
}

// follow notes how far a watch has come, and err, why it ended. Nothing goes on from a
// past that is not the store's any more.
func (s *Store) follow(p past, err error) {
	if errors.Is(err, subnet.ErrStoreChanged) {
		p = past{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watched = p
}

func (s *Store) subnetsOf(kvs []*mvccpb.KeyValue) []layout.KV {
	all := make([]layout.KV, 0, len(kvs))
	for _, kv := range kvs {
		all = append(all, layout.KV{
			Key:      strings.TrimPrefix(string(kv.Key), s.subnets),
			Value:    kv.Value,
			Lease:    subnet.LeaseID(kv.Lease),
			Created:  subnet.Revision(kv.CreateRevision),
			Modified: subnet.Revision(kv.ModRevision),
		})
	}
	return all
}
