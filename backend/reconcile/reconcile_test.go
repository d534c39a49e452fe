package reconcile_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/backend/reconcile"
)

// entry is a key and a value, and prints as "k=v".
type entry struct{ K, V int }

func (e entry) Key() int       { return e.K }
func (e entry) String() string { return fmt.Sprintf("%d=%d", e.K, e.V) }

func odd(e entry) bool { return e.V%2 == 1 }

func TestDiff(t *testing.T) {
	for name, tc := range map[string]struct {
		desired, actual []entry
		owned           func(entry) bool
		want            reconcile.Plan[entry]
	}{
		"nothing": {},
		"equal": {
			desired: []entry{{1, 1}, {2, 1}}, actual: []entry{{2, 1}, {1, 1}},
		},
		"missing ones are put in the desired order": {
			desired: []entry{{3, 1}, {1, 1}, {2, 1}}, actual: []entry{{1, 1}},
			want: reconcile.Plan[entry]{Put: []entry{{3, 1}, {2, 1}}},
		},
		"a changed one is put and not deleted": {
			desired: []entry{{1, 2}}, actual: []entry{{1, 1}},
			want: reconcile.Plan[entry]{Put: []entry{{1, 2}}},
		},
		"undesired ones are deleted": {
			desired: []entry{{1, 1}}, actual: []entry{{3, 1}, {1, 1}, {2, 1}},
			want: reconcile.Plan[entry]{Delete: []entry{{3, 1}, {2, 1}}},
		},
		"a foreign one is not deleted": {
			actual: []entry{{1, 1}, {2, 2}}, owned: odd,
			want: reconcile.Plan[entry]{Delete: []entry{{1, 1}}},
		},
		"a foreign one of a desired key is replaced": {
			desired: []entry{{2, 1}}, actual: []entry{{2, 2}}, owned: odd,
			want: reconcile.Plan[entry]{Put: []entry{{2, 1}}},
		},
		"one value twice is one entry": {
			desired: []entry{{1, 1}, {1, 1}},
			want:    reconcile.Plan[entry]{Put: []entry{{1, 1}}},
		},
		"of two values of a key the first wins": {
			desired: []entry{{1, 1}, {2, 1}, {1, 3}, {1, 5}}, actual: []entry{{1, 3}},
			want: reconcile.Plan[entry]{
				Put:       []entry{{1, 1}, {2, 1}},
				Conflicts: []reconcile.Conflict[entry]{{entry{1, 1}, entry{1, 3}}, {entry{1, 1}, entry{1, 5}}},
			},
		},
		"an extra actual value of a key is deleted": {
			desired: []entry{{1, 1}}, actual: []entry{{1, 3}, {1, 1}, {1, 5}},
			want: reconcile.Plan[entry]{Delete: []entry{{1, 3}, {1, 5}}},
		},
		"an extra value that is foreign stays": {
			desired: []entry{{1, 1}}, actual: []entry{{1, 2}, {1, 1}, {1, 5}}, owned: odd,
			want: reconcile.Plan[entry]{Delete: []entry{{1, 5}}},
		},
		"several values and none right: put, then delete them all": {
			desired: []entry{{1, 1}}, actual: []entry{{1, 3}, {1, 5}},
			want: reconcile.Plan[entry]{Put: []entry{{1, 1}}, Delete: []entry{{1, 3}, {1, 5}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var fresh reconcile.Differ[entry, int]
			got := fresh.Diff(tc.desired, tc.actual, tc.owned)
			if d := gocmp.Diff(tc.want, got, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("plan (-want +got):\n%s", d)
			}
		})
	}
}

// multimap is a table as odd as the kernel's: several values may share a key,
// and a put replaces whichever comes first.
type multimap []entry

func (m *multimap) apply(p reconcile.Plan[entry]) {
	for _, e := range p.Put {
		if i := slices.IndexFunc(*m, func(a entry) bool { return a.K == e.K }); i >= 0 {
			(*m)[i] = e
		} else {
			*m = append(*m, e)
		}
	}
	for _, e := range p.Delete {
		if i := slices.Index(*m, e); i >= 0 {
			*m = slices.Delete(*m, i, i+1)
		}
	}
}

// TestDiffConverges: whatever was there, one application leaves what is desired
// and what is foreign; a second one has nothing to do; and a reused Differ
// plans as a fresh one does.
func TestDiffConverges(t *testing.T) {
	gen := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) entry {
		return entry{rapid.IntRange(0, 7).Draw(t, "key"), rapid.IntRange(0, 5).Draw(t, "value")}
	}), 0, 12)
	var reused reconcile.Differ[entry, int]
	rapid.Check(t, func(t *rapid.T) {
		desired := gen.Draw(t, "desired")
		actual := multimap(slices.Compact(slices.SortedFunc(slices.Values(gen.Draw(t, "actual")), compare)))
		var owned func(entry) bool
		if rapid.Bool().Draw(t, "shared") {
			owned = odd
		}
		want := map[entry]bool{}
		keys := map[int]bool{}
		for _, e := range desired {
			if !keys[e.K] {
				keys[e.K], want[e] = true, true
			}
		}
		foreign := map[entry]bool{}
		for _, a := range actual {
			if owned != nil && !owned(a) {
				foreign[a] = true
			}
		}
		var fresh reconcile.Differ[entry, int]
		plan := fresh.Diff(desired, actual, owned)
		if d := gocmp.Diff(plan, reused.Diff(desired, actual, owned), cmpopts.EquateEmpty()); d != "" {
			t.Fatalf("a reused Differ plans otherwise (-fresh +reused):\n%s", d)
		}
		for _, e := range plan.Delete {
			if foreign[e] {
				t.Fatalf("plans to delete %v, which is foreign", e)
			}
		}
		actual.apply(plan)
		for e := range want {
			if !slices.Contains(actual, e) {
				t.Fatalf("%v is missing from %v", e, actual)
			}
		}
		for _, e := range actual {
			if !want[e] && !foreign[e] {
				t.Fatalf("%v is neither desired nor foreign", e)
			}
		}
		again := fresh.Diff(desired, actual, owned)
		if len(again.Put)+len(again.Delete) != 0 {
			t.Fatalf("a second plan has work: %+v", again)
		}
	})
}

