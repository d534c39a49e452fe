package native

import (
	"context"
	"errors"
	"slices"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// ErrNotFollowed: a change means more than some keys of sets, or what is in place is not
// known. Nothing was done; Apply does it.
var ErrNotFollowed = errors.New("change cannot be followed alone")

// Follow takes peers out of what the last Apply was told and puts others in, at the
// cost of those alone: it lists nothing. What was found in place must still be, by the
// kernel's generation.
func (t *Table) Follow(ctx context.Context, gone, fresh []Peer) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := t.last.want
	now, err := t.door.generation()
	if err != nil || now != t.last.generation || d.Tunnel.Direct || !t.last.sorted {
		return ErrNotFollowed
	}
	var changes subnet.ByFamily[change]
	for _, f := range subnet.Families() {
		changes[f], err = t.exchange(f, gone, fresh)
		if err != nil {
			return err
		}
	}
	if changes[0].operations()+changes[1].operations() > 0 {
		if err := t.door.write(changes); err != nil {
			t.last = settled{}
			return err
		}
		to, err := t.door.generation()
		if err != nil || !(Step{now, to}).Alone() {
			t.last = settled{}
			return nil //nolint:nilerr // it is written; who else wrote is not known
		}
		t.last.generation = to
	}
	t.last.want.Peers = splice(d.Peers, gone, fresh)
	t.log.DebugContext(ctx, "nftables followed peers", "gone", len(gone), "new", len(fresh))
	return nil
}

// Passed says that a transaction of this host's, which was alone, left the table as it
// was.
func (t *Table) Passed(s Step) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.Alone() && t.last.generation == s.From {
		t.last.generation = s.To
	}
}

// Undisturbed reports whether the kernel says that nothing has changed since all was
// found, or put, in place.
func (t *Table) Undisturbed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, err := t.door.generation()
	return err == nil && now == t.last.generation
}

// exchange is the change of one family's sets. One that would need another set, and so
// another rule, is not followed.
func (t *Table) exchange(f subnet.Family, gone, fresh []Peer) (change, error) {
	var c change
	old, want := t.senders(f, gone), t.senders(f, fresh)
	there := t.last.names[f]
	for _, w := range want {
		if !slices.Contains(there, w.name) {
			return c, ErrNotFollowed
		}
		have := find(old, set.id, w.name)
		if have == nil {
			have = &set{}
		}
		if add, _ := merge(have.keys, w.keys); len(add) > 0 {
			c.addKeys = append(c.addKeys, set{name: w.name, key: w.key, keys: add})
		}
	}
	for _, h := range old {
		kept := find(want, set.id, h.name)
		if kept == nil {
			kept = &set{}
		}
		if _, del := merge(h.keys, kept.keys); len(del) > 0 {
			c.delKeys = append(c.delKeys, set{name: h.name, key: h.key, keys: del})
		}
	}
	return c, nil
}

// senders are the sets of who may send what, for these peers alone.
func (t *Table) senders(f subnet.Family, peers []Peer) []set {
	if t.lost.has(f, FeatureTables) {
		return nil
	}
	c := &compiler{Desired: t.last.want, f: f, lost: t.lost}
	c.Peers = peers
	var all []set
	for _, g := range c.inner() {
		all = append(all, c.senderSets(g, c.innerSource(g))...)
	}
	return all
}

func comparePeers(a, b Peer) int { return a.Subnet.Compare(b.Subnet) }

// splice makes peers, which are sorted, what they are without gone and with fresh: of two
// with one subnet the fresh one is the first. It writes into peers.
func splice(peers, gone, fresh []Peer) []Peer {
	for _, p := range gone {
		first, _ := slices.BinarySearchFunc(peers, p, comparePeers)
		for i := first; i < len(peers) && peers[i].Subnet == p.Subnet; i++ {
			if peers[i] == p {
				peers = slices.Delete(peers, i, i+1)
				break
			}
		}
	}
	for _, p := range fresh {
		i, _ := slices.BinarySearchFunc(peers, p, comparePeers)
		peers = slices.Insert(peers, i, p)
	}
	return peers
}
