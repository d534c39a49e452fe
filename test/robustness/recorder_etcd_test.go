package robustness

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// Whatever happens to the members, the record has every revision once.
func TestRecordOfACluster(t *testing.T) {
	r := newRecorded(t, 1, 3)
	var want []string
	n := 0
	write := func() {
		n++
		r.put("config", fmt.Sprint(n))
		want = append(want, fmt.Sprintf("config=%d", n))
	}
	members := r.cluster.Members
	write()
	for range members { // Each of them leads, or is told from, in turn.
		leader := r.leader()
		r.must(leader.Kill())
		r.leader() // A request that is under way in an election may or may not have been carried out.
		write()
		r.must(leader.Start(within(t, time.Minute)))
		r.must(r.cluster.WaitHealthy(within(t, time.Minute)))
		write()
	}
	r.must(members[0].Pause())
	r.leader()
	write()
	r.must(members[0].Resume())

	// The log goes while a member that is behind is told from no more.
	r.must(members[1].Kill())
	r.leader()
	for range 20 {
		write()
	}
	_, err := r.Client().Compact(within(t, time.Minute), r.revision(), clientv3.WithCompactPhysical())
	r.must(err)
	r.must(members[1].Start(within(t, time.Minute)))
	r.must(r.cluster.WaitHealthy(within(t, time.Minute)))

	// The majority goes, and what follows is told by who is left.
	r.must(r.cluster.Backup(within(t, time.Minute)))
	write()
	r.told(members[2], want[len(want)-1])
	r.must(members[0].Kill())
	r.must(members[1].Kill())
	pause(t, 2*time.Second)
	r.must(r.endEpoch(within(t, time.Minute)))
	r.must(r.cluster.Restore(within(t, time.Minute)))
	r.must(r.beginEpoch(within(t, time.Minute), whyRestore))
	base := want[len(want)-2]
	r.put("config", "restored")

	r.must(r.endEpoch(within(t, time.Minute)))
	r.must(r.cluster.Wipe(within(t, time.Minute)))
	r.must(r.beginEpoch(within(t, time.Minute), whyWipe))
	r.put("config", "wiped")
	record, err := r.stop(within(t, time.Minute))
	r.must(err)

	expectation{t, record}.epochs(whyStart, whyRestore, whyWipe)
	var got [][]string
	for _, epoch := range record.Epochs {
		var events []string
		for _, e := range append(epoch.Base, epoch.Events...) {
			events = append(events, e.Key+"="+e.Value)
		}
		got = append(got, events)
	}
	if diff := cmp.Diff([][]string{want, {base, "config=restored"}, {"config=wiped"}}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// told waits until a member itself has an event, which the others may have before it.
func (r *recorded) told(m *lab.Member, event string) {
	r.t.Helper()
	key, value, _ := strings.Cut(event, "=")
	r.must(poll(within(r.t, time.Minute), func() bool {
		resp, err := m.Client().Get(within(r.t, askWithin), lab.Prefix+"/"+key, clientv3.WithSerializable())
		return err == nil && len(resp.Kvs) == 1 && string(resp.Kvs[0].Value) == value
	}))
}

// leader waits for one.
func (r *recorded) leader() *lab.Member {
	r.t.Helper()
	leader, err := r.cluster.Leader(within(r.t, time.Minute))
	r.must(err)
	return leader
}

// revision is that of the store now.
func (r *recorded) revision() int64 {
	r.t.Helper()
	revision, err := r.history.revision(within(r.t, time.Minute))
	r.must(err)
	return revision
}

// What etcd did while nobody could be told is an error, not a short record.
func TestRecordWithoutEtcd(t *testing.T) {
	r := newRecorded(t, 1, 1)
	r.put("config", "1")
	r.must(r.cluster.Stop(within(t, time.Minute)))
	record, err := r.stop(within(t, time.Minute))
	if err == nil || !strings.Contains(err.Error(), "no member tells its revision") {
		t.Errorf("got %v, want that nobody tells the revision", err)
	}
	if len(record.Epochs) != 1 || len(record.Samples) == 0 {
		t.Errorf("%d epochs and %d samples beside the error", len(record.Epochs), len(record.Samples))
	}
}

// Containers that were made anew are pinged anew; the others go on.
func TestRecordOfNewContainers(t *testing.T) {
	r := newRecorded(t, 3, 1)
	r.put("config", `{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}`)
	for _, h := range r.Hosts {
		r.launch(h)
	}
	r.connect()
	third := r.Hosts[2]
	ctx := within(t, time.Minute)
	r.must(third.StopContainer())
	r.must(r.retarget(ctx, third))
	env, err := third.WaitSubnet(ctx)
	r.must(err)
	r.must(third.StartContainer(env))
	r.must(r.retarget(ctx, third))
	pause(t, 200*time.Millisecond)
	record, err := r.stop(ctx)
	r.must(err)
	entries := map[string]int{}
	for _, p := range record.Pairs {
		entries[p.From+" -> "+p.To]++
		if p.Sent == 0 || len(p.Lost) > p.Sent {
			t.Errorf("%s -> %s: %d of %d lost", p.From, p.To, len(p.Lost), p.Sent)
		}
	}
	want := map[string]int{"h1 -> h2": 1, "h2 -> h1": 1, "h1 -> h3": 2, "h3 -> h1": 2, "h2 -> h3": 2, "h3 -> h2": 2}
	if diff := cmp.Diff(want, entries); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}

// A host that cannot be read is an error, not a host that stands still.
func TestRecordOfAnUnreadableHost(t *testing.T) {
	r := newRecorded(t, 1, 1)
	// A folder stands where the file should.
	_, err := r.Hosts[0].Run(t.Context(), "mkdir", r.Hosts[0].SubnetFile())
	r.must(err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = r.samplers.Wait() // stop returns it
	}()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("h1 is sampled all the same")
	}
	if _, err := r.stop(within(t, time.Minute)); err == nil || !strings.Contains(err.Error(), "sample h1") {
		t.Errorf("got %v, want that h1 cannot be sampled", err)
	}
}
