package memstore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/internal/layout"
)

var _ subnet.Store = (*Store)(nil)

// Options change how a Store behaves. The zero value is a store without
// troubles.
type Options struct {
	// Progress is how often a quiet watch yields a progress batch; 5 s by
	// default.
	Progress time.Duration
	// Before, when set, is asked before every call of an interface's method,
	// by the method's name; Watch asks once, at its start. An error refuses
	// the call, which then does nothing.
	Before func(method string) error
	// After, when set, is asked after every call but Watch that did what it
	// should. Its error takes the result's place: the caller does not learn
	// the outcome, as when the answer of a server is lost.
	After func(method string) error
}

// Store is one process' view of a store in memory. Its zero value is not
// usable: see [New].
type Store struct {
	opts Options
	*server
	// known is the identity that the last Load returned; down, why the server
	// cannot be reached. Both are guarded by the server's mu.
	known string
	down  error
}

// server is what all Stores on the same data share.
type server struct {
	mu sync.Mutex
	// The fields below are guarded by mu.

	state     *state
	lastLease subnet.LeaseID
	// changed is closed and replaced whenever a watch must look again.
	changed chan struct{}
}

// New returns an empty store, without a config and without an identity.
func New(opts Options) *Store {
	srv := &server{state: newState(), changed: make(chan struct{})}
	return srv.open(opts)
}

// Open returns another Store on the same data, as one more host has it: it
// remembers the identity by itself, and can be unavailable by itself.
func (s *Store) Open(opts Options) *Store { return s.open(opts) }

func (s *server) open(opts Options) *Store {
	if opts.Progress <= 0 {
		opts.Progress = 5 * time.Second
	}
	return &Store{opts: opts, server: s}
}

// do runs one call of an interface's method under the lock.
func (s *Store) do(ctx context.Context, method string, f func(*state) error) error {
	if err := s.admit(ctx, method); err != nil {
		return err
	}
	if err := s.locked(f); err != nil {
		return err
	}
	if s.opts.After != nil {
		return s.opts.After(method)
	}
	return nil
}

