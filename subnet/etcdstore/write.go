package etcdstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/internal/layout"
)

// errUnexplained is a transaction that failed although all its conditions hold:
// it cannot be, since both are of one revision.
var errUnexplained = errors.New("transaction failed without a reason")

// Create stores a lease. See [subnet.Store].
//
// It costs a request to grant a lease and one transaction; candidates tried
// after a lost race within a second use the same grant. After an error that is
// no sentinel the key may exist or not: it has our Owner and Instance, so that a
// Load finds it. If it does not exist, the lease that was granted expires by
// itself.
//
// A transaction cannot compare the store's revision. That a snapshot was restored
// since the world was read shows by the witness, or when it is done, by the
// revision that it got: then it is undone.
func (s *Store) Create(ctx context.Context, l subnet.Lease, ttl time.Duration, w subnet.World) (subnet.Lease, error) {
	entry, err := layout.Write(l)
	if err != nil {
		return subnet.Lease{}, err
	}
	created, err := s.create(ctx, entry, ttl, w)
	created.Subnet, created.Attrs = l.Subnet, entry.Attrs
	if err == nil && created.Created <= w.Revision {
		// The store has lost its past.
		err = cmp.Or(s.delete(ctx, created), subnet.ErrStoreChanged)
	}
	if err != nil {
		return subnet.Lease{}, s.fail(ctx, "create "+l.Subnet.String(), err)
	}
	return created, nil
}

func (s *Store) create(ctx context.Context, entry layout.Entry, ttl time.Duration, w subnet.World) (subnet.Lease, error) {
	if s.opts.ReadOnly {
		return subnet.Lease{}, ErrReadOnly
	}
	g, err := s.take(ctx, ttl)
	if err != nil {
		return subnet.Lease{}, err
	}
	key := s.subnets + entry.Key
	cmps := append(s.worldIs(w), clientv3.Compare(clientv3.CreateRevision(key), "=", 0))
	witness, ok := w.Witness()
	if ok {
		cmps = append(cmps, s.stands(witness)...)
	}
	resp, err := s.client.Txn(ctx).If(cmps...).
		Then(clientv3.OpPut(key, entry.Value, clientv3.WithLease(clientv3.LeaseID(g.id)))).
		Else(s.reads(key)...).
		Commit()
	if err != nil {
		return subnet.Lease{}, err // The grant may be in use.
	}
	if resp.Succeeded {
		rev := subnet.Revision(resp.Header.Revision)
		return subnet.Lease{ID: g.id, TTL: g.ttl, Created: rev, Modified: rev}, nil
	}
	found := foundIn(resp)
	err = found.differs(w)
	switch {
	case err != nil:
		s.discard(ctx, g)
		return subnet.Lease{}, err
	case found.key != nil:
		err = subnet.ErrTaken
	case ok:
		err = subnet.ErrLeaseLost // Of all conditions it is the one left.
	default:
		err = errUnexplained
	}
	s.keep(ctx, g)
	return subnet.Lease{}, err
}

// worldIs compares identity and config with those of w.
func (s *Store) worldIs(w subnet.World) []clientv3.Cmp {
	cmps := []clientv3.Cmp{
		clientv3.Compare(clientv3.Value(s.identityKey), "=", w.Identity),
		clientv3.Compare(clientv3.ModRevision(s.configKey), "=", int64(w.Config.Modified)),
	}
	if w.Config != (subnet.Document{}) { // A value compares with no absent key.
		cmps = append(cmps, clientv3.Compare(clientv3.Value(s.configKey), "=", w.Config.Text))
	}
	return cmps
}

// reads are what a transaction must see to explain itself: see foundIn.
func (s *Store) reads(key string) []clientv3.Op {
	return []clientv3.Op{clientv3.OpGet(s.identityKey), clientv3.OpGet(s.configKey), clientv3.OpGet(key)}
}

// found is what a transaction saw instead of what it compared with.
type found struct {
	revision subnet.Revision
	identity string
	config   subnet.Document
	// key is nil if there is none.
	key *mvccpb.KeyValue
}

