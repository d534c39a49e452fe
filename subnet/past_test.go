package subnet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// past is a store as a plain list of what it held at each revision.
type past []World

func (p past) now() World { return p[len(p)-1] }

// change goes on by one revision, in which one of two keys, or the config, is put
// or deleted, readable or not.
func (p past) change(t *rapid.T) (past, Batch) {
	w := p.now()
	w.Revision++
	w.Leases, w.Bad = slices.Clone(w.Leases), slices.Clone(w.Bad)
	b := Batch{Revision: w.Revision}
	n := rapid.IntRange(0, 2).Draw(t, "key")
	if n == 2 {
		w.Config = rapid.SampledFrom([]Document{{}, {Text: "a", Modified: w.Revision}, {Text: "b", Modified: w.Revision}}).Draw(t, "config")
		b.Config = &w.Config
		return append(p, w), b
	}
	s := Subnet{IPv4: netip.MustParsePrefix(fmt.Sprintf("10.5.%d.0/24", n))}
	l := Lease{Subnet: s, ID: LeaseID(rapid.IntRange(0, 1).Draw(t, "lease")), Created: w.Revision, Modified: w.Revision}
	l.Attrs.Owner = NodeID(rapid.SampledFrom([]string{"a", "b"}).Draw(t, "owner"))
	if i := slices.IndexFunc(w.Leases, func(l Lease) bool { return l.Subnet == s }); i >= 0 {
		l.Created = w.Leases[i].Created
		w.Leases = slices.Delete(w.Leases, i, i+1)
	}
	w.Bad = slices.DeleteFunc(w.Bad, func(b BadKey) bool { return b.Occupies == s })
	switch rapid.SampledFrom([]string{"put", "put", "delete", "spoil"}).Draw(t, "what") {
	case "put":
		w.Leases, b.Put = append(w.Leases, l), []Lease{l}
	case "delete":
		b.Deleted = []string{s.Key()}
	default:
		b.Bad = []BadKey{{Key: s.Key(), Occupies: s, Modified: w.Revision, Err: errors.New("spoilt")}}
		w.Bad = append(w.Bad, b.Bad...)
	}
	return append(p, w), b
}

// fits is the definition: now can be what then, at an earlier revision, became.
func fits(then, now World) bool {
	// What a key reads, whether that is a lease or not; when an unreadable one was
	// created is not known.
	type reading struct {
		created, modified Revision
		what              string
	}
	all := func(w World) map[string]reading {
		m := map[string]reading{"config": {w.Config.Modified, w.Config.Modified, w.Config.Text}}
		for _, l := range w.Leases {
			m[l.Subnet.Key()] = reading{l.Created, l.Modified, fmt.Sprint(l.ID, l.Attrs.Owner)}
		}
		for _, b := range w.Bad {
			m[b.Key] = reading{-1, b.Modified, "bad"}
		}
		return m
	}
	before := all(then)
	for key, is := range all(now) {
		was, had := before[key]
		switch {
		case is.modified <= then.Revision:
			if is != was && is.modified > 0 {
				return false
			}
		case key == "config" || is.created > then.Revision || is.created < 0:
		case !had || was.created >= 0 && was.created != is.created || was.created < 0 && is.created > was.modified:
			return false
		}
	}
	return true
}

// A store is distrusted if and only if what it says cannot have come of what was
// read before. Who starts from a file, where not all is, may miss that, but
// distrusts no store without a reason.
func TestContradictsRandomWalk(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := past{{Identity: "one", Revision: 1}}
		grow := func(n int) []Batch {
			batches := make([]Batch, n)
			for i := range batches {
				store, batches[i] = store.change(t)
			}
			return batches
		}
		grow(rapid.IntRange(0, 10).Draw(t, "first"))
		p := newProjection("", 2*time.Second, newHearing(time.Hour, 0))
		p.load(store.now(), 0)
		for _, b := range grow(rapid.IntRange(0, 10).Draw(t, "followed")) {
			p.apply(b, time.Second)
		}
		known := store.now()

		// What could be used, some of it for longer than the store has it.
		fromFile := rapid.SampledFrom(store).Draw(t, "in use")
		fromFile.Revision, fromFile.Bad = known.Revision, nil
		fromFile.Leases = slices.DeleteFunc(slices.Clone(fromFile.Leases), func(Lease) bool { return rapid.Bool().Draw(t, "refused") })
		cached := newProjection("", 2*time.Second, newHearing(time.Hour, 0))
		cached.load(fromFile, 0)
		cached.partial = true

		restored := rapid.Bool().Draw(t, "restored")
		if restored {
			store = slices.Clone(store[:rapid.IntRange(1, len(store)).Draw(t, "backup")])
		}
		grow(int(known.Revision-store.now().Revision) + rapid.IntRange(0, 10).Draw(t, "more"))

		possible := fits(known, store.now())
		if !restored && !possible {
			t.Fatal("the definition is wrong")
		}
		if got := p.contradicts(store.now()); got == possible {
			t.Fatalf("contradicts: %v, but possible: %v\n%+v\n%+v", got, possible, known, store.now())
		}
		if !restored && cached.contradicts(store.now()) {
			t.Fatalf("what comes from a file contradicts\n%+v\n%+v", fromFile, store.now())
		}
		cached.load(known, time.Second)
		if cached.contradicts(store.now()) == possible {
			t.Fatal("once the store has been read, what comes from a file still counts")
		}
		p.load(store.now(), time.Second)
		if got := p.lives > 0; got == possible {
			t.Fatalf("distrusted: %v, but possible: %v", got, possible)
		}
		if p.contradicts(store.now()) {
			t.Fatal("the truth contradicts itself")
		}
	})
}

// What a walk rarely meets.
func TestContradicts(t *testing.T) {
	s := Subnet{IPv4: netip.MustParsePrefix("10.5.1.0/24")}
	lease := func(id LeaseID, created, modified Revision) World {
		return World{Identity: "one", Revision: 20, Leases: []Lease{{Subnet: s, ID: id, Created: created, Modified: modified}}}
	}
	spoilt := func(modified Revision) World {
		return World{Identity: "one", Revision: 20, Bad: []BadKey{{Key: s.Key(), Occupies: s, Modified: modified}}}
	}
	for _, tt := range []struct {
		name      string
		then, now World
		want      bool
	}{
		{"the same", lease(7, 3, 5), lease(7, 3, 5), false},
		{"on another lease", lease(7, 3, 5), lease(8, 3, 5), true},
		{"renewed by its owner, as flannel does", lease(7, 3, 5), lease(8, 3, 12), false},
		{"created anew since", lease(7, 3, 5), lease(8, 11, 12), false},
		{"created anew before we looked", lease(7, 3, 5), lease(8, 10, 12), true},
		{"unreadable since", lease(7, 3, 5), spoilt(12), false},
		{"unreadable before we looked", lease(7, 3, 5), spoilt(10), true},
		{"readable since", spoilt(5), lease(7, 3, 12), false},
		{"readable before we looked", spoilt(5), lease(7, 3, 10), true},
		{"readable since, created after it was not", spoilt(5), lease(7, 6, 12), true},
		{"readable since, created since", spoilt(5), lease(7, 11, 12), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newProjection("", 2*time.Second, newHearing(time.Hour, 0))
			tt.then.Revision = 10
			p.load(tt.then, 0)
			if got := p.contradicts(tt.now); got != tt.want {
				t.Errorf("contradicts: %v, want %v", got, tt.want)
			}
		})
	}
}
