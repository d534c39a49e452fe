package subnet_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const config = `{"Network":"10.5.0.0/16"}`

var errDown = errors.New("etcd is down")

// bubbleClock runs on the time of a synctest bubble, and can fall asleep.
type bubbleClock struct {
	start time.Time
	slept atomic.Int64
}

func newClock() *bubbleClock { return &bubbleClock{start: time.Now()} }

func (c *bubbleClock) Now() time.Time { return time.Now() }

func (c *bubbleClock) Uptime() time.Duration {
	return time.Since(c.start) + time.Duration(c.slept.Load())
}

// Timer fires early like the real one's, since timers sleep with the machine.
func (c *bubbleClock) Timer(d time.Duration) subnet.Timer {
	t := time.NewTimer(min(d, 10*time.Second))
	return subnet.Timer{C: t.C, Stop: func() { t.Stop() }}
}

// suspend lets time pass that no timer notices.
func (c *bubbleClock) suspend(d time.Duration) { c.slept.Add(int64(d)) }

func addr4(s string) subnet.ByFamily[netip.Addr] {
	return subnet.ByFamily[netip.Addr]{subnet.IPv4: netip.MustParseAddr(s)}
}

func claim(node, ip string) subnet.Claim {
	return subnet.Claim{Node: subnet.NodeID(node), Instance: node + "-1", Clock: newClock(), Attrs: subnet.Attrs{PublicIP: addr4(ip), BackendType: "vxlan", BackendData: subnet.ByFamily[subnet.RawJSON]{`{"VNI":1}`}}}
}

// leasesOf are copies of a snapshot's leases.
func leasesOf(s *subnet.Snapshot) []subnet.Lease {
	var all []subnet.Lease
	for l := range s.Leases() {
		all = append(all, *l)
	}
	return all
}

func sub(t testing.TB, key string) subnet.Subnet {
	t.Helper()
	s, err := subnet.ParseSubnet(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func load(t testing.TB, s subnet.Store) subnet.World {
	t.Helper()
	w, err := s.Load(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func newStore(text string) *memstore.Store {
	s := memstore.New(memstore.Options{})
	if text != "" {
		s.OverwriteConfig(text)
	}
	return s
}

// put writes a lease as another host would, without any compare.
func put(t testing.TB, s *memstore.Store, key string, a subnet.Attrs, ttl time.Duration) subnet.LeaseID {
	t.Helper()
	value, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	var id subnet.LeaseID
	if ttl > 0 {
		id = s.Grant(ttl)
	}
	if _, err := s.Put(key, string(value), id); err != nil {
		t.Fatal(err)
	}
	return id
}

// stored returns the lease of a key; false: there is none.
func stored(t testing.TB, s subnet.Store, key string) (subnet.Lease, bool) {
	t.Helper()
	for _, l := range load(t, s).Leases {
		if l.Subnet.Key() == key {
			return l, true
		}
	}
	return subnet.Lease{}, false
}

func acquire(t testing.TB, s subnet.Store, c subnet.Claim) subnet.Lease {
	t.Helper()
	l, err := subnet.Acquire(context.Background(), s, load(t, s), c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// after lets time pass in a bubble, until everything has come to rest.
func after(d time.Duration) {
	timer := time.NewTimer(d)
	<-timer.C
	synctest.Wait()
}
