package robustness

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
)

// Members tell the same log in pieces, some late, some twice, each of their
// streams from where the journal was when it opened. The journal is the log.
func TestJournalIsWhatTheMembersTell(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		log := drawLog(t)
		j := &journal{prefix: "/p/", base: firstRevision, at: firstRevision}
		type stream struct{ next int } // an index of log
		streams := make([]stream, rapid.IntRange(1, 3).Draw(t, "members"))
		for j.at < int64(len(log)+1) {
			s := &streams[rapid.IntRange(0, len(streams)-1).Draw(t, "member")]
			if rapid.IntRange(0, 4).Draw(t, "reopen") == 0 {
				s.next = int(j.at) - 1
			}
			end := min(len(log), s.next+rapid.IntRange(0, 3).Draw(t, "revisions"))
			if err := j.add(slices.Concat(log[s.next:end]...), 0); err != nil {
				t.Fatal(err)
			}
			s.next = end
		}
		var want []Event
		for _, events := range log {
			for _, e := range events {
				if key, ours := strings.CutPrefix(string(e.Kv.Key), "/p/"); ours {
					want = append(want, eventOf(key, e.Kv, e.Type == mvccpb.DELETE, 0))
				}
			}
		}
		if diff := cmp.Diff(want, j.events()); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	})
}

// drawLog draws the events of revisions 2, 3, and so on.
func drawLog(t *rapid.T) [][]*mvccpb.Event {
	var log [][]*mvccpb.Event
	for revision := range int64(rapid.IntRange(0, 20).Draw(t, "revisions")) {
		var events []*mvccpb.Event
		for _, key := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"/p/a", "/p/b", "/other"}), 1, 2, rapid.ID[string]).Draw(t, "keys") {
			events = append(events, event(revision+2, key, rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "value")))
		}
		log = append(log, events)
	}
	return log
}

// event is a put, or with no value a deletion.
func event(revision int64, key, value string) *mvccpb.Event {
	e := &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), ModRevision: revision}}
	if value == "" {
		e.Type = mvccpb.DELETE
	}
	return e
}

