package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/internal/layout"
)

func watchCases() []testCase {
	return []testCase{
		{name: "Watch yields every change, a batch per revision", run: watchOrder},
		{name: "Watch yields one batch for all keys of a revision", run: watchOneRevision},
		{name: "Watch begins behind the revision given", run: watchReplay},
		{name: "Watch and Load come to the same under concurrent writes", run: watchConverges},
		{name: "Watch makes progress while nothing happens", own: true, run: watchProgress},
		{name: "Watch ends with its context", run: watchEnds},
		{name: "Watch ends when its reader has enough", run: watchBreak},
		{name: "Watch behind a compaction", own: true, run: watchCompacted},
	}
}

// stream is a running watch.
type stream struct {
	*env
	results chan result
	// at is the revision of the last batch.
	at subnet.Revision
}

type result struct {
	subnet.Batch
	err error
}

// watch starts one, which ends with the test.
func (e *env) watch(s Store, after subnet.Revision) *stream {
	ctx, cancel := context.WithCancel(e.ctx)
	st := &stream{env: e, results: make(chan result), at: after}
	go func() {
		defer close(st.results)
		for b, err := range s.Watch(ctx, after) {
			select {
			case st.results <- result{b, err}:
			case <-ctx.Done():
				return
			}
		}
	}()
	e.Cleanup(func() {
		cancel()
		for range st.results { //nolint:revive // Only to wait for its end.
		}
	})
	return st
}

// receive returns what the watch yields next, and checks that revisions grow: a
// progress batch may repeat the last one, a change may not.
func (s *stream) receive() result {
	s.Helper()
	select {
	case r, ok := <-s.results:
		if !ok {
			s.Fatal("watch ended without an error")
		}
		if r.err == nil {
			if r.Revision < s.at || r.Revision == s.at && !progress(r.Batch) {
				s.Errorf("batch %+v behind revision %d", r.Batch, s.at)
			}
			s.at = r.Revision
		}
		return r
	case <-s.ctx.Done():
		s.Fatalf("watch yields nothing behind revision %d", s.at)
	}
	return result{}
}

// next returns the next batch with a change in it.
func (s *stream) next() subnet.Batch {
	s.Helper()
	for {
		r := s.receive()
		if r.err != nil {
			s.Fatalf("Watch: %v", r.err)
		}
		if !progress(r.Batch) {
			return r.Batch
		}
	}
}

// end returns the error that the watch ends with.
func (s *stream) end() error {
	s.Helper()
	for {
		if r := s.receive(); r.err != nil {
			if again, ok := <-s.results; ok {
				s.Errorf("watch goes on after its error with %+v", again)
			}
			return r.err
		}
	}
}

func progress(b subnet.Batch) bool {
	return b.Config == nil && len(b.Put)+len(b.Deleted)+len(b.Bad) == 0
}

func watchOrder(e *env) {
	s, w := e.seeded()
	watch := e.watch(s, w.Revision)
	var want []subnet.Batch
	expect := func(b subnet.Batch) { want = append(want, b) }

	l := e.create(s, host(1, v4("10.5.1.0/24")), long, w)
	expect(subnet.Batch{Revision: l.Modified, Put: []subnet.Lease{asListed(l)}})
	rev := e.put(KV{Path: layout.Config, Value: "{"})
	expect(subnet.Batch{Revision: rev, Config: &subnet.Document{Text: "{", Modified: rev}})
	l.Attrs = attrs(2)
	l, err := s.Update(e.ctx, l)
	e.ok(err)
	expect(subnet.Batch{Revision: l.Modified, Put: []subnet.Lease{asListed(l)}})
	e.put(KV{Path: "flanneld-go/unknown", Value: "no concern of anybody's"})
	both := dual("10.5.9.0/24", "fd05:0:0:9::/64")
	rev = e.put(KV{Path: path(both), Value: flannel("192.0.2.9")})
	expect(subnet.Batch{Revision: rev, Put: []subnet.Lease{{Subnet: both, Attrs: flannelAttrs("192.0.2.9"), Created: rev, Modified: rev}}})
	rev = e.put(KV{Path: path(both), Value: "unreadable"})
	expect(subnet.Batch{Revision: rev, Bad: []subnet.BadKey{{Key: both.Key(), Occupies: both, Modified: rev, Err: errUnread}}})
	rev = e.put(KV{Path: layout.Subnets + "README", Value: flannel("192.0.2.9")})
	expect(subnet.Batch{Revision: rev, Bad: []subnet.BadKey{{Key: "README", Modified: rev, Err: errUnread}}})
	rev = e.remove(layout.Subnets + "README")
	expect(subnet.Batch{Revision: rev, Deleted: []string{"README"}})
	rev = e.remove(layout.Config)
	expect(subnet.Batch{Revision: rev, Config: &subnet.Document{}})
	e.ok(s.Release(e.ctx, l))
	expect(subnet.Batch{Revision: 0, Deleted: []string{l.Subnet.Key()}})

	var got []subnet.Batch
	for range want {
		got = append(got, watch.next())
	}
	want[len(want)-1].Revision = got[len(got)-1].Revision // Release does not tell it.
	e.diff("Watch", want, got)
}

