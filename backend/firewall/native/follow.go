package native

import (
	"context"
	"errors"
	"slices"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// ErrNotFollowed: a change means more than some keys of sets, or what is in place is not
// known. Nothing was done; Apply does it.
var ErrNotFollowed = errors.New("change cannot be followed alone")

// Follow takes peers out of what the last Apply was told and puts others in, at the
// cost of those alone: it lists nothing. What was found in place must still be, by the
// kernel's generation.
//
// The MACs of gone and fresh do not count. An address keeps the one that it had with that
// subnet, and another has none until the next Apply: what comes from there passes.
func (t *Table) Follow(ctx context.Context, gone, fresh []Peer) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, err := t.door.generation(ctx)
	if err != nil || now != t.last.generation || !t.last.sorted {
		return ErrNotFollowed
	}
	held := t.last.peers
	gone, fresh = withMACs(held, gone), withMACs(held, fresh)
	if !contains(held, gone) {
		return ErrNotFollowed // Who gets back what goes would be taken to be there.
	}
	beside := others(held, gone, fresh)
	var changes subnet.ByFamily[change]
	for _, f := range subnet.Families() {
		changes[f], err = t.exchange(f, slices.Concat(gone, beside), slices.Concat(fresh, beside))
		if err != nil {
			return err
		}
	}
	if changes[0].operations()+changes[1].operations() > 0 {
		if err := t.door.write(ctx, changes); err != nil {
			t.last = settled{}
			return err
		}
		if !t.wroteAlone(ctx, now) {
			t.last = settled{} // who else wrote is not known
			return nil
		}
		t.last.generation = t.wrote.To
	}
	t.last.peers = splice(held, gone, fresh)
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

// Wrote is the last transaction of ours, if nobody else's came before it was known to
// be done: all that it did not touch is as it was.
func (t *Table) Wrote() Step {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.wrote
}

// Undisturbed reports whether the kernel says that nothing has changed since all was
// found, or put, in place.
func (t *Table) Undisturbed(ctx context.Context) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, err := t.door.generation(ctx)
	return err == nil && now == t.last.generation
}

// exchange is the change of one family's sets. One that would need another set, and so
// another rule, is not followed.
func (t *Table) exchange(f subnet.Family, gone, fresh []Peer) (change, error) {
	var c change
	old, want := t.setsOf(f, gone), t.setsOf(f, fresh)
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

// setsOf are the sets of peers, for these alone.
func (t *Table) setsOf(f subnet.Family, peers []Peer) []set {
	if t.lost.has(f, FeatureTables) {
		return nil
	}
	c := &compiler{Desired: t.last.want, f: f, lost: t.lost}
	c.Peers = peers
	var all []set
	for _, g := range c.inner() {
		all = append(all, c.senderSets(g, c.innerSource(g))...)
	}
	if c.plain() {
		all = append(all, c.directSets()...)
	}
	return all
}

// withMACs returns peers with the MACs that known, sorted, has for the same addresses.
func withMACs(known []*Peer, peers []Peer) []Peer {
	out := slices.Clone(peers)
	for i := range out {
		p := &out[i]
		p.MAC = subnet.ByFamily[kernel.MAC]{}
		for _, k := range withSubnet(known, p.Subnet) {
			for f, a := range k.PublicIP {
				if a.IsValid() && a == p.PublicIP[f] {
					p.MAC[f] = k.MAC[f]
				}
			}
		}
	}
	return out
}

// withSubnet are those of peers, sorted, that have a subnet.
func withSubnet(peers []*Peer, s subnet.Subnet) []*Peer {
	first := place(peers, s)
	end := first
	for end < len(peers) && peers[end].Subnet == s {
		end++
	}
	return peers[first:end]
}

// place is where in peers, sorted, those with a subnet begin.
func place(peers []*Peer, s subnet.Subnet) int {
	at, _ := slices.BinarySearchFunc(peers, s, func(p *Peer, s subnet.Subnet) int { return p.Subnet.Compare(s) })
	return at
}

// others are those of peers, sorted, that stay, and have a key in common with one that
// goes or comes: the subnet, or a MAC. Without MACs only the former are looked for.
func others(peers []*Peer, gone, fresh []Peer) []Peer {
	macs := subnet.ByFamily[map[kernel.MAC]bool]{{}, {}}
	var found []Peer
	stays := func(p Peer) bool { return !slices.Contains(gone, p) }
	seen := map[subnet.Subnet]bool{}
	for _, p := range slices.Concat(gone, fresh) {
		for f, mac := range p.MAC {
			if mac != (kernel.MAC{}) {
				macs[f][mac] = true
			}
		}
		if !seen[p.Subnet] {
			seen[p.Subnet] = true
			for _, o := range withSubnet(peers, p.Subnet) {
				if stays(*o) {
					found = append(found, *o)
				}
			}
		}
	}
	if len(macs[0])+len(macs[1]) == 0 {
		return found
	}
	for _, p := range peers {
		if (macs[0][p.MAC[0]] || macs[1][p.MAC[1]]) && !seen[p.Subnet] {
			found = append(found, *p)
		}
	}
	return found
}

// contains reports whether peers, sorted, has all of some, as often as they are there.
func contains(peers []*Peer, some []Peer) bool {
	count := make(map[Peer]int, len(some))
	for _, p := range some {
		count[p]++
	}
	for p, n := range count {
		for _, o := range withSubnet(peers, p.Subnet) {
			if *o == p {
				n--
			}
		}
		if n > 0 {
			return false
		}
	}
	return true
}

func comparePeers(a, b Peer) int { return a.Subnet.Compare(b.Subnet) }

// splice makes peers, which are sorted, what they are without gone and with fresh: of two
// with one subnet the fresh one is the first. It writes into peers, not into what they
// point to.
func splice(peers []*Peer, gone, fresh []Peer) []*Peer {
	for _, p := range gone {
		is := func(o *Peer) bool { return *o == p }
		if at := slices.IndexFunc(withSubnet(peers, p.Subnet), is); at >= 0 {
			at += place(peers, p.Subnet)
			peers = slices.Delete(peers, at, at+1)
		}
	}
	for _, p := range fresh {
		peers = slices.Insert(peers, place(peers, p.Subnet), &p)
	}
	return peers
}