func foundIn(resp *clientv3.TxnResponse) found {
	f := found{
		revision: subnet.Revision(resp.Header.Revision),
		identity: identityOf(answer(resp, 0)),
		config:   documentOf(answer(resp, 1)),
	}
	if kvs := answer(resp, 2); len(kvs) > 0 {
		f.key = kvs[0]
	}
	return f
}

// differs tells f from w: another store before another config.
func (f found) differs(w subnet.World) error {
	switch {
	case f.identity != w.Identity || w.Identity == "" || f.revision < w.Revision:
		return subnet.ErrStoreChanged
	case f.config != w.Config:
		return subnet.ErrConfigChanged
	default:
		return nil
	}
}

// holds returns nil if l is still ours, in the store named known.
func (f found) holds(l subnet.Lease, known string) error {
	switch {
	case known != "" && f.identity != known || f.revision < l.Modified:
		return subnet.ErrStoreChanged
	case f.key == nil, f.key.ModRevision != int64(l.Modified), f.key.Lease != int64(l.ID):
		return subnet.ErrLeaseLost
	default:
		return nil
	}
}

// stands compares the key of l with what l says of it.
func (s *Store) stands(l subnet.Lease) []clientv3.Cmp {
	key := s.keyOf(l)
	return []clientv3.Cmp{
		clientv3.Compare(clientv3.ModRevision(key), "=", int64(l.Modified)),
		clientv3.Compare(clientv3.LeaseValue(key), "=", clientv3.LeaseID(l.ID)),
		// A lease that was never stored has revision 0, and so has no key.
		clientv3.Compare(clientv3.CreateRevision(key), ">", 0),
	}
}

// held is stands, in the store that we know.
func (s *Store) held(l subnet.Lease) []clientv3.Cmp {
	cmps := s.stands(l)
	if known := s.identity(); known != "" {
		cmps = append(cmps, clientv3.Compare(clientv3.Value(s.identityKey), "=", known))
	}
	return cmps
}

func (s *Store) keyOf(l subnet.Lease) string { return s.subnets + l.Subnet.Key() }

// Update replaces the attributes of a lease. See [subnet.Store].
func (s *Store) Update(ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
	entry, err := layout.Write(l)
	if err != nil {
		return subnet.Lease{}, err
	}
	// The lease is kept by not naming it: also a key that hangs on none.
	resp, err := s.swap(ctx, l, clientv3.OpPut(s.keyOf(l), entry.Value, clientv3.WithIgnoreLease()))
	if err != nil {
		return subnet.Lease{}, s.fail(ctx, "update "+l.Subnet.String(), err)
	}
	l.Attrs, l.Modified = entry.Attrs, subnet.Revision(resp.Header.Revision)
	return l, nil
}

// Release deletes a lease. See [subnet.Store].
func (s *Store) Release(ctx context.Context, l subnet.Lease) error {
	if err := s.delete(ctx, l); err != nil {
		return s.fail(ctx, "release "+l.Subnet.String(), err)
	}
	return nil
}

func (s *Store) delete(ctx context.Context, l subnet.Lease) error {
	if _, err := s.swap(ctx, l, clientv3.OpDelete(s.keyOf(l))); err != nil {
		return err
	}
	if !l.Reservation() {
		s.revokeUnused(ctx, l.ID)
	}
	return nil
}

// swap does op if the key of l is as l says.
func (s *Store) swap(ctx context.Context, l subnet.Lease, op clientv3.Op) (*clientv3.TxnResponse, error) {
	if s.opts.ReadOnly {
		return nil, ErrReadOnly
	}
	known := s.identity()
	resp, err := s.client.Txn(ctx).If(s.held(l)...).Then(op).Else(s.reads(s.keyOf(l))...).Commit()
	if err != nil || resp.Succeeded {
		return resp, err
	}
	if err := foundIn(resp).holds(l, known); err != nil {
		return nil, err
	}
	return nil, errUnexplained
}

