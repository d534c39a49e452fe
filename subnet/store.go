package subnet

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"slices"
	"time"
)

// What a Store's write or watch can come to, apart from success. Decisions are
// made with errors.Is on these; every other error means that the store could
// not be asked (unreachable, refused, timed out) and that the outcome of a
// write is unknown: Load again before the next one.
var (
	// ErrTaken: the key to create exists.
	ErrTaken = errors.New("subnet is taken")
	// ErrConfigChanged: the network config is not the one decided on.
	ErrConfigChanged = errors.New("network config changed")
	// ErrStoreChanged: the store lost its past: its identity differs, or its
	// revision is lower than one already seen.
	ErrStoreChanged = errors.New("store was replaced or restored")
	// ErrLeaseLost: the key is gone, was changed by another, or no longer
	// hangs on our lease.
	ErrLeaseLost = errors.New("lease was lost")
	// ErrCompacted: the log no longer reaches back to the asked revision.
	ErrCompacted = errors.New("revision was compacted")
)

// Document is the network config as stored: its text and the revision of its
// last change. The zero Document: there is none.
type Document struct {
	Text     string
	Modified Revision
}

// BadKey is a key below the subnets' prefix that could not be read whole.
type BadKey struct {
	// Key is the last element of the key's path.
	Key string
	// Occupies is the subnet that Key names; zero when Key is no subnet. An
	// unreadable value still occupies its subnet.
	Occupies Subnet
	Modified Revision
	Err      error
}

// World is everything in the store at one revision.
type World struct {
	// Identity is the store's own random name; see decision 8 of the design.
	Identity string
	Revision Revision
	Config   Document
	// Leases are sorted by key, every one of them complete.
	Leases []Lease
	// Bad are the keys that are not in Leases, sorted by key.
	Bad []BadKey
}

// Witness returns the lease that was written last; false: there is none. A store
// that does not hold it as w says has lost its past since, as a rule: it is what a
// restored snapshot lacks if it lacks anything that was written.
func (w World) Witness() (Lease, bool) {
	if len(w.Leases) == 0 {
		return Lease{}, false
	}
	return slices.MaxFunc(w.Leases, func(a, b Lease) int { return cmp.Compare(a.Modified, b.Modified) }), true
}

// Batch is what changed in one revision of the store, or only that the stream
// has arrived there: then everything but Revision is empty.
type Batch struct {
	Revision Revision
	// Config is nil unless the config was put (non-zero) or deleted (zero).
	Config *Document
	// Put are the leases created or changed.
	Put []Lease
	// Deleted are the last elements of deleted keys' paths.
	Deleted []string
	// Bad are the keys put with something unreadable.
	Bad []BadKey
}

const (
	progressLeast   = 10 * time.Second
	progressPerHost = 4 * time.Millisecond
)

// ProgressWithin is how long a watch takes at most to show that it lives, in a store
// of so many leases. Proofs cost requests: where hosts are many each asks less
// often, and the store has the same number of them to answer.
func ProgressWithin(leases int) time.Duration {
	return max(progressLeast, time.Duration(leases)*progressPerHost)
}

// Store holds leases in a replicated log. All methods may be called
// concurrently. Their contexts bound them; none retries by itself beyond what
// one call's deadline allows.
type Store interface {
	// Load reads config and leases at one revision, or fails. A store that
	// has no identity yet is given one.
	Load(ctx context.Context) (World, error)

	// Watch yields every change after a revision, in order, a batch per
	// revision, and progress batches in between: one as soon as the store was
	// found to be the one that was loaded, and as often as [ProgressWithin]
	// says for what the last Load found, while the store can be reached. It
	// ends with one error: the context's, ErrCompacted, ErrStoreChanged, or
	// why the store cannot be reached. After the latter, Watch may go on from
	// the last batch's revision; after the two before, only a Load helps.
	Watch(ctx context.Context, after Revision) iter.Seq2[Batch, error]

	// Create stores l under a new lease of the given ttl, or as a
	// reservation when ttl is zero, provided that the key is absent, that
	// identity, config text and config revision are still those of w, and
	// that w's Witness is unchanged. ErrTaken, ErrConfigChanged,
	// ErrStoreChanged; ErrLeaseLost: the witness was changed or is gone, and
	// whether the store has lost its past, another Load tells.
	Create(ctx context.Context, l Lease, ttl time.Duration, w World) (Lease, error)

	// Renew extends l by its TTL and then proves, without writing, that the
	// key is unchanged since l.Modified and still hangs on l.ID. A
	// reservation is only proven. ErrLeaseLost, ErrStoreChanged.
	Renew(ctx context.Context, l Lease) (Lease, error)

	// Update replaces the attributes of the key if it is unchanged since
	// l.Modified, keeping the lease it hangs on, or none. ErrLeaseLost.
	Update(ctx context.Context, l Lease) (Lease, error)

	// Reserve makes a reservation of the held key: the attributes become
	// those of l, and it hangs on no lease any more, provided that it is
	// unchanged since l.Modified and that identity, config text and config
	// revision are still those of w. The lease it hung on is revoked unless
	// others' keys hang on it. ErrLeaseLost, ErrConfigChanged,
	// ErrStoreChanged.
	Reserve(ctx context.Context, l Lease, w World) (Lease, error)

	// Release deletes the key if it is unchanged since l.Modified, and its
	// lease. ErrLeaseLost.
	Release(ctx context.Context, l Lease) error
}