func watchOneRevision(e *env) {
	s, w := e.seeded()
	watch := e.watch(s, w.Revision)
	id := e.grant(long)
	a, b := v4("10.5.1.0/24"), v4("10.5.2.0/24")
	rev := e.put(
		KV{Path: path(b), Value: flannel("192.0.2.2"), Lease: id},
		KV{Path: layout.Config, Value: "{}"},
		KV{Path: path(a), Value: flannel("192.0.2.1"), Lease: id},
		KV{Path: layout.Subnets + "x", Value: ""},
	)
	lease := func(s subnet.Subnet, addr string) subnet.Lease {
		return subnet.Lease{Subnet: s, Attrs: flannelAttrs(addr), ID: id, Created: rev, Modified: rev}
	}
	e.diff("four keys in one revision", subnet.Batch{
		Revision: rev,
		Config:   &subnet.Document{Text: "{}", Modified: rev},
		Put:      []subnet.Lease{lease(a, "192.0.2.1"), lease(b, "192.0.2.2")},
		Bad:      []subnet.BadKey{{Key: "x", Modified: rev, Err: errUnread}},
	}, watch.next())
	e.ok(e.Revoke(e.ctx, id))
	got := watch.next()
	slices.Sort(got.Deleted)
	e.diff("both keys of a lease", subnet.Batch{Revision: got.Revision, Deleted: []string{a.Key(), b.Key()}}, got)
}

func watchReplay(e *env) {
	s, w := e.seeded()
	var revisions []subnet.Revision
	for i := range 5 {
		revisions = append(revisions, e.create(s, host(i, v4(fmt.Sprintf("10.5.%d.0/24", i+1))), 0, w).Modified)
	}
	for i, after := range revisions[:4] {
		watch := e.watch(s, after)
		for _, want := range revisions[i+1:] {
			if got := watch.next(); got.Revision != want {
				e.Errorf("watch after %d yields revision %d, want %d", after, got.Revision, want)
			}
		}
	}
}

// Three hosts and an operator write at once. Whoever loads before and follows
// the watch must hold in the end what the last Load says.
func watchConverges(e *env) {
	const writers, writes = 3, 25
	s, w := e.seeded()
	watch := e.watch(s, w.Revision)
	var wg sync.WaitGroup
	for n := range writers {
		own := e.store()
		wg.Go(func() {
			for i := range writes {
				// Subnets are shared: losing is part of it.
				key := v4(fmt.Sprintf("10.5.%d.0/24", (i*7+n)%10+1))
				l, err := own.Create(e.ctx, host(n, key), long, w)
				if err != nil {
					continue
				}
				if i%3 == 0 {
					l, _ = own.Update(e.ctx, l)
				}
				if i%2 == 0 {
					_ = own.Release(e.ctx, l)
				}
			}
		})
	}
	for i := range writes {
		key := layout.Subnets + fmt.Sprintf("10.5.%d.0-24", i%10+1)
		switch i % 3 {
		case 0:
			e.put(KV{Path: key, Value: "unreadable"})
		case 1:
			e.put(KV{Path: key, Value: flannel("192.0.2.77")})
		default:
			e.remove(key)
		}
	}
	wg.Wait()
	last := e.put(KV{Path: layout.Config, Value: "last"})
	want := e.load(s)
	got := w
	for got.Revision < last {
		got = apply(got, watch.next())
	}
	want.Revision = got.Revision
	e.diff("followed by watch", want, got)
}

