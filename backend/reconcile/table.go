package reconcile

import "context"

// Entry is one kernel entry: a comparable value whose key says which entries
// replace each other.
type Entry[K comparable] interface {
	comparable
	Key() K
}

// Table holds the entries of one kind.
type Table[E any] interface {
	// List returns all entries of the table's scope, or an error: never a
	// part of them. The slice is the table's own: it is read, not changed,
	// and not kept beyond the next call, so that a table may cache it.
	List(ctx context.Context) ([]E, error)
	// Put adds entries or replaces those of the same key. It goes past single
	// failures and returns them joined, each as an *EntryError.
	Put(ctx context.Context, entries []E) error
	// Delete removes exactly these entries, by value and not by key; one that
	// is gone already is no failure. It reports failures as Put does.
	Delete(ctx context.Context, entries []E) error
}

// EntryError is the failure of one entry.
type EntryError struct {
	// Op is "put" or "delete".
	Op string
	// Entry is the entry in the notation of iproute2.
	Entry string
	// Value is the entry itself, for callers that look for its peer.
	Value any
	Err   error
}

// Error reads as "put 10.5.3.0/24 via ...: cause".
func (e *EntryError) Error() string { return e.Op + " " + e.Entry + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *EntryError) Unwrap() error { return e.Err }

// Result counts what an Apply had to change.
type Result struct {
	Put, Deleted, Failed int
}
