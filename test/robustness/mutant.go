package robustness

import "strings"

// mutant is the daemon with one bug. It must be caught by one validator: what a
// checker does not find in a broken daemon it would not find in ours.
type mutant struct {
	name string
	// bug says what is wrong with it.
	bug string
	edit
	// proof is what the validator meant for it must find, scene the run that
	// shows the bug.
	proof proof
	scene scene
}

// proof is what one bug looks like, and nothing else that may go wrong meanwhile.
type proof struct {
	validator string
	// host is whom it must be found of; empty: any.
	host string
	// says is a part of the message.
	says string
}

// is reports whether a violation is the proof.
func (p proof) is(v Violation) bool {
	return v.Validator == p.validator && (p.host == "" || v.Host == p.host) && strings.Contains(v.Message, p.says)
}

// What the longer ones are mutated to.
const (
	blindPut = `
	entry, err := layout.Write(l)
	if err != nil {
		return subnet.Lease{}, err
	}
	put, err := s.client.Put(ctx, s.keyOf(l), entry.Value, clientv3.WithLease(clientv3.LeaseID(l.ID)))
	if err != nil {
		return subnet.Lease{}, err
	}
	l.Modified = subnet.Revision(put.Header.Revision)
	resp, err := s.client.Txn(ctx).Then(s.reads(s.keyOf(l))...).Commit()
`
	freshLease = `
	g := grant{id: l.ID}
	option := clientv3.WithIgnoreLease()
	if l.Reservation() {
		if g, err = s.take(ctx, subnet.DefaultTTL); err != nil {
			return subnet.Lease{}, err
		}
		option = clientv3.WithLease(clientv3.LeaseID(g.id))
	}
	resp, err := s.swap(ctx, l, clientv3.OpPut(s.keyOf(l), entry.Value, option))
	l.ID = g.id
`
)

// mutants are the keepers and stores that are wrong on purpose.
func mutants() []mutant {
	const write, watch, layout = "subnet/etcdstore/write.go", "subnet/etcdstore/watch.go", "subnet/internal/layout/layout.go"
	return []mutant{
		{
			name:  "blind-renewal",
			bug:   "a renewal puts the key again, whoever holds it by now",
			proof: proof{CatchesBlindRenewal, "h1", "wrote over the key of node " + ghostOwner}, scene: overwritten(),
			edit: edit{write, "	resp, err := s.client.Txn(ctx).Then(s.reads(s.keyOf(l))...).Commit()\n", blindPut},
		},
		{
			name:  "create-without-compare",
			bug:   "a creation does not ask whether the key is there",
			proof: proof{CatchesCreateWithoutCompare, "", "wrote over the key of node " + neighbour}, scene: rushed(),
			edit: edit{write, `append(s.worldIs(w), clientv3.Compare(clientv3.CreateRevision(key), "=", 0))`, "s.worldIs(w)"},
		},
		{
			name:  "dropped-entries",
			bug:   "a key whose value cannot be read looks free",
			proof: proof{CatchesDroppedEntries, "h1", "whose key cannot be read"}, scene: illegible(),
			edit: edit{layout, "c.Bad = append(c.Bad, subnet.BadKey{Key: kv.Key, Occupies: l.Subnet, Modified: kv.Modified, Err: err})", ""},
		},
		{
			name:  "mortal-reservation",
			bug:   "taking a reservation over gives it a lease, as flannel does",
			proof: proof{CatchesMortalReservation, "h1", "the reservation now hangs on a lease"}, scene: bare(),
			edit: edit{write, "	resp, err := s.swap(ctx, l, clientv3.OpPut(s.keyOf(l), entry.Value, clientv3.WithIgnoreLease()))\n", freshLease},
		},
		{
			name:  "ignored-compaction",
			bug:   "a watch whose revision was compacted goes on from the present",
			proof: proof{CatchesIgnoredCompaction, "h1", "has no route to"}, scene: compacted(),
			edit: edit{watch, "		return subnet.ErrCompacted\n", `
		w.at = subnet.Revision(m.Header.Revision)
		return io.EOF // as a stream that broke: it is opened again
`},
		},
		{
			name:  "no-identity",
			bug:   "all stores have the same identity",
			proof: proof{CatchesNoIdentity, "h1", "dropped the path to"}, scene: replaced(),
			edit: edit{layout, "return rand.Text()", `return "store" + rand.Text()[:0]`},
		},
		{
			name:  "no-keep-alive",
			bug:   "a renewal reads the key, and does not keep its lease alive",
			proof: proof{CatchesNoKeepAlive, "", "its lease was not kept alive"}, scene: undisturbed(),
			edit: edit{write, "l.TTL, alive = s.keepAlive(ctx, l.ID); alive != nil", "alive != nil"},
		},
	}
}
