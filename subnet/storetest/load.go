package storetest

import (
	"fmt"
	"sync"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/internal/layout"
)

func loadCases() []testCase {
	return []testCase{
		{name: "Load gives an empty store an identity, once", run: loadEmpty},
		{name: "Load of many at once agrees on the identity", run: loadTogether},
		{name: "Load returns everything, sorted, the unreadable too", run: loadAll},
		{name: "Load reads at one revision while others write", own: true, run: loadAtOneRevision},
	}
}

func loadEmpty(e *env) {
	s := e.store()
	w := e.load(s)
	if w.Identity == "" || w.Revision == 0 {
		e.Errorf("identity %q at revision %d, want both", w.Identity, w.Revision)
	}
	e.diff("a store without anything", subnet.World{Identity: w.Identity, Revision: w.Revision}, w)
	if kv := e.get(layout.Identity); kv.Value != w.Identity || kv.Lease != 0 {
		e.Errorf("identity is stored as %+v, want %q without a lease", kv, w.Identity)
	}
	created := e.get(layout.Identity).Modified
	if again := e.load(e.store()); again.Identity != w.Identity {
		e.Errorf("another store loads identity %q, want %q", again.Identity, w.Identity)
	}
	if kv := e.get(layout.Identity); kv.Modified != created {
		e.Errorf("a second Load wrote the identity again")
	}
}

func loadTogether(e *env) {
	const hosts, rounds = 8, 10
	var stores [hosts]Store
	for i := range stores {
		stores[i] = e.store()
		e.load(stores[i]) // It is connected, and none will be late.
	}
	for range rounds {
		e.remove(layout.Identity)
		var got [hosts]subnet.World
		var errs [hosts]error
		var wg sync.WaitGroup
		for i, s := range stores {
			wg.Go(func() { got[i], errs[i] = s.Load(e.ctx) })
		}
		wg.Wait()
		for i := range hosts {
			e.ok(errs[i])
			if got[i].Identity != got[0].Identity {
				e.Fatalf("host %d loads identity %q, host 0 %q", i, got[i].Identity, got[0].Identity)
			}
		}
	}
}

func loadAll(e *env) {
	s, w := e.seeded()
	both := dual("10.5.1.0/24", "fd05:0:0:52::/64")
	leased := e.create(s, host(1, both), long, w)
	reserved := e.create(s, host(2, v4("10.5.9.0/24")), 0, w)
	id := e.grant(long)
	foreign := subnet.Lease{Subnet: v4("10.5.20.0/24"), Attrs: flannelAttrs("192.0.2.20"), ID: id}
	foreign.Created = e.put(KV{Path: path(foreign.Subnet), Value: flannel("192.0.2.19"), Lease: id})
	foreign.Modified = e.put(KV{Path: path(foreign.Subnet), Value: flannel("192.0.2.20"), Lease: id})
	bad := []subnet.BadKey{
		{Key: "10.5.3.0-24", Occupies: v4("10.5.3.0/24"), Err: errUnread},
		{Key: "10.5.4.7-24", Occupies: v4("10.5.4.0/24"), Err: errUnread},
		{Key: "10.5.5.0-24&fd05:0:0:5::-64", Occupies: dual("10.5.5.0/24", "fd05:0:0:5::/64"), Err: errUnread},
		{Key: "README", Err: errUnread},
	}
	values := []string{`{"PublicIP":`, flannel("192.0.2.4"), `{"PublicIP":"nobody"}`, flannel("192.0.2.5")}
	for i := range bad {
		bad[i].Modified = e.put(KV{Path: layout.Subnets + bad[i].Key, Value: values[i]})
	}
	last := e.put(KV{Path: "flanneld-go/unknown", Value: "to whomever"})

	want := subnet.World{
		Identity: w.Identity,
		Revision: last,
		Config:   subnet.Document{Text: configText, Modified: e.get(layout.Config).Modified},
		Leases:   []subnet.Lease{asListed(leased), foreign, asListed(reserved)},
		Bad:      bad,
	}
	got := e.load(s)
	if got.Revision < want.Revision {
		e.Errorf("revision %d, want at least that of the last write, %d", got.Revision, want.Revision)
	}
	want.Revision = got.Revision // A shared server has other writers.
	e.diff("Load", want, got)
}

// Config and key are written in turns, the config first. At no revision is the
// key ahead of the config, or more than one write behind it; a reader that asks
// twice finds it so.
func loadAtOneRevision(e *env) {
	const writes = 200
	const turn = 10 * time.Microsecond // Lets the other one have its turn.
	key := v4("10.5.1.0/24")
	e.put(KV{Path: layout.Config, Value: "0"}, KV{Path: path(key), Value: flannel("192.0.2.0")})
	s := e.store()
	born := e.load(s).Revision
	var writer sync.WaitGroup
	defer writer.Wait()
	writer.Go(func() {
		for i := 1; i <= writes; i++ {
			if _, err := e.Put(e.ctx, KV{Path: layout.Config, Value: fmt.Sprint(i)}); err != nil {
				e.Errorf("put config: %v", err)
			}
			if _, err := e.Put(e.ctx, KV{Path: path(key), Value: flannel(fmt.Sprintf("192.0.2.%d", i))}); err != nil {
				e.Errorf("put key: %v", err)
			}
			e.pause(turn)
		}
	})
	for done := false; !done; {
		w := e.load(s)
		if len(w.Leases) != 1 {
			e.Fatalf("%d leases, want 1", len(w.Leases))
		}
		var config int
		if _, err := fmt.Sscan(w.Config.Text, &config); err != nil {
			e.Fatal(err)
		}
		lease := int(w.Leases[0].Attrs.PublicIP[subnet.IPv4].As4()[3])
		if lease != config && lease != config-1 {
			e.Errorf("config of write %d beside the key of write %d", config, lease)
		}
		if newest := max(born, w.Config.Modified, w.Leases[0].Modified); w.Revision != newest {
			e.Errorf("revision %d, want that of the newest key in it, %d", w.Revision, newest)
		}
		done = config == writes && lease == writes || e.Failed()
		e.pause(turn)
	}
}
