package robustness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/flanneld-go/flanneld-go/subnet"
)

const (
	// reopenPause is between two attempts to follow a member.
	reopenPause = 100 * time.Millisecond
	// askWithin bounds one question to one member; a paused one is silent.
	askWithin = 2 * time.Second
	// catchUpWithin is how long the streams may take to arrive at a revision
	// that the store is known to have.
	catchUpWithin = 20 * time.Second
)

// history follows etcd by one stream per member. A member that is slow, paused
// or dead costs nothing as long as another is heard; the first to tell a
// revision is believed, and the others are compared.
//
// The client's own watcher resumes silently, on a store that was emptied too.
// Here a stream belongs to one connection: while an epoch ends it is read to the
// end, and not opened again.
//
//	begin --> streams, opened again as they break
//	  ^             | end: everything up to the store's revision is there
//	  '--------- streams, each to its own end
type history struct {
	now     func() time.Duration
	prefix  string
	members []*clientv3.Client

	mu sync.Mutex
	// The fields below are guarded by mu.

	epochs   []*epoch
	arrived  chan struct{} // closed and replaced when the journal grows
	failures []error
	trouble  map[*clientv3.Client]error // why a member is not heard
}

// epoch is one life of the data and the streams that follow it.
type epoch struct {
	*journal
	began    time.Duration
	why      string
	origin   []Event
	operator map[subnet.Revision]bool
	current  map[string]Event

	// opening ends when no stream may be opened any more.
	opening context.Context
	seal    context.CancelFunc
	cancel  context.CancelFunc
	streams sync.WaitGroup
}

// newHistory returns a history that has not begun.
func newHistory(now func() time.Duration, prefix string, members []*clientv3.Client) *history {
	return &history{
		now: now, prefix: strings.TrimSuffix(prefix, "/") + "/", members: members,
		arrived: make(chan struct{}), trouble: map[*clientv3.Client]error{},
	}
}

// begin follows the store as it is now. Of a restored one the beginning is where
// its log leaves that of any epoch before.
func (h *history) begin(ctx context.Context, why string) error {
	j := &journal{prefix: h.prefix, base: firstRevision, at: firstRevision}
	h.mu.Lock()
	last := h.last()
	h.mu.Unlock()
	if last != nil {
		last.close()
	}
	var origin []Event
	if why == whyRestore {
		var err error
		if j, origin, err = h.restored(ctx); err != nil {
			return fmt.Errorf("begin epoch: %w", err)
		}
	}
	// They end with the epoch, not with the call that begins it.
	streams, cancel := context.WithCancel(context.WithoutCancel(ctx))
	opening, seal := context.WithCancel(streams)
	e := &epoch{
		journal: j, began: h.now(), why: why, origin: origin,
		operator: map[subnet.Revision]bool{}, current: map[string]Event{},
		opening: opening, seal: seal, cancel: cancel,
	}
	for i := range origin {
		e.origin[i].At = e.began
		e.current[origin[i].Key] = e.origin[i]
	}
	h.mu.Lock()
	h.epochs = append(h.epochs, e)
	h.mu.Unlock()
	for _, m := range h.members {
		e.streams.Go(func() { h.follow(streams, e, m) })
	}
	return nil
}

// last is the epoch that began last; nil: none did.
func (h *history) last() *epoch {
	if len(h.epochs) == 0 {
		return nil
	}
	return h.epochs[len(h.epochs)-1]
}

// end waits until everything that the store holds now was received. Afterwards
// the streams go on as long as their members, and are not opened again.
func (h *history) end(ctx context.Context) error {
	h.mu.Lock()
	e := h.last()
	h.mu.Unlock()
	if e == nil {
		return errors.New("end epoch: none began")
	}
	if e.opening.Err() != nil {
		return nil
	}
	err := h.catchUp(ctx, e)
	e.seal()
	if err != nil {
		return fmt.Errorf("end epoch: %w", err)
	}
	return nil
}

// close ends the streams and waits for that.
func (e *epoch) close() {
	e.cancel()
	e.streams.Wait()
}

// catchUp waits for the streams to arrive where the store is.
func (h *history) catchUp(ctx context.Context, e *epoch) error {
	revision, err := h.revision(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, catchUpWithin)
	defer cancel()
	for {
		h.mu.Lock()
		at, arrived := e.at, h.arrived
		h.mu.Unlock()
		if at >= revision {
			return nil
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			return fmt.Errorf("received up to revision %d of %d: %w", at, revision, h.troubles(ctx.Err()))
		}
	}
}

// revision is that of the store: read linearizably where there is a quorum, else
// the highest that any member has. Without a quorum nothing is written meanwhile.
func (h *history) revision(ctx context.Context) (int64, error) {
	resp, err := h.ask(ctx, func(ctx context.Context, m *clientv3.Client) (*clientv3.GetResponse, error) {
		return m.Get(ctx, h.prefix, clientv3.WithCountOnly())
	})
	if err == nil {
		return resp.Header.Revision, nil
	}
	var highest int64
	for _, m := range h.members {
		ctx, cancel := context.WithTimeout(ctx, askWithin)
		resp, err := m.Get(ctx, h.prefix, clientv3.WithCountOnly(), clientv3.WithSerializable())
		cancel()
		if err == nil {
			highest = max(highest, resp.Header.Revision)
		}
	}
	if highest == 0 {
		return 0, fmt.Errorf("no member tells its revision: %w", err)
	}
	return highest, nil
}

