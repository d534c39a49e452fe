package netns_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// Etcd goes away under the traffic, whole or all but one member, and comes back:
// for the containers nothing has happened.
func TestOutageLosesNothing(t *testing.T) {
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			l := newClusterLab(t, lab.Options{Hosts: 3})
			putConfig(t, l, configs[b.name])
			startDaemons(t, l)
			startContainers(t, l)
			waitWell(t, l, time.Minute)
			c := l.Cluster()
			if b.name == "vxlan" {
				t.Run("majority lost", func(t *testing.T) {
					outage(t, l, func() error { return errors.Join(c.Members[0].Kill(), c.Members[2].Kill()) })
				})
			}
			t.Run("all stopped", func(t *testing.T) {
				outage(t, l, func() error { return c.Stop(within(t, time.Minute)) })
			})
		})
	}
}

// outage breaks etcd for a while.
func outage(t *testing.T, l *lab.Lab, breakEtcd func() error) {
	t.Helper()
	s := startSteady(t, l)
	began := time.Now()
	if err := breakEtcd(); err != nil {
		t.Fatal(err)
	}
	err := l.Each(within(t, noticed), func(ctx context.Context, h *lab.Host) error {
		_, err := h.WaitProblem(ctx, "etcd", "")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("noticed by all after %s", time.Since(began))
	pause(t, lasting(10*time.Second, 60*time.Second)-time.Since(began))
	if err := l.Cluster().Start(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	waitWell(t, l, time.Minute)
	s.unharmed(t)
}

// noticed is how long a host may take to notice that etcd is silent.
const noticed = time.Minute
