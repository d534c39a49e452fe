package robustness

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Why an epoch began.
const (
	whyStart   = "start"
	whyWipe    = "wipe"
	whyRestore = "restore"
)

// errWhole ends a stream that has told enough.
var errWhole = errors.New("told everything")

// restored finds out where the history of a store that was put back leaves what
// is known, and what the store held there. Hosts may have written since the
// restore: that is the new epoch's, and its streams will tell it.
func (h *history) restored(ctx context.Context) (*journal, []Event, error) {
	now, err := h.ask(ctx, func(ctx context.Context, m *clientv3.Client) (*clientv3.GetResponse, error) {
		return m.Get(ctx, h.prefix, clientv3.WithCountOnly())
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read the restored store: %w", err)
	}
	after, told, err := h.retell(ctx, now.Header.Revision)
	if err != nil {
		return nil, nil, fmt.Errorf("read the restored log: %w", err)
	}
	parent, base := h.parent(after, told)
	held, err := h.ask(ctx, func(ctx context.Context, m *clientv3.Client) (*clientv3.GetResponse, error) {
		return m.Get(ctx, h.prefix, clientv3.WithPrefix(), clientv3.WithRev(base))
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read the restored store at revision %d: %w", base, err)
	}
	var origin []Event
	for _, kv := range held.Kvs {
		key := strings.TrimPrefix(string(kv.Key), h.prefix)
		origin = append(origin, eventOf(key, kv, false, 0))
	}
	slices.SortFunc(origin, func(a, b Event) int {
		return cmp.Or(cmp.Compare(a.Revision, b.Revision), cmp.Compare(a.Key, b.Key))
	})
	return parent.branch(base), origin, nil
}

// parent is the earlier epoch that shares most with a told history, and up to
// which revision; of several the last one.
func (h *history) parent(after int64, told []group) (*journal, int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var parent *journal
	base := int64(-1)
	for _, e := range h.epochs {
		if shared := e.shared(after, told); shared >= base {
			parent, base = e.journal, shared
		}
	}
	return parent, base
}

// retell reads the log up to a revision, from as early as it reaches: after the
// revision that it returns.
func (h *history) retell(ctx context.Context, upTo int64) (after int64, told []group, err error) {
	var errs []error
	for _, m := range h.members {
		after, told, err = h.retellBy(ctx, m, upTo)
		if err == nil {
			return after, told, nil
		}
		errs = append(errs, err)
	}
	return 0, nil, errors.Join(errs...)
}

func (h *history) retellBy(ctx context.Context, m *clientv3.Client, upTo int64) (int64, []group, error) {
	after := int64(firstRevision)
	for {
		told, err := h.logOf(ctx, m, after, upTo)
		var compacted *compactedError
		if !errors.As(err, &compacted) || compacted.revision <= after {
			return after, told, err
		}
		after = compacted.revision
	}
}

// logOf reads one member's log after a revision and up to another.
func (h *history) logOf(ctx context.Context, m *clientv3.Client, after, upTo int64) ([]group, error) {
	if after >= upTo {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, catchUpWithin)
	defer cancel()
	var told []group
	j := journal{prefix: h.prefix}
	err := tell(ctx, m, after, func(resp *pb.WatchResponse) error {
		told = append(told, j.groups(resp.Events, 0)...)
		if n := len(told); n > 0 && told[n-1].revision >= upTo {
			return errWhole
		}
		return nil
	})
	if !errors.Is(err, errWhole) {
		return nil, err
	}
	return told, nil
}
