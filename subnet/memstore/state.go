package memstore

import (
	"slices"
	"strings"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/internal/layout"
)

// state is what one life of the store consists of; a wipe begins another one.
// The Store's lock guards it.
type state struct {
	revision  subnet.Revision
	compacted subnet.Revision
	kvs       map[string]kv
	leases    map[subnet.LeaseID]*lease
	log       []entry
}

type kv struct {
	value             string
	lease             subnet.LeaseID
	created, modified subnet.Revision
}

type lease struct {
	ttl      time.Duration
	deadline time.Time
	timer    *time.Timer
}

// entry is what one revision changed.
type entry struct {
	revision subnet.Revision
	changes  []change
}

// change is a key put, or deleted when kv is nil.
type change struct {
	key string
	kv  *kv
}

func newState() *state {
	// A fresh etcd is at revision 1 as well.
	return &state{revision: 1, kvs: map[string]kv{}, leases: map[subnet.LeaseID]*lease{}}
}

func (st *state) clone() *state {
	c := newState()
	c.revision, c.compacted, c.log = st.revision, st.compacted, slices.Clone(st.log)
	for k, v := range st.kvs {
		c.kvs[k] = v
	}
	for id, l := range st.leases {
		c.leases[id] = &lease{ttl: l.ttl}
	}
	return c
}

// put writes one key under the lease id and returns it as written.
func (st *state) put(key, value string, id subnet.LeaseID) kv {
	st.revision++
	k := kv{value: value, lease: id, created: st.revision, modified: st.revision}
	if old, ok := st.kvs[key]; ok {
		k.created = old.created
	}
	st.kvs[key] = k
	st.log = append(st.log, entry{st.revision, []change{{key, &k}}})
	return k
}

// remove deletes keys, all in one revision; none of them: nothing happens.
func (st *state) remove(keys ...string) {
	var changes []change
	for _, key := range keys {
		if _, ok := st.kvs[key]; ok {
			delete(st.kvs, key)
			changes = append(changes, change{key: key})
		}
	}
	if len(changes) > 0 {
		st.revision++
		st.log = append(st.log, entry{st.revision, changes})
	}
}

// attached lists the keys that hang on id, sorted.
func (st *state) attached(id subnet.LeaseID) []string {
	var keys []string
	for key, k := range st.kvs {
		if k.lease == id {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// revoke ends the lease and deletes its keys in one revision.
func (st *state) revoke(id subnet.LeaseID) {
	l, ok := st.leases[id]
	if !ok {
		return
	}
	l.timer.Stop()
	delete(st.leases, id)
	st.remove(st.attached(id)...)
}

// end stops everything that would still happen by itself.
func (st *state) end() {
	for _, l := range st.leases {
		l.timer.Stop()
	}
}

func (st *state) identity() string { return st.kvs[layout.Identity].value }

func (st *state) document() subnet.Document {
	k, ok := st.kvs[layout.Config]
	if !ok {
		return subnet.Document{}
	}
	return subnet.Document{Text: k.value, Modified: k.modified}
}

// world reads everything.
func (st *state) world() subnet.World {
	var kvs []layout.KV
	for key, k := range st.kvs {
		if name, ok := strings.CutPrefix(key, layout.Subnets); ok {
			kvs = append(kvs, k.under(name))
		}
	}
	c := layout.Read(kvs)
	return subnet.World{
		Identity: st.identity(), Revision: st.revision, Config: st.document(),
		Leases: c.Leases, Bad: c.Bad,
	}
}

func (k kv) under(name string) layout.KV {
	return layout.KV{Key: name, Value: []byte(k.value), Lease: k.lease, Created: k.created, Modified: k.modified}
}

// batch tells what e changed of config and leases. relevant is false when it
// changed neither.
func (e entry) batch() (b subnet.Batch, relevant bool) {
	b.Revision = e.revision
	var kvs []layout.KV
	for _, c := range e.changes {
		name, isSubnet := strings.CutPrefix(c.key, layout.Subnets)
		switch {
		case c.key == layout.Config && c.kv == nil:
			b.Config = &subnet.Document{}
		case c.key == layout.Config:
			b.Config = &subnet.Document{Text: c.kv.value, Modified: c.kv.modified}
		case isSubnet && c.kv == nil:
			b.Deleted = append(b.Deleted, name)
		case isSubnet:
			kvs = append(kvs, c.kv.under(name))
		}
	}
	read := layout.Read(kvs)
	b.Put, b.Bad = read.Leases, read.Bad
	return b, b.Config != nil || len(b.Deleted)+len(kvs) > 0
}

// identityAfter is the identity that e leaves in place of id.
func (e entry) identityAfter(id string) string {
	for _, c := range e.changes {
		if c.key != layout.Identity {
			continue
		}
		if c.kv == nil {
			return ""
		}
		return c.kv.value
	}
	return id
}
