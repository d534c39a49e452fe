package netns_test

import (
	"context"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// Somebody takes a host's lease away, in every way there is but to give it to
// another: the host has it back before its peers let go, which would lose packets.
func TestLeaseTakenAway(t *testing.T) {
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			l := newNetwork(t, 2, configs[b.name])
			startContainers(t, l)
			for _, tc := range []struct {
				name string
				take func(context.Context, *clientv3.Client, string, kept) error
				// bare: the key has become a reservation and stays one.
				bare bool
			}{
				{name: "key deleted", take: func(ctx context.Context, c *clientv3.Client, key string, _ kept) error {
					_, err := c.Delete(ctx, key)
					return err
				}},
				{name: "lease revoked", take: func(ctx context.Context, c *clientv3.Client, _ string, k kept) error {
					_, err := c.Revoke(ctx, k.lease)
					return err
				}},
				{name: "overwritten as flannel does", take: func(ctx context.Context, c *clientv3.Client, key string, k kept) error {
					k.attrs.Owner, k.attrs.Instance = "", ""
					_, err := c.Put(ctx, key, valueOf(t, k.attrs), clientv3.WithLease(k.lease))
					return err
				}},
				{name: "detached", bare: true, take: func(ctx context.Context, c *clientv3.Client, key string, k kept) error {
					_, err := c.Put(ctx, key, valueOf(t, k.attrs))
					return err
				}},
			} {
				t.Run(tc.name, func(t *testing.T) {
					s := startSteady(t, l)
					h := l.Hosts[0]
					key := s.leaseKey(h)
					before, _ := readKey(t, l, key)
					began := time.Now()
					if err := tc.take(within(t, time.Minute), l.Client(), key, before); err != nil {
						t.Fatal(err)
					}
					after := waitAttrs(t, l, key, before.attrs, follow)
					t.Logf("the key is as before after %s", time.Since(began))
					if (after.lease == 0) != tc.bare {
						t.Errorf("the key hangs on lease %x, bare: %t wanted", after.lease, tc.bare)
					}
					// Nobody lets go later.
					pause(t, hold+holdSlack/3)
					waitWell(t, l, time.Minute)
					s.unharmed(t)
				})
			}
		})
	}
}

// A peer comes back right after its path was taken away, together with what takes a whole
// round, and then as another process: its packets are let in again. They were dropped as
// forged for as long as the firewall waited for the round of the path's end, and longer.
func TestBackRightAfterItsPathEnded(t *testing.T) {
	t.Parallel()
	l := newNetwork(t, 2, configs["vxlan"])
	startContainers(t, l)
	waitWell(t, l, time.Minute)
	looking, away := l.Hosts[0], l.Hosts[1]
	key := subnetKey(standingOf(t, away).subnet)
	before, _ := readKey(t, l, key)
	// It would take its key again by itself.
	if err := away.Daemon.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	c := l.Client()
	commit := func(ops ...clientv3.Op) {
		t.Helper()
		if _, err := c.Txn(within(t, time.Minute)).Then(ops...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	config := lab.Prefix + "/config"
	commit(clientv3.OpDelete(key))
	pause(t, hold-100*time.Millisecond)
	commit(clientv3.OpPut(config, configs["vxlan"]+" ")) // rounds are not free: the next one has to wait
	pause(t, 200*time.Millisecond)
	commit(clientv3.OpPut(config, configs["vxlan"]), clientv3.OpPut(key, valueOf(t, before.attrs), clientv3.WithLease(before.lease)))
	pause(t, 30*time.Millisecond)
	another := before.attrs
	another.Instance = "0123456789abcdef"
	commit(clientv3.OpPut(key, valueOf(t, another), clientv3.WithLease(before.lease)))
	returned := time.Now()
	if err := looking.Container.WaitPing(within(t, follow), away.Container.Addr()); err != nil {
		t.Errorf("no answer since its key is back: %v", err)
	}
	t.Logf("answers after %s", time.Since(returned))
	if err := away.Daemon.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

func valueOf(t *testing.T, a subnet.Attrs) string {
	t.Helper()
	text, err := a.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// waitAttrs waits until a key has a value.
func waitAttrs(t *testing.T, l *lab.Lab, key string, want subnet.Attrs, d time.Duration) kept {
	t.Helper()
	for began := time.Now(); ; pause(t, time.Millisecond) {
		k, found := readKey(t, l, key)
		switch {
		case found && k.attrs == want:
			return k
		case time.Since(began) > d:
			t.Fatalf("%s after %s: found %t, %+v, want %+v", key, d, found, k.attrs, want)
		}
	}
}