// Reserve makes a reservation of a lease. See [subnet.Store].
func (s *Store) Reserve(ctx context.Context, l subnet.Lease, w subnet.World) (subnet.Lease, error) {
	entry, err := layout.Write(l)
	if err != nil {
		return subnet.Lease{}, err
	}
	resp, err := s.reserve(ctx, l, entry, w)
	if err != nil {
		return subnet.Lease{}, s.fail(ctx, "reserve "+l.Subnet.String(), err)
	}
	if !l.Reservation() {
		s.revokeUnused(ctx, l.ID)
	}
	l.Attrs, l.ID, l.TTL, l.Modified = entry.Attrs, 0, 0, subnet.Revision(resp.Header.Revision)
	return l, nil
}

func (s *Store) reserve(ctx context.Context, l subnet.Lease, entry layout.Entry, w subnet.World) (*clientv3.TxnResponse, error) {
	if s.opts.ReadOnly {
		return nil, ErrReadOnly
	}
	known := s.identity()
	resp, err := s.client.Txn(ctx).
		If(append(s.worldIs(w), s.held(l)...)...).
		Then(clientv3.OpPut(s.keyOf(l), entry.Value)). // Without a lease: it is detached.
		Else(s.reads(s.keyOf(l))...).
		Commit()
	if err != nil || resp.Succeeded {
		return resp, err
	}
	found := foundIn(resp)
	if err := cmp.Or(found.differs(w), found.holds(l, known)); err != nil {
		return nil, err
	}
	return nil, errUnexplained
}

// Renew extends and proves a lease. See [subnet.Store].
func (s *Store) Renew(ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
	renewed, err := s.renew(ctx, l)
	if err != nil {
		return subnet.Lease{}, s.fail(ctx, "renew "+l.Subnet.String(), err)
	}
	return renewed, nil
}

func (s *Store) renew(ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
	if s.opts.ReadOnly {
		return subnet.Lease{}, ErrReadOnly
	}
	var alive error
	if !l.Reservation() {
		if l.TTL, alive = s.keepAlive(ctx, l.ID); alive != nil && !errors.Is(alive, subnet.ErrLeaseLost) {
			return subnet.Lease{}, alive
		}
	}
	// A keep-alive says nothing of the key: it succeeds although somebody
	// overwrote the key or detached it. Neither does a lease that is gone say
	// whether the store is.
	known := s.identity()
	resp, err := s.client.Txn(ctx).Then(s.reads(s.keyOf(l))...).Commit()
	if err != nil {
		return subnet.Lease{}, err
	}
	if err := foundIn(resp).holds(l, known); err != nil {
		return subnet.Lease{}, err
	}
	return l, alive
}

// PutConfig stores another config, provided that identity, config text and
// config revision are still those of w. It returns the config as stored.
// [subnet.ErrConfigChanged], [subnet.ErrStoreChanged].
func (s *Store) PutConfig(ctx context.Context, text string, w subnet.World) (subnet.Document, error) {
	if strings.TrimSpace(text) == "" {
		return subnet.Document{}, errors.New("put config: it is empty")
	}
	doc, err := s.putConfig(ctx, text, w)
	if err != nil {
		return subnet.Document{}, s.fail(ctx, fmt.Sprintf("put %s", s.configKey), err)
	}
	return doc, nil
}

func (s *Store) putConfig(ctx context.Context, text string, w subnet.World) (subnet.Document, error) {
	if s.opts.ReadOnly {
		return subnet.Document{}, ErrReadOnly
	}
	resp, err := s.client.Txn(ctx).
		If(s.worldIs(w)...).
		Then(clientv3.OpPut(s.configKey, text)).
		Else(s.reads(s.configKey)...).
		Commit()
	if err != nil {
		return subnet.Document{}, err
	}
	if resp.Succeeded {
		return subnet.Document{Text: text, Modified: subnet.Revision(resp.Header.Revision)}, nil
	}
	if err := foundIn(resp).differs(w); err != nil {
		return subnet.Document{}, err
	}
	return subnet.Document{}, errUnexplained
}