// apply is what every reader does with a batch.
func apply(w subnet.World, b subnet.Batch) subnet.World {
	gone := slices.Clone(b.Deleted)
	for _, l := range b.Put {
		gone = append(gone, l.Subnet.Key())
	}
	for _, k := range b.Bad {
		gone = append(gone, k.Key)
	}
	w.Leases = slices.DeleteFunc(slices.Clone(w.Leases), func(l subnet.Lease) bool { return slices.Contains(gone, l.Subnet.Key()) })
	w.Bad = slices.DeleteFunc(slices.Clone(w.Bad), func(k subnet.BadKey) bool { return slices.Contains(gone, k.Key) })
	w.Leases, w.Bad = append(w.Leases, b.Put...), append(w.Bad, b.Bad...)
	slices.SortFunc(w.Leases, func(a, b subnet.Lease) int { return strings.Compare(a.Subnet.Key(), b.Subnet.Key()) })
	slices.SortFunc(w.Bad, func(a, b subnet.BadKey) int { return strings.Compare(a.Key, b.Key) })
	if b.Config != nil {
		w.Config = *b.Config
	}
	w.Revision = b.Revision
	return w
}

func watchProgress(e *env) {
	s, w := e.seeded()
	watch := e.watch(s, w.Revision)
	for range 2 {
		begin := time.Now()
		r := watch.receive()
		if r.err != nil {
			e.Fatalf("Watch: %v", r.err)
		}
		if !progress(r.Batch) || r.Revision < w.Revision {
			e.Errorf("batch %+v, want progress from revision %d", r.Batch, w.Revision)
		}
		if took := time.Since(begin); took > 15*time.Second {
			e.Errorf("progress took %s, want at most 10 s", took)
		}
	}
	l := e.create(s, host(1, v4("10.5.1.0/24")), long, w)
	if b := watch.next(); b.Revision != l.Modified {
		e.Errorf("change of revision %d behind progress, want %d", b.Revision, l.Modified)
	}
}

func watchEnds(e *env) {
	s, w := e.seeded()
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	var errs []error
	for b, err := range s.Watch(ctx, w.Revision) {
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if progress(b) {
			cancel()
		}
	}
	if len(errs) != 1 || !errors.Is(errs[0], context.Canceled) {
		e.Errorf("Watch ends with %v, want once %v", errs, context.Canceled)
	}
	for _, err := range s.Watch(ctx, w.Revision) {
		e.is("Watch with a context that has ended", err, context.Canceled)
	}
	if _, err := s.Load(ctx); !errors.Is(err, context.Canceled) {
		e.Errorf("Load with a context that has ended: %v, want %v", err, context.Canceled)
	}
}

func watchBreak(e *env) {
	s, w := e.seeded()
	for range 3 {
		e.put(KV{Path: layout.Config, Value: configText})
	}
	yielded := 0
	for _, err := range s.Watch(e.ctx, w.Revision) {
		e.ok(err)
		yielded++
		break
	}
	if yielded != 1 {
		e.Errorf("%d batches after a break, want 1", yielded)
	}
}

func watchCompacted(e *env) {
	s, w := e.seeded()
	live := e.watch(s, w.Revision)
	var revisions []subnet.Revision
	for i := range 5 {
		revisions = append(revisions, e.create(s, host(i, v4(fmt.Sprintf("10.5.%d.0/24", i+1))), 0, w).Modified)
	}
	for range revisions {
		live.next()
	}
	e.ok(e.Compact(e.ctx, revisions[3]))
	for _, after := range []subnet.Revision{w.Revision, revisions[0], revisions[2]} {
		e.is("Watch of compacted revisions", e.watch(s, after).end(), subnet.ErrCompacted)
	}
	if b := e.watch(s, revisions[3]).next(); b.Revision != revisions[4] {
		e.Errorf("watch from the compaction yields revision %d, want %d", b.Revision, revisions[4])
	}
	rev := e.put(KV{Path: layout.Config, Value: "{}"})
	if b := live.next(); b.Revision != rev {
		e.Errorf("watch that was up to date yields revision %d, want %d", b.Revision, rev)
	}
	if b := e.watch(s, e.load(s).Revision-1).next(); b.Revision != rev {
		e.Errorf("watch after the Load yields revision %d, want %d", b.Revision, rev)
	}
}