// admit asks whether a call may go on.
func (s *Store) admit(ctx context.Context, method string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.opts.Before != nil {
		if err := s.opts.Before(method); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.down
}

// locked runs f and wakes the watches if it changed something.
func (s *server) locked(f func(*state) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.state.revision
	err := f(s.state)
	if s.state.revision != before {
		s.wake()
	}
	return err
}

// wake makes every watch look again; mu is held.
func (s *server) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Load reads everything at one revision. See [subnet.Store].
func (s *Store) Load(ctx context.Context) (subnet.World, error) {
	var w subnet.World
	err := s.do(ctx, "Load", func(st *state) error {
		if st.identity() == "" {
			st.put(layout.Identity, layout.NewIdentity(), 0)
		}
		w = st.world()
		s.known = w.Identity
		return nil
	})
	if err != nil {
		return subnet.World{}, fmt.Errorf("load: %w", err)
	}
	return w, nil
}

// Create stores a lease. See [subnet.Store].
func (s *Store) Create(ctx context.Context, l subnet.Lease, ttl time.Duration, w subnet.World) (subnet.Lease, error) {
	entry, err := layout.Write(l)
	if err != nil {
		return subnet.Lease{}, err
	}
	err = s.do(ctx, "Create", func(st *state) error {
		if err := st.matches(w); err != nil {
			return err
		}
		if _, ok := st.kvs[layout.Subnets+entry.Key]; ok {
			return subnet.ErrTaken
		}
		if witness, ok := w.Witness(); ok && !st.has(witness) {
			return subnet.ErrLeaseLost
		}
		l.ID, l.TTL = s.grant(ttl)
		k := st.put(layout.Subnets+entry.Key, entry.Value, l.ID)
		l.Attrs, l.Created, l.Modified = entry.Attrs, k.created, k.modified
		return nil
	})
	if err != nil {
		return subnet.Lease{}, fmt.Errorf("create %s: %w", l.Subnet, err)
	}
	return l, nil
}

// matches compares identity and config with those of w.
func (st *state) matches(w subnet.World) error {
	if w.Identity == "" || st.identity() != w.Identity || st.revision < w.Revision {
		return subnet.ErrStoreChanged
	}
	if st.document() != w.Config {
		return subnet.ErrConfigChanged
	}
	return nil
}

// held returns the key of l if it is as l says.
func (s *Store) held(st *state, l subnet.Lease) (kv, error) {
	if s.known != "" && st.identity() != s.known || st.revision < l.Modified {
		return kv{}, subnet.ErrStoreChanged
	}
	if !st.has(l) {
		return kv{}, subnet.ErrLeaseLost
	}
	return st.kvs[layout.Subnets+l.Subnet.Key()], nil
}

// has reports whether the key of l is as l says.
func (st *state) has(l subnet.Lease) bool {
	k, ok := st.kvs[layout.Subnets+l.Subnet.Key()]
	return ok && k.modified == l.Modified && k.lease == l.ID
}

// Renew extends and proves a lease. See [subnet.Store].
func (s *Store) Renew(ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
	err := s.do(ctx, "Renew", func(st *state) error {
		if granted, ok := st.leases[l.ID]; ok {
			granted.deadline = time.Now().Add(granted.ttl)
			granted.timer.Reset(granted.ttl)
			l.TTL = granted.ttl
		}
		_, err := s.held(st, l)
		return err
	})
	if err != nil {
		return subnet.Lease{}, fmt.Errorf("renew %s: %w", l.Subnet, err)
	}
	return l, nil
}

// Update replaces the attributes of a lease. See [subnet.Store].
func (s *Store) Update(ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
	entry, err := layout.Write(l)
	if err != nil {
		return subnet.Lease{}, err
	}
	err = s.do(ctx, "Update", func(st *state) error {
		held, err := s.held(st, l)
		if err != nil {
			return err
		}
		k := st.put(layout.Subnets+entry.Key, entry.Value, held.lease)
		l.Attrs, l.Created, l.Modified = entry.Attrs, k.created, k.modified
		return nil
	})
	if err != nil {
		return subnet.Lease{}, fmt.Errorf("update %s: %w", l.Subnet, err)
	}
	return l, nil
}

// Reserve makes a reservation of a lease. See [subnet.Store].
func (s *Store) Reserve(ctx context.Context, l subnet.Lease, w subnet.World) (subnet.Lease, error) {
	entry, err := layout.Write(l)
	if err != nil {
		return subnet.Lease{}, err
	}
	err = s.do(ctx, "Reserve", func(st *state) error {
		if err := st.matches(w); err != nil {
			return err
		}
		if _, err := s.held(st, l); err != nil {
			return err
		}
		k := st.put(layout.Subnets+entry.Key, entry.Value, 0)
		if len(st.attached(l.ID)) == 0 {
			st.revoke(l.ID)
		}
		l.Attrs, l.ID, l.TTL, l.Created, l.Modified = entry.Attrs, 0, 0, k.created, k.modified
		return nil
	})
	if err != nil {
		return subnet.Lease{}, fmt.Errorf("reserve %s: %w", l.Subnet, err)
	}
	return l, nil
}

// Release deletes a lease. See [subnet.Store].
func (s *Store) Release(ctx context.Context, l subnet.Lease) error {
	err := s.do(ctx, "Release", func(st *state) error {
		if _, err := s.held(st, l); err != nil {
			return err
		}
		st.remove(layout.Subnets + l.Subnet.Key())
		if len(st.attached(l.ID)) == 0 {
			st.revoke(l.ID)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("release %s: %w", l.Subnet, err)
	}
	return nil
}

// TTL tells how long a lease will live if it is not renewed, and for how long
// it was granted. [subnet.ErrLeaseLost]: there is no such lease.
func (s *Store) TTL(ctx context.Context, id subnet.LeaseID) (remaining, granted time.Duration, err error) {
	err = s.do(ctx, "TTL", func(st *state) error {
		l, ok := st.leases[id]
		if !ok {
			return subnet.ErrLeaseLost
		}
		remaining, granted = time.Until(l.deadline), l.ttl
		return nil
	})
	if err != nil {
		return 0, 0, fmt.Errorf("ask for the time of lease %x: %w", int64(id), err)
	}
	return remaining, granted, nil
}

// Watch yields what changes. See [subnet.Store].
func (s *Store) Watch(ctx context.Context, after subnet.Revision) iter.Seq2[subnet.Batch, error] {
	return func(yield func(subnet.Batch, error) bool) {
		if err := s.admit(ctx, "Watch"); err != nil {
			yield(subnet.Batch{}, fmt.Errorf("watch: %w", err))
			return
		}
		w := s.newWatch(after)
		progress := time.NewTicker(s.opts.Progress)
		defer progress.Stop()
		for begun := false; ; begun = true {
			batches, changed, err := w.next()
			if err == nil && !begun && len(batches) == 0 {
				batches = []subnet.Batch{{Revision: w.at}}
			}
			for _, b := range batches {
				if !yield(b, nil) {
					return
				}
			}
			if err != nil {
				yield(subnet.Batch{}, fmt.Errorf("watch: %w", err))
				return
			}
			select {
			case <-ctx.Done():
				yield(subnet.Batch{}, fmt.Errorf("watch: %w", ctx.Err()))
				return
			case <-changed:
			case <-progress.C:
				if !yield(subnet.Batch{Revision: w.at}, nil) {
					return
				}
			}
		}
	}
}

// watch is one reader of the log.
type watch struct {
	store    *Store
	state    *state
	identity string
	// at is the revision up to which everything was read.
	at subnet.Revision
}

func (s *Store) newWatch(after subnet.Revision) *watch {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &watch{store: s, state: s.state, identity: s.known, at: after}
}

// next returns everything that happened since the last time, and a channel that
// is closed when it is time to look again.
func (w *watch) next() (batches []subnet.Batch, changed <-chan struct{}, err error) {
	s := w.store
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.state
	switch {
	case s.down != nil:
		return nil, nil, s.down
	case st != w.state || st.revision < w.at:
		return nil, nil, subnet.ErrStoreChanged
	case w.at < st.compacted:
		return nil, nil, subnet.ErrCompacted
	}
	for _, e := range st.log {
		if e.revision <= w.at {
			continue
		}
		now := e.identityAfter(w.identity)
		if w.identity != "" && now != w.identity {
			return batches, nil, subnet.ErrStoreChanged
		}
		w.identity = now
		if b, relevant := e.batch(); relevant {
			batches = append(batches, b)
		}
		w.at = e.revision
	}
	if w.identity != "" && st.identity() != w.identity {
		return batches, nil, subnet.ErrStoreChanged
	}
	w.at = st.revision
	return batches, s.changed, nil
}

// PutConfig stores another config, provided that identity, config text and
// config revision are still those of w. It returns the config as stored.
// [subnet.ErrConfigChanged], [subnet.ErrStoreChanged].
func (s *Store) PutConfig(ctx context.Context, text string, w subnet.World) (subnet.Document, error) {
	var doc subnet.Document
	if strings.TrimSpace(text) == "" {
		return doc, errors.New("put config: it is empty")
	}
	err := s.do(ctx, "PutConfig", func(st *state) error {
		if err := st.matches(w); err != nil {
			return err
		}
		st.put(layout.Config, text, 0)
		doc = st.document()
		return nil
	})
	if err != nil {
		return subnet.Document{}, fmt.Errorf("put config: %w", err)
	}
	return doc, nil
}
