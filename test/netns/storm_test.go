package netns_test

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// stormHosts start at once in a network that has exactly as many subnets, so
// that they race for the same ones and the last one finds one left.
const (
	stormHosts = 64
	// maxStormRequests leaves room for a lost race with everybody else.
	maxStormRequests = 2 * stormHosts
	stormConfig      = `{"Network":"10.5.0.0/18","SubnetMin":"10.5.0.0","Backend":{"Type":"vxlan"}}`
)

func TestSixtyFourDaemonsAtOnce(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: stormHosts})
	putConfig(t, l, stormConfig)
	began := time.Now()
	startDaemons(t, l)
	var (
		mu     sync.Mutex
		owners = map[netip.Prefix]string{}
	)
	err := l.Each(within(t, 3*time.Minute), func(ctx context.Context, h *lab.Host) error {
		env, err := h.WaitSubnet(ctx)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if other, taken := owners[env.Subnets[0]]; taken {
			t.Errorf("%s and %s both have %s", other, h.Name, env.Subnets[0])
		}
		owners[env.Subnets[0]] = h.Name
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d leases after %s", len(owners), time.Since(began))
	waitReady(t, l)
	t.Logf("everybody has a path to everybody after %s", time.Since(began))
	var requests []uint64
	for _, h := range l.Hosts {
		// Asking for its status fails if the daemon has ended.
		st, err := h.Status(within(t, time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		requests = append(requests, st.Etcd.Traffic.Requests)
	}
	slices.Sort(requests)
	most := requests[len(requests)-1]
	t.Logf("requests to etcd until then, by host: least %d, median %d, most %d", requests[0], requests[len(requests)/2], most)
	if most > maxStormRequests {
		t.Errorf("a host sent %d requests to etcd, want at most %d", most, maxStormRequests)
	}
	for _, h := range l.Hosts[1:] {
		to, err := l.Hosts[0].ReadSubnet()
		if err != nil {
			t.Fatal(err)
		}
		if next, err := nextHost(h, to.Subnets[0].Addr().Next()); err != nil || next != l.Hosts[0].Addrs[0].Addr() {
			t.Errorf("%s sends to %s by %v (%v), want %v", h.Name, to.Subnets[0], next, err, l.Hosts[0].Addrs[0].Addr())
		}
	}
}
