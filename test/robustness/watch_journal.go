package robustness

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// What etcd must never do. Either means that the record cannot be trusted.
var (
	// errGap: a member left revisions out.
	errGap = errors.New("revisions are missing")
	// errDiverged: two members tell different stories of one revision.
	errDiverged = errors.New("members disagree")
)

// firstRevision is that of a store that nobody has written to.
const firstRevision = 1

// journal is the history of one epoch, put together from what several members
// tell. It is of the whole store and not of the prefix alone: etcd then skips no
// number, since each revision changes at least one key, and so whatever is
// missing is missed. It is not safe for concurrent use.
type journal struct {
	prefix string
	// base is where the epoch began: everything up to there is inherited.
	base int64
	// at is the revision up to which everything is known.
	at int64
	// log are the events below the prefix, from the store's beginning on, as
	// far as the epochs before this one knew them.
	log []Event
}

// group is what one revision changed below the prefix; often nothing.
type group struct {
	revision int64
	events   []Event
}

// groups splits events, which are of whole revisions and in their order.
func (j *journal) groups(events []*mvccpb.Event, now time.Duration) []group {
	var out []group
	for _, e := range events {
		if last := len(out) - 1; last < 0 || out[last].revision != e.Kv.ModRevision {
			out = append(out, group{revision: e.Kv.ModRevision})
		}
		if key, ours := strings.CutPrefix(string(e.Kv.Key), j.prefix); ours {
			g := &out[len(out)-1]
			g.events = append(g.events, eventOf(key, e.Kv, e.Type == mvccpb.DELETE, now))
		}
	}
	return out
}

func eventOf(key string, kv *mvccpb.KeyValue, deleted bool, now time.Duration) Event {
	return Event{
		At: now, Revision: subnet.Revision(kv.ModRevision), Key: key, Deleted: deleted,
		Value: string(kv.Value), Lease: subnet.LeaseID(kv.Lease), Created: subnet.Revision(kv.CreateRevision),
	}
}

// add takes what a member tells, and compares what another told before.
func (j *journal) add(events []*mvccpb.Event, now time.Duration) error {
	for _, g := range j.groups(events, now) {
		switch {
		case g.revision > j.at+1:
			return fmt.Errorf("%w: %d is followed by %d", errGap, j.at, g.revision)
		case g.revision == j.at+1:
			j.log = append(j.log, g.events...)
			j.at = g.revision
		// What was inherited may begin later than the store.
		case g.revision > j.base && !j.has(g):
			return fmt.Errorf("%w about revision %d: %s, %s", errDiverged, g.revision, words(j.of(g.revision)), words(g.events))
		}
	}
	return nil
}

// of returns what is known of one revision.
func (j *journal) of(revision int64) []Event {
	from := sort.Search(len(j.log), func(i int) bool { return int64(j.log[i].Revision) >= revision })
	to := sort.Search(len(j.log), func(i int) bool { return int64(j.log[i].Revision) > revision })
	return j.log[from:to]
}

// has reports whether the journal says the same of g's revision. When it was
// received, and from whose hands it came, is beside the point.
func (j *journal) has(g group) bool {
	return g.revision <= j.at && slices.EqualFunc(j.of(g.revision), g.events, func(a, b Event) bool {
		a.At, a.Operator, b.At, b.Operator = 0, false, 0, false
		return a == b
	})
}

// shared is the last revision up to which the journal and a told history, which
// begins after a revision, are the same.
func (j *journal) shared(after int64, told []group) int64 {
	for _, g := range told {
		if !j.has(g) {
			break
		}
		after = g.revision
	}
	return after
}

// branch is the journal of a store that went back to a revision.
func (j *journal) branch(revision int64) *journal {
	end := sort.Search(len(j.log), func(i int) bool { return int64(j.log[i].Revision) > revision })
	return &journal{prefix: j.prefix, base: revision, at: revision, log: slices.Clone(j.log[:end])}
}

// events are those of the epoch itself.
func (j *journal) events() []Event {
	from := sort.Search(len(j.log), func(i int) bool { return int64(j.log[i].Revision) > j.base })
	return j.log[from:]
}

// words names events in an error.
func words(events []Event) string {
	var parts []string
	for _, e := range events {
		verb := "put"
		if e.Deleted {
			verb = "delete"
		}
		parts = append(parts, fmt.Sprintf("%s %s %q lease %x", verb, e.Key, e.Value, int64(e.Lease)))
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, " and ")
}
