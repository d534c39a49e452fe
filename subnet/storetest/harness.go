package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// Store is what is tested: the interface, and what operators' tools need
// besides.
type Store interface {
	subnet.Store

	// PutConfig stores another config if identity, config text and config
	// revision are still those of w, and returns it as stored.
	PutConfig(ctx context.Context, text string, w subnet.World) (subnet.Document, error)

	// TTL tells how long a lease will live if it is not renewed, and for how
	// long it was granted. ErrLeaseLost: there is none.
	TTL(ctx context.Context, id subnet.LeaseID) (remaining, granted time.Duration, err error)
}

// KV is one key. Path is relative to the store's prefix.
type KV struct {
	Path, Value string
	Lease       subnet.LeaseID
	Modified    subnet.Revision
}

// Operator does to a store what others do, and looks at it without the store's
// own code. Every write takes place in one revision, which is returned.
type Operator interface {
	// Put writes without any compare; Modified is ignored.
	Put(ctx context.Context, kvs ...KV) (subnet.Revision, error)
	Delete(ctx context.Context, paths ...string) (subnet.Revision, error)
	// Get returns the zero KV where there is no key.
	Get(ctx context.Context, path string) (KV, error)

	Grant(ctx context.Context, ttl time.Duration) (subnet.LeaseID, error)
	Revoke(ctx context.Context, id subnet.LeaseID) error
	// Leases returns every lease that lives, with keys or without.
	Leases(ctx context.Context) ([]subnet.LeaseID, error)

	Compact(ctx context.Context, revision subnet.Revision) error
	// Wipe loses all data and starts again at the same place.
	Wipe(ctx context.Context) error
	// Rewind runs f and then restores a backup that was made before.
	Rewind(ctx context.Context, f func() error) error
}

// Harness is an empty store: without config, leases and identity.
type Harness struct {
	// Open returns a store on the data as one more process would open it. It
	// lives until the test ends.
	Open func(t testing.TB) Store
	Operator
	// ShortTTL is a short time to live that the store grants to the letter. A machine that
	// is stalled for two thirds of it loses what lives for so long.
	ShortTTL time.Duration
}

// Factory makes harnesses.
type Factory struct {
	// Shared returns an empty store which may stand on a server that serves
	// other tests at the same time. Own returns one on a server of its own,
	// for tests that compact or wipe.
	Shared, Own func(t testing.TB) Harness
	// Around, when set, runs the body of a case: in a synctest bubble, say.
	Around func(t *testing.T, body func(t *testing.T))
}

// testCase is one part of the contract.
type testCase struct {
	name string
	// own asks for a server of its own.
	own bool
	run func(e *env)
}

func cases() []testCase {
	var all []testCase
	for _, part := range [][]testCase{loadCases(), createCases(), heldCases(), reserveCases(), watchCases(), changedCases(), operatorCases()} {
		all = append(all, part...)
	}
	return all
}

// Run tests the stores that f makes.
func Run(t *testing.T, f Factory) {
	if f.Around == nil {
		f.Around = func(t *testing.T, body func(*testing.T)) { t.Parallel(); body(t) }
	}
	for _, c := range cases() {
		t.Run(c.name, func(t *testing.T) {
			f.Around(t, func(t *testing.T) { c.on(t, f) })
		})
	}
}

// Failures runs the suite under doubles of t and returns the names of the cases
// that fail, for tests of the suite itself: a broken store must fail some.
func Failures(t *testing.T, f Factory) []string {
	var failed []string
	for _, c := range cases() {
		f.Around(t, func(t *testing.T) {
			r := &recorder{TB: t}
			r.run(func() { c.on(r, f) })
			if r.Failed() {
				failed = append(failed, c.name)
			}
		})
	}
	return failed
}

// on runs the case under t, which may be a double.
func (c testCase) on(t testing.TB, f Factory) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	open := f.Shared
	if c.own {
		open = f.Own
	}
	c.run(&env{TB: t, Harness: open(t), ctx: ctx})
}

// patience is how long a case may take. It is no expectation: only a test that
// is going to fail anyway ever waits for so long.
const patience = 3 * time.Minute
