package etcdstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"math/rand/v2"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/internal/layout"
)

// Why one stream of a watch ended, where that is not etcd's own error.
var (
	errStopped = errors.New("reader has enough")
	errStalled = errors.New("watch stream is silent")
	// The next stream asks for another token.
	errTokenEnded = errors.New("token has ended")
)

// streamWide is the watch id of answers that concern a whole stream.
const streamWide = -1

// crowd is how many hosts may ask for proofs as often as a few do. Where there are
// more, each asks the less often: etcd has no more to answer than from these.
const crowd = 2500

// busyTicks is how many ticks the store goes unproven at most while the stream
// itself shows that it lives.
const busyTicks = 4

// verifyWithin is how many times the DialTimeout a watch has at least until it is
// verified for the first time. Whoever does not answer because it is gone does not answer
// gRPC either, which notices that by itself; whoever does has much to do.
const verifyWithin = 3

// tickJitter is by what part of it a tick may be shorter.
const tickJitter = 0.25

// reopenPause keeps a stream that breaks again and again from being a busy loop.
const reopenPause = 100 * time.Millisecond

// Watch yields what changes. See [subnet.Store].
//
// It is one watch of the whole prefix. etcd orders the events of one watch by
// revision and never splits a revision; two watches, one of the config and one
// of the subnets, would have to be merged by revision, and neither may be read
// past what the other has proven to have reached. What else is below the prefix
// is the identity, whose change is worth knowing at once.
//
// A stream that breaks is opened again from where it was, within DialTimeout, so
// that a restart of an etcd member does not make every host load everything.
func (s *Store) Watch(ctx context.Context, after subnet.Revision) iter.Seq2[subnet.Batch, error] {
	return func(yield func(subnet.Batch, error) bool) {
		known, leases := s.pastAt(after)
		w := &watch{
			Store: s, yield: yield, at: after, identity: known.identity, witness: known.witness,
			every: s.tick * time.Duration(max(crowd, leases)) / crowd, since: time.Now(),
		}
		var err error
		defer func() { s.follow(past{w.at, w.identity, w.witness}, err) }()
		for {
			err = w.run(ctx)
			if errors.Is(err, errStopped) {
				return
			}
			if w.verified {
				w.since, w.verified, w.reopened, w.refusals = time.Now(), false, true, 0
			}
			if errors.Is(err, errTokenEnded) {
				w.refusals++
			}
			if ctx.Err() != nil || !broken(err) || w.refusals == maxTokens || time.Since(w.since) > s.opts.DialTimeout {
				yield(subnet.Batch{}, s.fail(ctx, "watch "+s.opts.Prefix, err))
				return
			}
			s.opts.Log.Debug("etcd watch broke and is opened again", "revision", int64(w.at), "error", err)
			pause := time.NewTimer(reopenPause)
			select {
			case <-pause.C:
			case <-ctx.Done():
				pause.Stop()
			}
		}
	}
}

// broken reports whether a stream ended for a reason that another may not have.
func broken(err error) bool {
	code := status.Code(err)
	return errors.Is(err, io.EOF) || code == codes.Unavailable || code == codes.Internal || errors.Is(err, errTokenEnded)
}

// watch is one call of Watch.
type watch struct {
	*Store
	yield func(subnet.Batch, error) bool
	// at is the revision up to which everything was yielded.
	at subnet.Revision
	// every is the tick for as many hosts as there are.
	every time.Duration
	// identity is what the store must be; empty until it is known.
	identity string
	// witness is the last event, or what a load found in its place; nil: there
	// was none. A store that does not know of it has another past: one that was
	// restored, and has been written to since until its revision was no longer
	// behind ours.
	witness *mvccpb.Event
	// since is when there was a verified stream for the last time, or the
	// beginning: the DialTimeout to have another counts from there.
	since time.Time
	// reopened: there was a verified stream before. Who was away for long is to say so:
	// what happened meanwhile is more than a watch can tell.
	reopened bool
	// refusals are streams since then that were refused for their token.
	refusals int

	// The fields below concern the current stream.

	// token is what it was opened with.
	token string
	// verified: after the stream was opened, the store was found to be the
	// same.
	verified bool
	// silent counts proofs asked for since the last message, proven is when
	// the last one was, heard when something was yielded. The next proof is
	// quiet after both.
	silent        int
	proven, heard time.Time
	quiet         time.Duration
	// events are fragments of a message that is not complete.
	events []*mvccpb.Event
}

// message is what the stream received.
type message struct {
	*pb.WatchResponse
	err error
}