// ask puts a question to all members at once and returns the first answer.
func (h *history) ask(ctx context.Context, question func(context.Context, *clientv3.Client) (*clientv3.GetResponse, error)) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	type answer struct {
		resp *clientv3.GetResponse
		err  error
	}
	answers := make(chan answer, len(h.members))
	for _, m := range h.members {
		wake(m)
		go func() {
			resp, err := question(ctx, m)
			answers <- answer{resp, err}
		}()
	}
	var errs []error
	var first *clientv3.GetResponse
	for range h.members {
		a := <-answers
		if a.err == nil && first == nil {
			first = a.resp
			cancel()
		}
		errs = append(errs, a.err)
	}
	if first == nil {
		return nil, errors.Join(errs...)
	}
	return first, nil
}

// wake makes a connection that waits before its next attempt try now.
func wake(m *clientv3.Client) { m.ActiveConnection().ResetConnectBackoff() }

// follow keeps a stream from one member until the epoch ends.
func (h *history) follow(ctx context.Context, e *epoch, m *clientv3.Client) {
	for {
		err := h.stream(ctx, e, m)
		h.mu.Lock()
		h.trouble[m] = err
		if errors.Is(err, errGap) || errors.Is(err, errDiverged) {
			h.failures = append(h.failures, err)
		}
		h.mu.Unlock()
		pause := time.NewTimer(reopenPause)
		select {
		case <-pause.C:
			wake(m)
		case <-e.opening.Done():
			pause.Stop()
			return
		}
	}
}

// stream receives from one member until that ends. One that is not open when the
// epoch ends might be answered by the next one's store.
func (h *history) stream(ctx context.Context, e *epoch, m *clientv3.Client) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	opened := context.AfterFunc(e.opening, cancel) //nolint:contextcheck // Two things end it.
	defer opened()
	h.mu.Lock()
	after := e.at
	h.mu.Unlock()
	return tell(ctx, m, after, func(resp *pb.WatchResponse) error {
		if resp.Created {
			opened()
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if len(resp.Events) > 0 {
			delete(h.trouble, m)
		}
		before := len(e.log)
		err := e.add(resp.Events, h.now())
		for _, event := range e.log[before:] {
			if event.Deleted {
				delete(e.current, event.Key)
			} else {
				e.current[event.Key] = event
			}
		}
		close(h.arrived)
		h.arrived = make(chan struct{})
		return err
	})
}

// tell opens a watch of the whole store after a revision and hands on what it
// receives, until its end or take fails.
func tell(ctx context.Context, m *clientv3.Client, after int64, take func(*pb.WatchResponse) error) error {
	// It fails at once where nobody listens; follow then wakes the connection,
	// whose own pauses grow to minutes.
	stream, err := pb.NewWatchClient(m.ActiveConnection()).Watch(ctx, grpc.MaxCallRecvMsgSize(math.MaxInt32))
	if err != nil {
		return err
	}
	everything := []byte{0}
	err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: everything, RangeEnd: everything, StartRevision: after + 1,
	}}})
	if err != nil && !errors.Is(err, io.EOF) { // The cause of EOF Recv knows.
		return err
	}
	for {
		resp, err := stream.Recv()
		switch {
		case err != nil:
			return err
		case resp.CompactRevision != 0:
			return &compactedError{resp.CompactRevision}
		case resp.Canceled:
			return fmt.Errorf("watch was cancelled: %s", resp.CancelReason)
		}
		if err := take(resp); err != nil {
			return err
		}
	}
}

// compactedError says up to which revision the log is gone that a stream was to
// begin in. Another member's stream may be past it; if none is, the epoch cannot
// be ended without an error.
type compactedError struct{ revision int64 }

func (e *compactedError) Error() string {
	return fmt.Sprintf("the log is compacted up to revision %d", e.revision)
}

// troubles is why members are not heard.
func (h *history) troubles(err error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	errs := []error{err}
	for _, trouble := range h.trouble {
		errs = append(errs, trouble)
	}
	return errors.Join(errs...)
}

// byOperator notes that a revision of the present epoch is the run's own doing.
func (h *history) byOperator(revision int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last().operator[subnet.Revision(revision)] = true
}

// keys are the keys below the prefix as they are known now.
func (h *history) keys() []Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []Event
	for _, e := range h.last().current {
		out = append(out, e)
	}
	return out
}

// close ends all streams and returns the epochs, and what makes them wrong.
func (h *history) close() ([]Epoch, error) {
	h.mu.Lock()
	last := h.last()
	h.mu.Unlock()
	if last != nil {
		last.close()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []Epoch
	for _, e := range h.epochs {
		events := append([]Event(nil), e.events()...)
		for i := range events {
			events[i].Operator = e.operator[events[i].Revision]
		}
		out = append(out, Epoch{Began: e.began, Why: e.why, Base: e.origin, Events: events})
	}
	return out, errors.Join(h.failures...)
}