func compare(a, b entry) int { return cmp.Or(cmp.Compare(a.K, b.K), cmp.Compare(a.V, b.V)) }

func peers(n, value int) []entry {
	out := make([]entry, n)
	for i := range out {
		out[i] = entry{i, value}
	}
	return out
}

func TestDifferAllocatesNothing(t *testing.T) {
	desired, actual := peers(1000, 1), peers(1000, 1)
	actual[5].V, actual[7].K = 3, 5000
	var d reconcile.Differ[entry, int]
	d.Diff(desired, actual, nil)
	allocs := testing.AllocsPerRun(10, func() {
		if p := d.Diff(desired, actual, nil); len(p.Put) != 2 || len(p.Delete) != 1 {
			t.Fatalf("plan: %+v", p)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations a diff, want 0", allocs)
	}
}

// A start desires much and finds nothing: a copy of it would be of use for that moment
// only.
func TestDiffOfAllMissing(t *testing.T) {
	desired := peers(3, 1)
	var d reconcile.Differ[entry, int]
	if p := d.Diff(desired, nil, nil); &p.Put[0] != &desired[0] || len(p.Put) != 3 {
		t.Errorf("put %v is a copy", p.Put)
	}
	d.Diff(nil, desired, nil)
	if diff := gocmp.Diff(peers(3, 1), desired); diff != "" {
		t.Errorf("the next diff has changed what was desired (-want +got):\n%s", diff)
	}
	if p := d.Diff([]entry{{1, 1}, {1, 1}}, nil, nil); len(p.Put) != 1 {
		t.Errorf("put %v: one entry that stands there twice", p.Put)
	}
}

func BenchmarkDiff10000(b *testing.B) {
	desired, actual := peers(10000, 1), peers(10000, 1)
	actual[5].V = 3
	var d reconcile.Differ[entry, int]
	b.ReportAllocs()
	for b.Loop() {
		d.Diff(desired, actual, nil)
	}
}

// table records what is done to it in a journal shared with other tables.
type table struct {
	name    string
	entries []entry
	journal *[]string
	listErr error
	refuse  entry // fails, in Put and in Delete
	broken  error // fails Put and Delete as a whole
}

func (m *table) List(context.Context) ([]entry, error) { return m.entries, m.listErr }

func (m *table) Put(_ context.Context, es []entry) error { return m.do("put", es) }

func (m *table) Delete(_ context.Context, es []entry) error { return m.do("delete", es) }

var errRefused = errors.New("refused")

func (m *table) do(op string, es []entry) error {
	if m.broken != nil {
		return m.broken
	}
	var errs []error
	for _, e := range es {
		if e == m.refuse {
			errs = append(errs, &reconcile.EntryError{Op: op, Entry: e.String(), Value: e, Err: errRefused})
			continue
		}
		*m.journal = append(*m.journal, fmt.Sprintf("%s %s %v", op, m.name, e))
	}
	return errors.Join(errs...)
}

var errList = errors.New("interrupted")

func TestApply(t *testing.T) {
	full := func() (a, b, c *table) {
		return &table{name: "fdb", entries: []entry{{9, 1}}},
			&table{name: "neighbour", entries: []entry{{9, 1}, {1, 3}}},
			&table{name: "route", entries: []entry{{8, 1}, {9, 1}}}
	}
	for name, tc := range map[string]struct {
		change  func(a, b, c *table)
		journal []string
		result  reconcile.Result
		err     string
		is      error
	}{
		"puts forwards, then deletes backwards": {
			journal: []string{
				"put fdb 1=1", "put neighbour 1=1", "put route 1=1",
				"delete route 8=1", "delete route 9=1", "delete neighbour 9=1", "delete fdb 9=1",
			},
			result: reconcile.Result{Put: 3, Deleted: 4},
		},
		"a refused entry stops no other": {
			change: func(a, _, c *table) { a.refuse, c.refuse = entry{1, 1}, entry{8, 1} },
			journal: []string{
				"put neighbour 1=1", "put route 1=1",
				"delete route 9=1", "delete neighbour 9=1", "delete fdb 9=1",
			},
			result: reconcile.Result{Put: 2, Deleted: 3, Failed: 2},
			err:    "put fdb: put 1=1: refused\ndelete route: delete 8=1: refused",
			is:     errRefused,
		},
		"a table that cannot begin fails all its entries": {
			change: func(_, _, c *table) { c.broken = errRefused },
			journal: []string{
				"put fdb 1=1", "put neighbour 1=1", "delete neighbour 9=1", "delete fdb 9=1",
			},
			result: reconcile.Result{Put: 2, Deleted: 2, Failed: 3},
			err:    "put route: refused\ndelete route: refused",
			is:     errRefused,
		},
		"without a list: dependencies put, dependants do not, nobody deletes": {
			change:  func(_, b, _ *table) { b.listErr = errList },
			journal: []string{"put fdb 1=1"},
			result:  reconcile.Result{Put: 1},
			err:     "list neighbour: interrupted",
			is:      errList,
		},
		"every list that fails is reported": {
			change: func(a, _, c *table) { a.listErr, c.listErr = errList, errList },
			err:    "list fdb: interrupted\nlist route: interrupted",
			is:     errList,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var journal []string
			a, b, c := full()
			a.journal, b.journal, c.journal = &journal, &journal, &journal
			if tc.change != nil {
				tc.change(a, b, c)
			}
			desired := []entry{{1, 1}}
			got, err := reconcile.Apply(t.Context(),
				reconcile.NewStep("fdb", a, desired, nil),
				reconcile.NewStep("neighbour", b, desired, nil),
				reconcile.NewStep("route", c, desired, nil))
			if d := gocmp.Diff(tc.journal, journal); d != "" {
				t.Errorf("journal (-want +got):\n%s", d)
			}
			if d := gocmp.Diff(tc.result, got); d != "" {
				t.Errorf("result (-want +got):\n%s", d)
			}
			if d := gocmp.Diff(tc.err, text(err)); d != "" {
				t.Errorf("error (-want +got):\n%s", d)
			}
			if !errors.Is(err, tc.is) {
				t.Errorf("%v is not %v", err, tc.is)
			}
		})
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestApplyReportsConflicts(t *testing.T) {
	var journal []string
	got, err := reconcile.Apply(t.Context(), reconcile.NewStep("route",
		&table{name: "route", journal: &journal}, []entry{{1, 1}, {1, 3}}, nil))
	if d := gocmp.Diff(reconcile.Result{Put: 1, Failed: 1}, got); d != "" {
		t.Errorf("result (-want +got):\n%s", d)
	}
	if d := gocmp.Diff([]string{"put route 1=1"}, journal); d != "" {
		t.Errorf("journal (-want +got):\n%s", d)
	}
	want := &reconcile.ConflictError{Kind: "route", First: "1=1", Second: "1=3"}
	var conflict *reconcile.ConflictError
	if !errors.As(err, &conflict) || *conflict != *want {
		t.Errorf("error %v, want %v", err, want)
	}
	if d := gocmp.Diff("route 1=3: conflicts with 1=1, which is kept", text(err)); d != "" {
		t.Errorf("text (-want +got):\n%s", d)
	}
}

func TestApplyAgainstAnEndedContext(t *testing.T) {
	var journal []string
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := reconcile.Apply(ctx, reconcile.NewStep("route",
		&table{name: "route", journal: &journal}, []entry{{1, 1}}, nil))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
	if len(journal) != 0 {
		t.Errorf("did %v after the end", journal)
	}
}

func TestFailures(t *testing.T) {
	fail := func(i int) *reconcile.EntryError {
		return &reconcile.EntryError{Op: "put", Entry: fmt.Sprint(i), Value: i, Err: errRefused}
	}
	err := fmt.Errorf("apply: %w", errors.Join(fail(1), errors.New("other"), fmt.Errorf("put: %w", errors.Join(fail(2), fail(3)))))
	var got []any
	for f := range reconcile.Failures(err) {
		got = append(got, f.Value)
	}
	if d := gocmp.Diff([]any{1, 2, 3}, got); d != "" {
		t.Errorf("failures (-want +got):\n%s", d)
	}
	for f := range reconcile.Failures(err) {
		if f.Value != 1 {
			t.Errorf("first failure is %v", f.Value)
		}
		break
	}
	for f := range reconcile.Failures(nil) {
		t.Errorf("failure %v of no error", f)
	}
}