// run opens a stream and follows it to its end.
func (w *watch) run(ctx context.Context) error {
	// Without a leader a member would serve a stream on which nothing happens.
	ctx, cancel := context.WithCancelCause(clientv3.WithRequireLeader(ctx))
	defer cancel(nil)
	// A stream has no deadline, but until it is verified there is one.
	patience := time.AfterFunc(w.patience()-time.Since(w.since), func() {
		w.pace.missed(time.Since(w.since))
		cancel(context.DeadlineExceeded)
	})
	defer patience.Stop()
	stream, err := w.open(ctx)
	if err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	messages := make(chan message)
	go receive(ctx, stream, messages)
	defer func() {
		cancel(nil)
		for range messages { //nolint:revive // Only to wait for its end.
		}
	}()
	w.silent, w.events = 0, nil
	w.rest()
	tick := time.NewTimer(time.Until(w.proof()))
	defer tick.Stop()
	for err == nil {
		select {
		case <-ctx.Done():
			err = context.Cause(ctx)
		case m, open := <-messages:
			err = w.hear(ctx, m, open, patience)
		case <-tick.C:
			select {
			// What came while a slow store was asked is heard before the stream is
			// taken for silent.
			case m, open := <-messages:
				err = w.hear(ctx, m, open, patience)
			default:
			}
			if err == nil && !time.Now().Before(w.proof()) {
				err = w.prove(ctx, stream)
			}
			tick.Reset(time.Until(w.proof()))
		}
	}
	return err
}

// hear takes in what the stream received, and ends patience with the first that shows
// the store to be the same.
func (w *watch) hear(ctx context.Context, m message, open bool, patience *time.Timer) error {
	if !open { // The stream saw the end of ctx before us.
		return context.Cause(ctx)
	}
	w.silent = 0
	err := w.handle(ctx, m)
	if err == nil && w.verified {
		patience.Stop()
	}
	return err
}

// patience is how long it may take until a stream is verified.
func (w *watch) patience() time.Duration {
	if w.reopened {
		return w.opts.DialTimeout
	}
	return w.pace.patience(verifyWithin * w.opts.DialTimeout)
}

// open asks for everything from w.at on. What happened at w.at itself is skipped
// later; to ask for w.at+1 would be asking for the future while nothing happens,
// and such a watch gets no answers to progress requests.
func (w *watch) open(ctx context.Context) (pb.Watch_WatchClient, error) {
	var err error
	if w.token, err = w.tokens.get(ctx); err != nil {
		return nil, err
	}
	// The server decides how large a message is.
	stream, err := w.watches.Watch(with(ctx, w.token), grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(math.MaxInt32))
	if err != nil {
		return nil, err
	}
	err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: w.request()}})
	if errors.Is(err, io.EOF) { // The stream has ended; why, Recv knows.
		_, err = stream.Recv()
	}
	return stream, err
}

func (w *watch) request() *pb.WatchCreateRequest {
	return &pb.WatchCreateRequest{
		Key:            []byte(w.prefix),
		RangeEnd:       []byte(clientv3.GetPrefixRangeEnd(w.prefix)),
		StartRevision:  max(int64(w.at), 1), // 0 would be "from now on".
		ProgressNotify: true,
		Fragment:       true,
	}
}

// refused makes an error of the reason why etcd ended the watch, which is the
// text of one of its own errors, code and all.
func (w *watch) refused(ctx context.Context, reason string) error {
	_, desc, found := strings.Cut(reason, "desc = ")
	if !found {
		desc = reason
	}
	err := rpctypes.Error(status.Error(codes.FailedPrecondition, desc))
	if w.tokens.refused(w.token, err) {
		return fmt.Errorf("%w: %w", errTokenEnded, err)
	}
	return w.explain(ctx, w.request(), err)
}