func TestJournalRefuses(t *testing.T) {
	for _, tc := range []struct {
		name string
		told []*mvccpb.Event
		want error
	}{
		{"the next revision", []*mvccpb.Event{event(4, "/p/a", "4")}, nil},
		{"a revision that is not the next", []*mvccpb.Event{event(5, "/p/a", "5")}, errGap},
		{"the same again", []*mvccpb.Event{event(2, "/p/a", "2"), event(3, "/p/b", "3")}, nil},
		{"another value", []*mvccpb.Event{event(2, "/p/a", "x")}, errDiverged},
		{"a deletion instead", []*mvccpb.Event{event(3, "/p/b", "")}, errDiverged},
		{"something more", []*mvccpb.Event{event(3, "/p/b", "3"), event(3, "/p/c", "3")}, errDiverged},
		{"something less", []*mvccpb.Event{event(3, "/other", "3")}, errDiverged},
	} {
		t.Run(tc.name, func(t *testing.T) {
			j := &journal{prefix: "/p/", base: firstRevision, at: firstRevision}
			if err := j.add([]*mvccpb.Event{event(2, "/p/a", "2"), event(3, "/p/b", "3")}, 0); err != nil {
				t.Fatal(err)
			}
			if err := j.add(tc.told, 0); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

// observed is a history of a single etcd on a clock that counts calls.
type observed struct {
	t      *testing.T
	server *etcdtest.Server
	client *clientv3.Client
	*history
}

func observe(t *testing.T, opts ...grpc.DialOption) *observed {
	t.Helper()
	s, err := etcdtest.Start(t.Context(), etcdtest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	client, err := clientv3.New(clientv3.Config{Endpoints: s.Endpoints(), Logger: zap.NewNop(), DialOptions: opts})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	began := time.Now()
	h := newHistory(func() time.Duration { return time.Since(began) }, "/p", []*clientv3.Client{client})
	t.Cleanup(func() { h.close() })
	return &observed{t, s, client, h}
}

// do carries out a step of a test, which must succeed within a while.
func (o *observed) do(what string, f func(context.Context) error) {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), time.Minute)
	defer cancel()
	if err := f(ctx); err != nil {
		o.t.Fatalf("%s: %v", what, err)
	}
}

// put writes a key and returns the revision.
func (o *observed) put(key, value string, opts ...clientv3.OpOption) (revision int64) {
	o.t.Helper()
	o.do("put "+key, func(ctx context.Context) error {
		resp, err := o.client.Put(ctx, key, value, opts...)
		if err == nil {
			revision = resp.Header.Revision
		}
		return err
	})
	return revision
}

func (o *observed) delete(key string) {
	o.t.Helper()
	o.do("delete "+key, func(ctx context.Context) error {
		_, err := o.client.Delete(ctx, key)
		return err
	})
}

func (o *observed) beginEpoch(why string) {
	o.t.Helper()
	o.do("begin", func(ctx context.Context) error { return o.begin(ctx, why) })
}

func (o *observed) endEpoch() { o.t.Helper(); o.do("end", o.end) }

// expect compares the epochs, each event in short.
func (o *observed) expect(want ...string) {
	o.t.Helper()
	epochs, err := o.close()
	if err != nil {
		o.t.Fatal(err)
	}
	var got []string
	for _, e := range epochs {
		text := e.Why + ":"
		for _, b := range e.Base {
			text += fmt.Sprintf(" [%s=%s]", b.Key, b.Value)
		}
		for _, ev := range e.Events {
			if ev.At < e.Began {
				o.t.Errorf("%s was received at %s, before the epoch began at %s", ev.Key, ev.At, e.Began)
			}
			mark := "="
			if ev.Operator {
				mark = "=!"
			}
			if ev.Deleted {
				mark = "-"
			}
			text += " " + ev.Key + mark + ev.Value
		}
		got = append(got, text)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		o.t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestHistory(t *testing.T) {
	o := observe(t)
	o.put("/p/config", "1")
	o.beginEpoch(whyStart)
	o.byOperator(o.put("/p/config", "2"))
	o.put("/elsewhere", "x")
	var lease *clientv3.LeaseGrantResponse
	o.do("grant", func(ctx context.Context) (err error) {
		lease, err = o.client.Grant(ctx, 60)
		return err
	})
	created := o.put("/p/subnets/a", "1", clientv3.WithLease(lease.ID))
	updated := o.put("/p/subnets/a", "2", clientv3.WithLease(lease.ID))
	o.do("restart", o.server.Restart)
	o.do("revoke", func(ctx context.Context) error {
		_, err := o.client.Revoke(ctx, lease.ID)
		return err
	})
	o.endEpoch()
	if keys := o.keys(); len(keys) != 1 || keys[0].Value != "2" {
		t.Errorf("the keys are now %v, want the config alone", keys)
	}
	e := o.last().events()[3]
	if int64(e.Lease) != int64(lease.ID) || int64(e.Created) != created || int64(e.Revision) != updated {
		t.Errorf("the updated key is %+v, want lease %d, created at %d, revision %d", e, lease.ID, created, updated)
	}
	o.expect("start: config=1 config=!2 subnets/a=1 subnets/a=2 subnets/a-")
}

// What a member holds back until the very end must not be missing.
func TestHistoryEndsComplete(t *testing.T) {
	told := make(chan struct{})
	late := func(ctx context.Context, d *grpc.StreamDesc, c *grpc.ClientConn, method string, s grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		<-told
		return s(ctx, d, c, method, opts...)
	}
	o := observe(t, grpc.WithChainStreamInterceptor(late))
	o.beginEpoch(whyStart)
	want := "start:"
	for i := range 200 {
		o.put("/p/a", fmt.Sprint(i))
		want += fmt.Sprintf(" a=%d", i)
	}
	time.AfterFunc(200*time.Millisecond, func() { close(told) })
	o.endEpoch()
	o.expect(want)
}

func TestHistoryOfAWipedStore(t *testing.T) {
	o := observe(t)
	o.beginEpoch(whyStart)
	for i := range 3 {
		o.put("/p/a", fmt.Sprint(i))
	}
	o.endEpoch()
	o.do("wipe", o.server.Wipe)
	// Hosts are faster than the run.
	for i := range 5 {
		o.put("/p/b", fmt.Sprint(i))
	}
	pause(t, 5*reopenPause) // Nobody may take this for the first epoch's.
	o.beginEpoch(whyWipe)
	o.put("/p/a", "last")
	o.endEpoch()
	o.expect("start: a=0 a=1 a=2", "wipe: b=0 b=1 b=2 b=3 b=4 a=last")
}

func TestHistoryOfARestoredStore(t *testing.T) {
	for _, compact := range []bool{false, true} {
		t.Run(fmt.Sprintf("compacted %v", compact), func(t *testing.T) {
			o := observe(t)
			o.beginEpoch(whyStart)
			o.put("/p/a", "1")
			o.put("/p/b", "1")
			last := o.put("/p/a", "2")
			if compact {
				// What nobody had received would be gone, rightly so.
				o.do("catch up", func(ctx context.Context) error { return o.catchUp(ctx, o.last()) })
				o.do("compact", func(ctx context.Context) error {
					_, err := o.client.Compact(ctx, last, clientv3.WithCompactPhysical())
					return err
				})
			}
			o.do("rewind", func(ctx context.Context) error {
				return o.server.Rewind(ctx, func() error {
					o.put("/p/c", "lost")
					o.delete("/p/a")
					o.endEpoch()
					return nil
				})
			})
			o.put("/p/d", "early")
			o.delete("/p/d")
			o.beginEpoch(whyRestore)
			o.put("/p/a", "3")
			o.endEpoch()
			o.expect("start: a=1 b=1 a=2 c=lost a-", "restore: [b=1] [a=2] d=early d- a=3")
		})
	}
}

// A log that nobody received and that is compacted away is an error.
func TestHistoryWithAGap(t *testing.T) {
	o := observe(t)
	for i := range 5 {
		o.put("/p/a", fmt.Sprint(i))
	}
	o.do("compact", func(ctx context.Context) error {
		_, err := o.client.Compact(ctx, 5)
		return err
	})
	o.beginEpoch(whyStart)
	var compacted *compactedError
	o.do("hear of it", func(ctx context.Context) error {
		return poll(ctx, func() bool { return errors.As(o.troubles(nil), &compacted) })
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := o.end(ctx); !errors.As(err, &compacted) || compacted.revision != 5 {
		t.Errorf("got %v, want that the log is compacted up to 5", err)
	}
}

func TestHistoryOfADeadStore(t *testing.T) {
	o := observe(t)
	o.beginEpoch(whyStart)
	o.put("/p/a", "1")
	if err := o.server.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := o.end(t.Context()); err == nil {
		t.Error("an epoch ends although nobody says what was in it")
	}
}
