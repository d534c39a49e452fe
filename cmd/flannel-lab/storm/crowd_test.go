package storm

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
)

// proofs is how many requests a host makes as time goes by: every 6 s at the most its
// watch asks etcd whether it is the same, and for a sign of life.
func proofs(took time.Duration) float64 {
	const each, every = 2, 6 * time.Second
	return each * took.Seconds() / every.Seconds()
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// checkBoot tests what is promised of a boot.
func checkBoot(t *testing.T, boot Phase) {
	t.Helper()
	if _, err := page.Missed(Report{Phases: []Phase{boot}}.Claims(), false); err != nil {
		t.Errorf("%v; %d got no answer in time", err, boot.Retries)
	}
	// Fewer than these were not all counted.
	if boot.Start < 4.5 {
		t.Errorf("%.2f requests of each host: not all were counted", boot.Start)
	}
}

// What every host costs etcd is a promise (docs/scale.md), and holds for 200 as it
// does for thousands: one load, one grant, one transaction, one watch and the proof
// that it is of the same store.
func TestTwoHundredHostsAtOnce(t *testing.T) {
	const hosts = 200
	// How long it takes is the machine's affair.
	ctx := t.Context()
	server, err := etcdtest.Start(ctx, etcdtest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	phases, err := Crowd(ctx, server, Options{
		Hosts: hosts, Rate: 20, Churn: 2 * time.Second, Down: 7 * time.Second, Progress: t.Output(),
	})
	if err != nil {
		t.Fatal(err)
	}
	found, slow := map[string]Counts{}, 0.0
	for _, p := range phases {
		slow = max(slow, proofs(p.Took))
		t.Logf("%s: %+v, at most %.0f requests in a second", p.Title, p.Counts, p.Peak)
		found[p.Title] = p.Counts
	}
	// A request more than each host needs would be twice as many. Some are
	// repeated where the machine is slow, and proofs come with time.
	const some = 0.3
	boot := found["all boot at once"]
	checkBoot(t, phases[0])
	// Some are just connecting again, where the machine is slow, and etcd may count what
	// they had before until it has seen to its end.
	if boot.Streams > 1.2*hosts || boot.Streams < 0.8*hosts {
		t.Errorf("%g watch streams after the boot, want one per host", boot.Streams)
	}
	for kind, each := range map[string]float64{"Txn": 3, "LeaseGrant": 1, "Watch": 1, "LeaseKeepAlive": 0, "Range": 0} {
		got := boot.Requests[kind] / hosts
		if got < each || got > each+some+slow {
			t.Errorf("%.2f requests of kind %s per host at the boot, want %g", got, kind, each)
		}
	}
	// A watch to go on with, the proof that it is of the same store, and the load
	// that shows what a watch cannot, with another watch after it.
	back := found["etcd is back"].All() + found["the full loads that follow"].All()
	if each := back / hosts; each < 2.5 || each > 7+2*slow {
		t.Errorf("%.1f requests of each host after etcd was away, want 3 to 7, a load among them", each)
	}
	if each := found["etcd is back and has compacted its log"].All() / hosts; each < 2 || each > 8+slow {
		t.Errorf("%.1f requests of each host after a compaction, want 2 to 8", each)
	}
}
