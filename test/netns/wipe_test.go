package netns_test

import (
	"context"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// regained is how long hosts may take until all have their former subnets, once
// there is a config.
const regained = time.Minute

// Etcd loses everything under the traffic. The hosts hold on to what they have,
// wait for a person to put the config, and then have their subnets again.
func TestWipedEtcd(t *testing.T) {
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			l := newNetwork(t, 3, configs[b.name])
			startContainers(t, l)
			s := startSteady(t, l)
			if err := l.Cluster().Wipe(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			err := l.Each(within(t, noticed), func(ctx context.Context, h *lab.Host) error {
				_, err := h.WaitProblem(ctx, "config", "the network config is gone")
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			// Longer than peers are held after a deletion.
			pause(t, lasting(2*hold, 5*hold))
			if resp, err := l.Client().Get(within(t, time.Minute), lab.Prefix+"/", clientv3.WithPrefix()); err != nil || len(withoutStore(resp)) > 0 {
				t.Errorf("keys %v, %v: a daemon has put something before there was a config", withoutStore(resp), err)
			}
			putConfig(t, l, configs[b.name])
			s.regain(t)
			waitWell(t, l, regained)
			s.unharmed(t)
		})
	}
}

// withoutStore are the keys of an answer but the store's identity.
func withoutStore(resp *clientv3.GetResponse) []string {
	var keys []string
	for _, kv := range resp.Kvs {
		if string(kv.Key) != lab.Prefix+"/flanneld-go/store" {
			keys = append(keys, string(kv.Key))
		}
	}
	return keys
}

// regain waits until etcd says of every host that it has its former subnet.
func (s *steady) regain(t *testing.T) {
	t.Helper()
	began := time.Now()
	for _, h := range s.lab.Hosts {
		waitKey(t, s.lab, s.leaseKey(h), h, regained-time.Since(began))
	}
	t.Logf("every host has its former subnet after %s", time.Since(began))
}

// Etcd comes back as it was some time ago: one host's lease is not yet there,
// another's has been given back since.
func TestRestoredEtcd(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 3})
	putConfig(t, l, besideGhosts("vxlan"))
	late := l.Hosts[2]
	for _, h := range l.Hosts[:2] {
		if err := h.StartDaemon(); err != nil {
			t.Fatal(err)
		}
		if _, err := h.WaitSubnet(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	old := newGhost(201)
	if _, err := l.Client().Put(within(t, time.Minute), ghostKey(), old.value(t, "vxlan")); err != nil {
		t.Fatal(err)
	}
	if err := l.Cluster().Backup(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Client().Delete(within(t, time.Minute), ghostKey()); err != nil {
		t.Fatal(err)
	}
	if err := late.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	waitReady(t, l)
	startContainers(t, l)
	s := startSteady(t, l)
	if err := l.Cluster().Restore(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	s.regain(t)
	err := l.Each(within(t, noticed), func(ctx context.Context, h *lab.Host) error {
		_, err := h.WaitReady(ctx, 3)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range l.Hosts {
		if next, err := nextHost(h, ghostSubnet.Addr().Next()); err != nil || next != old.public {
			t.Errorf("%s sends to the host that is back by %v (%v), want %v", h.Name, next, err, old.public)
		}
	}
	// Nobody lets go of the rest later.
	pause(t, hold+holdSlack/3)
	s.unharmed(t)
}

// Behind the same address there is another cluster, with another network's past:
// its own identity, its own hosts, and one of our subnets in the hands of one
// of them. That host is believed, and all else stays.
func TestAnotherEtcd(t *testing.T) {
	l := newNetwork(t, 3, configs["vxlan"])
	startContainers(t, l)
	s := startSteady(t, l)
	loser := l.Hosts[0]
	lost, key := s.hosts[loser].subnet, s.leaseKey(loser)
	s.disregard(loser)
	if err := l.Cluster().Wipe(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	foreign := newGhost(202)
	_, err := l.Client().Txn(within(t, time.Minute)).Then(
		clientv3.OpPut(lab.Prefix+"/flanneld-go/store", "another"),
		clientv3.OpPut(lab.Prefix+"/config", configs["vxlan"]),
		clientv3.OpPut(key, foreign.value(t, "vxlan")),
	).Commit()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for _, h := range l.Hosts[1:] {
		waitKey(t, l, s.leaseKey(h), h, regained)
	}
	status, err := loser.WaitStatus(within(t, regained), "another subnet", func(st lab.Status) bool {
		return st.Ready && st.Lease.State == "valid" && st.Lease.Subnet != lost.String()
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s has %s in place of %s after %s", loser.Name, status.Lease.Subnet, lost, time.Since(began))
	if k, found := readKey(t, l, key); !found || k.attrs.Owner != subnet.NodeID("ghost-"+foreign.public.String()) {
		t.Errorf("the other host's key: found %t, %+v", found, k.attrs)
	}
	if env, err := loser.ReadSubnet(); err != nil || subnet.Subnet(env.Subnets).String() != status.Lease.Subnet {
		t.Errorf("subnet.env says %v (%v), the lease is %s", env.Subnets, err, status.Lease.Subnet)
	}
	for _, h := range l.Hosts[1:] {
		waitNextHost(t, h, lost[subnet.IPv4].Addr().Next(), foreign.public, follow)
	}
	// Nobody lets go of the rest later.
	pause(t, hold+holdSlack/3)
	s.unharmed(t)
}