// receive hands on what the stream receives, until its end.
func receive(ctx context.Context, stream pb.Watch_WatchClient, messages chan<- message) {
	defer close(messages)
	for {
		resp, err := stream.Recv()
		select {
		case messages <- message{resp, err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// handle yields what m brings.
func (w *watch) handle(ctx context.Context, m message) error {
	switch {
	case m.err != nil:
		return m.err
	case m.CompactRevision != 0:
		return subnet.ErrCompacted
	case m.Canceled:
		return w.refused(ctx, m.CancelReason)
	case m.Created:
		// Not earlier: what was verified before the stream was opened might
		// be gone by then.
		err := w.verify(ctx)
		if w.verified = err == nil; !w.verified {
			return err
		}
		return w.emit(subnet.Batch{Revision: w.at})
	case m.Fragment:
		w.events = append(w.events, m.Events...)
		return nil
	case len(m.Events) == 0:
		return w.progress(m)
	}
	events := append(w.events, m.Events...)
	w.events = nil
	return w.deliver(events)
}

// proof is when the next one is due: when the stream has been quiet for a while,
// and now and then although it is not.
func (w *watch) proof() time.Time {
	last := w.proven
	if w.heard.After(last) {
		last = w.heard
	}
	next, late := last.Add(w.quiet), w.proven.Add(busyTicks*w.every)
	if late.Before(next) {
		return late
	}
	return next
}

// rest begins the time until the next proof. Hosts whose streams were opened
// together must not ask together for ever.
func (w *watch) rest() {
	w.proven = time.Now()
	w.quiet = w.every - time.Duration(rand.Float64()*tickJitter*float64(w.every))
}

// prove makes sure that the store is the same, and asks the stream for a sign of
// life. A stream that is not verified yet is about to be: it has a deadline of its own
// until then, and an etcd that takes so long has enough to do.
func (w *watch) prove(ctx context.Context, stream pb.Watch_WatchClient) error {
	if !w.verified {
		w.rest()
		return nil
	}
	if w.silent++; w.silent > 2 {
		return errStalled
	}
	w.rest()
	if err := w.verify(ctx); err != nil {
		return err
	}
	return stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
}

// verify reads, linearizably, whether the store is the one that we follow.
func (w *watch) verify(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, w.patience())
	defer cancel()
	questions := []clientv3.Op{clientv3.OpGet(w.identityKey)}
	if w.witness != nil {
		questions = append(questions, clientv3.OpGet(string(w.witness.Kv.Key)))
	}
	resp, err := w.client.Txn(ctx).Then(questions...).Commit()
	if err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	found := identityOf(answer(resp, 0))
	if w.identity == "" {
		w.identity = found
	}
	if found != w.identity || resp.Header.Revision < int64(w.at) {
		return subnet.ErrStoreChanged
	}
	if w.witness != nil && contradicts(answer(resp, 1), w.witness) {
		return subnet.ErrStoreChanged
	}
	return nil
}

// contradicts reports whether the key of an event, as it is now, cannot have come
// of it: keys only go on from there. One that is absent was deleted since.
func contradicts(now []*mvccpb.KeyValue, then *mvccpb.Event) bool {
	switch {
	case len(now) == 0:
		return false
	case then.Type == mvccpb.DELETE:
		return now[0].CreateRevision <= then.Kv.ModRevision
	default:
		return now[0].ModRevision < then.Kv.ModRevision
	}
}

// progress yields that the stream is alive. Answers to our requests may be ahead
// of events that they should be behind of (etcd issue 15220, fixed in 3.4.25 and
// 3.5.8), and so their revision is not believed; etcd's own notifications, sent
// in the order of events, are.
func (w *watch) progress(m message) error {
	if m.WatchId != streamWide {
		w.at = max(w.at, subnet.Revision(m.Header.Revision))
	}
	return w.emit(subnet.Batch{Revision: w.at})
}

func (w *watch) emit(b subnet.Batch) error {
	w.heard = time.Now()
	if !w.yield(b, nil) {
		return errStopped
	}
	return nil
}

// deliver yields events, which are in order and of whole revisions.
func (w *watch) deliver(events []*mvccpb.Event) error {
	for len(events) > 0 {
		rev := events[0].Kv.ModRevision
		n := 1
		for n < len(events) && events[n].Kv.ModRevision == rev {
			n++
		}
		if err := w.revision(subnet.Revision(rev), events[:n]); err != nil {
			return err
		}
		events = events[n:]
	}
	return nil
}

// revision yields what one revision changed of config and leases.
func (w *watch) revision(rev subnet.Revision, events []*mvccpb.Event) error {
	if rev <= w.at {
		return nil // Known: see open.
	}
	b := subnet.Batch{Revision: rev}
	var kvs []*mvccpb.KeyValue
	for _, e := range events {
		key := string(e.Kv.Key)
		name, isSubnet := strings.CutPrefix(key, w.subnets)
		deleted := e.Type == mvccpb.DELETE
		switch {
		case key == w.identityKey:
			// One that was deleted has no value.
			if w.identity != "" && w.identity != string(e.Kv.Value) {
				return subnet.ErrStoreChanged
			}
		case key == w.configKey && deleted:
			b.Config = &subnet.Document{}
		case key == w.configKey:
			b.Config = &subnet.Document{Text: string(e.Kv.Value), Modified: rev}
		case isSubnet && deleted:
			b.Deleted = append(b.Deleted, name)
		case isSubnet:
			kvs = append(kvs, e.Kv)
		}
	}
	w.at, w.witness = rev, events[len(events)-1]
	if b.Config == nil && len(b.Deleted)+len(kvs) == 0 {
		return nil
	}
	read := layout.Read(w.subnetsOf(kvs))
	b.Put, b.Bad = read.Leases, read.Bad
	return w.emit(b)
}
