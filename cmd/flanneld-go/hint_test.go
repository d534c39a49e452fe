package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

const replacedHint = "wait, if that was meant: this host keeps the paths to its peers for 5m0s, and every host takes its former subnet again by itself; " +
	"if not, etcdctl --endpoints=http://192.0.2.10:2379 endpoint status --write-out=table shows which etcd answers"

// What to type follows from what is wrong with etcd.
func TestEtcdHint(t *testing.T) {
	const etcdctl = "etcdctl --endpoints=http://192.0.2.10:2379"
	denied := &etcdstore.Error{Op: "load", Kind: etcdstore.ErrAuth, Err: errors.New("permission denied")}
	tests := []struct {
		name, user string
		err        error
		want       string
	}{
		{"unreachable", "", &etcdstore.Error{Op: "load", Kind: etcdstore.ErrUnreachable, Err: errors.New("connection refused")}, etcdctl + " endpoint health"},
		{"anything", "", errors.New("out of luck"), etcdctl + " endpoint health"},
		{"a user is refused", "host", denied, etcdctl + " --user=host get /coreos.com/network/config asks for the password and tries it; " +
			"with --user=root, user get host --detail lists the user's rights"},
		{"a certificate is refused", "", denied, ""},
		{"compacted", "", fmt.Errorf("watch: %w", subnet.ErrCompacted), "wait: this host reads everything anew by itself"},
		{"replaced", "", fmt.Errorf("watch: %w", subnet.ErrStoreChanged), replacedHint},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				h.opts.leaseTTL, h.opts.etcd.Username = 5*time.Minute, tt.user
				h.data.OverwriteConfig(networkConfig)
				h.start()
				defer h.stop()
				h.ready()
				h.store.SetUnavailable(tt.err)
				h.eventually(soon, "the hint", func() bool {
					p := h.problem(status.ComponentEtcd)
					return strings.HasSuffix(p.Message, tt.err.Error()) && p.Hint == tt.want
				})
			})
		})
	}
}

// An etcd that was replaced or restored is called that, whether the host was there
// to see it or not.
func TestReplacedEtcdIsSaid(t *testing.T) {
	wipe := func(h *testHost, _ memstore.Snapshot) {
		h.data.Wipe()
		h.data.OverwriteConfig(networkConfig)
	}
	restore := func(h *testHost, backup memstore.Snapshot) { h.data.Restore(backup) }
	const running = `level=WARN msg=problem hint="` + replacedHint + `" component=etcd error="`
	const started = `level=WARN msg="etcd was replaced or restored while this host was down" hint="` + replacedHint + `"`
	tests := []struct {
		name    string
		stopped bool
		replace func(*testHost, memstore.Snapshot)
		said    string
	}{
		{"replaced", false, wipe, running},
		{"restored", false, restore, running},
		{"replaced while it was down", true, wipe, started},
		{"restored while it was down", true, restore, started},
		{"config lost while it was down", true, func(h *testHost, _ memstore.Snapshot) { h.data.Wipe() }, started},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				h.opts.leaseTTL = 5 * time.Minute
				h.data.OverwriteConfig(networkConfig)
				backup := h.data.Snapshot()
				h.start()
				h.ready()
				prefix, _ := h.subnet()
				if tt.stopped {
					h.stop()
				}
				tt.replace(h, backup)
				if tt.stopped {
					h.start()
				}
				defer h.stop()
				h.eventually(promise, "it is said", func() bool { return h.log.count(tt.said) == 1 })
				if n := h.log.count("endpoint health"); n > 0 {
					t.Errorf("%d lines doubt etcd's health", n)
				}
				if now, _ := h.subnet(); now != prefix {
					t.Errorf("subnet %s, before %s", now, prefix)
				}
			})
		})
	}
}

// A start with the etcd that the cache is of has nothing to say of it.
func TestSameEtcdIsNotSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(networkConfig)
		h.start()
		h.ready()
		h.stop()
		h.start()
		defer h.stop()
		h.ready()
		if n := h.log.count("replaced or restored"); n > 0 {
			t.Errorf("%d lines say that etcd was replaced", n)
		}
	})
}
