package memstore

import (
	"fmt"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/internal/layout"
)

// OverwriteConfig puts the network config without any compare, as
// `etcdctl put` does, and returns the revision.
func (s *Store) OverwriteConfig(text string) subnet.Revision {
	return s.act(func(st *state) { st.put(layout.Config, text, 0) })
}

// DeleteConfig deletes the network config and returns the store's revision.
func (s *Store) DeleteConfig() subnet.Revision {
	return s.act(func(st *state) { st.remove(layout.Config) })
}

// Put writes a value under the last element of a lease's path without any
// compare, as flannel does; an id of 0 leaves the key bare. It is an error if
// there is no such lease.
func (s *Store) Put(key, value string, id subnet.LeaseID) (subnet.Revision, error) {
	return s.put(layout.Subnets+key, value, id)
}

// put is Put for any key below the prefix.
func (s *server) put(path, value string, id subnet.LeaseID) (subnet.Revision, error) {
	var revision subnet.Revision
	err := s.locked(func(st *state) error {
		if _, ok := st.leases[id]; id != 0 && !ok {
			return fmt.Errorf("put %s: no lease %x", path, int64(id))
		}
		revision = st.put(path, value, id).modified
		return nil
	})
	return revision, err
}

// DeleteKey deletes the key with the given last element of its path and returns
// the store's revision. The lease it hung on stays.
func (s *Store) DeleteKey(key string) subnet.Revision {
	return s.act(func(st *state) { st.remove(layout.Subnets + key) })
}

// DeleteIdentity deletes the store's identity, as somebody does who deletes the
// whole prefix.
func (s *Store) DeleteIdentity() subnet.Revision {
	return s.act(func(st *state) { st.remove(layout.Identity) })
}

// Grant makes a lease that nothing hangs on yet.
func (s *Store) Grant(ttl time.Duration) subnet.LeaseID {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, _ := s.grant(ttl)
	return id
}

// Revoke ends a lease and deletes what hangs on it, in one revision. It returns
// the store's revision.
func (s *Store) Revoke(id subnet.LeaseID) subnet.Revision {
	return s.act(func(st *state) { st.revoke(id) })
}

// Compact forgets what happened before revision: a watch may begin after it, and
// not after an earlier one.
func (s *Store) Compact(revision subnet.Revision) {
	s.act(func(st *state) {
		st.compacted = min(revision, st.revision)
		for len(st.log) > 0 && st.log[0].revision < st.compacted {
			st.log = st.log[1:]
		}
	})
}

// Revision returns the revision of the last change.
func (s *Store) Revision() subnet.Revision { return s.act(func(*state) {}) }

// Wipe is an etcd whose data was lost, started again with the same flags: empty,
// its revisions begin anew, and there is no identity until the next Load.
func (s *Store) Wipe() { s.replace(newState()) }

// Snapshot is a backup of a store. It is immutable.
type Snapshot struct{ state *state }

// Snapshot makes a backup.
func (s *Store) Snapshot() Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Snapshot{s.state.clone()}
}

// Restore is an etcd restored from a backup: identity and keys are those of the
// backup, the revision is back where it was, and every lease has its whole TTL
// again.
func (s *Store) Restore(b Snapshot) { s.replace(b.state.clone()) }

// replace begins another life.
func (s *server) replace(st *state) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.end()
	s.state = st
	for id, l := range st.leases {
		s.start(id, l)
	}
	s.wake()
}

// SetUnavailable makes every call of this Store fail with err, and ends its
// watches with it, until it is called again with nil. The others on the same
// data are not concerned, and leases expire meanwhile.
func (s *Store) SetUnavailable(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = err
	s.wake()
}

// act runs f, wakes the watches, and returns the revision.
func (s *server) act(f func(*state)) subnet.Revision {
	var revision subnet.Revision
	// The function never fails, and so locked does not.
	_ = s.locked(func(st *state) error {
		f(st)
		revision = st.revision
		return nil
	})
	return revision
}

// grant makes a lease, or none for a ttl of zero; mu is held.
func (s *server) grant(ttl time.Duration) (subnet.LeaseID, time.Duration) {
	if ttl <= 0 {
		return 0, 0
	}
	s.lastLease++
	l := &lease{ttl: ttl}
	s.state.leases[s.lastLease] = l
	s.start(s.lastLease, l)
	return s.lastLease, ttl
}

// start lets l expire after its TTL; mu is held. The timer may fire while Renew
// waits for the lock or holds it: the deadline decides.
func (s *server) start(id subnet.LeaseID, l *lease) {
	l.deadline = time.Now().Add(l.ttl)
	l.timer = time.AfterFunc(l.ttl, func() {
		s.act(func(st *state) {
			if st.leases[id] == l && !time.Now().Before(l.deadline) {
				st.revoke(id)
			}
		})
	})
}
