package reconcile

import (
	"context"
	"errors"
	"fmt"
	"iter"
)

// Step is one table's part of an Apply. NewStep and Differ.Step make it.
type Step interface {
	// plan lists the table and diffs it.
	plan(ctx context.Context) error
	// put and remove do their half of the plan.
	put(ctx context.Context) (Result, error)
	remove(ctx context.Context) (Result, error)
}

// ConflictError says that two desired entries have one key and different
// values. The first was put, the second was not.
type ConflictError struct {
	Kind string
	// First and Second are the entries, printed.
	First, Second string
}

// Error names both entries.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s %s: conflicts with %s, which is kept", e.Kind, e.Second, e.First)
}

// NewStep makes table hold desired. Kind names the entries in errors ("route").
// Owned says which listed entries are ours to delete; nil means all of the
// table's scope. The step serves one Apply; desired must not change until then.
func NewStep[E Entry[K], K comparable](kind string, table Table[E], desired []E, owned func(E) bool) Step {
	return new(Differ[E, K]).Step(kind, table, desired, owned)
}

// Step is NewStep with the buffers of d: for a table that is diffed again and
// again. Of one Differ's steps only the latest may be applied.
func (d *Differ[E, K]) Step(kind string, table Table[E], desired []E, owned func(E) bool) Step {
	return &step[E, K]{kind: kind, table: table, desired: desired, owned: owned, differ: d}
}

type step[E Entry[K], K comparable] struct {
	kind    string
	table   Table[E]
	desired []E
	owned   func(E) bool
	differ  *Differ[E, K]
	todo    Plan[E]
}

func (s *step[E, K]) plan(ctx context.Context) error {
	actual, err := s.table.List(ctx)
	if err != nil {
		return fmt.Errorf("list %s: %w", s.kind, err)
	}
	s.todo = s.differ.Diff(s.desired, actual, s.owned)
	return nil
}

func (s *step[E, K]) put(ctx context.Context) (Result, error) {
	ok, failed, err := do(ctx, s.todo.Put, s.table.Put)
	errs := make([]error, 0, 1+len(s.todo.Conflicts))
	if err != nil {
		errs = append(errs, fmt.Errorf("put %s: %w", s.kind, err))
	}
	for _, c := range s.todo.Conflicts {
		errs = append(errs, &ConflictError{s.kind, fmt.Sprint(c.First), fmt.Sprint(c.Second)})
	}
	return Result{Put: ok, Failed: failed + len(s.todo.Conflicts)}, errors.Join(errs...)
}

func (s *step[E, K]) remove(ctx context.Context) (Result, error) {
	ok, failed, err := do(ctx, s.todo.Delete, s.table.Delete)
	if err != nil {
		err = fmt.Errorf("delete %s: %w", s.kind, err)
	}
	return Result{Deleted: ok, Failed: failed}, err
}

// do hands entries to a table's Put or Delete, not even calling it without any,
// and counts what became of them.
func do[E any](ctx context.Context, entries []E, op func(context.Context, []E) error) (ok, failed int, err error) {
	if len(entries) == 0 {
		return 0, 0, nil
	}
	err = op(ctx, entries)
	if err == nil {
		return len(entries), 0, nil
	}
	walk(err, func(*EntryError) bool {
		failed++
		return true
	})
	if failed == 0 { // the table could not even begin
		failed = len(entries)
	}
	return max(0, len(entries)-failed), failed, err
}

// Failures yields the failures of single entries in err, however deeply they
// are joined and wrapped.
func Failures(err error) iter.Seq[*EntryError] {
	return func(yield func(*EntryError) bool) { walk(err, yield) }
}

// walk visits err's tree and returns false once yield did. It looks at each
// node's own type, for errors.As would find the same leaf from every node above.
func walk(err error, yield func(*EntryError) bool) bool {
	switch e := err.(type) { //nolint:errorlint // the tree is walked by hand
	case *EntryError:
		return yield(e)
	case interface{ Unwrap() error }:
		return walk(e.Unwrap(), yield)
	case interface{ Unwrap() []error }:
		for _, sub := range e.Unwrap() {
			if !walk(sub, yield) {
				return false
			}
		}
	}
	return true
}

// Apply makes the tables of steps hold what is desired. Steps stand in the order
// in which entries depend on each other, dependencies first; tables that have
// nothing to do with each other belong in Applies of their own.
//
// All tables are listed first. Then all puts run in the steps' order, then all
// deletes in the reverse order: new before old, so that a peer that moves is
// reachable by its new entries before its past is removed.
//
// A table that cannot be listed is left alone, and so is all that depends on
// it: later steps do not put either, for they would lead traffic from a way
// that works to one that nobody has seen. And nothing at all is deleted, for
// the unseen entries may need it. Earlier steps still put.
//
// Errors are joined; failures of single entries can be had from Failures.
func Apply(ctx context.Context, steps ...Step) (Result, error) {
	var (
		total Result
		errs  []error
	)
	seen := len(steps) // the steps whose dependencies and selves were listed
	for i, s := range steps {
		if err := s.plan(ctx); err != nil {
			errs = append(errs, err)
			seen = min(seen, i)
		}
	}
	run := func(op func(context.Context) (Result, error)) {
		if ctx.Err() != nil {
			return
		}
		r, err := op(ctx)
		total = total.plus(r)
		errs = append(errs, err)
	}
	for _, s := range steps[:seen] {
		run(s.put)
	}
	if seen == len(steps) {
		for i := len(steps) - 1; i >= 0; i-- {
			run(steps[i].remove)
		}
	}
	if ctx.Err() != nil {
		errs = append(errs, fmt.Errorf("apply: %w", context.Cause(ctx)))
	}
	return total, errors.Join(errs...)
}

// plus adds two counts.
func (r Result) plus(o Result) Result {
	return Result{r.Put + o.Put, r.Deleted + o.Deleted, r.Failed + o.Failed}
}
