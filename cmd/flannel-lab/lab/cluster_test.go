package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// buildSelf builds flannel-lab, which runs etcd's members: this executable is a
// test.
var buildSelf = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "flannel-lab-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "flannel-lab")
	if out, err := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "..").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build flannel-lab: %w\n%s", err, out)
	}
	return path, nil
})

// within is a context for one wait.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), d, fmt.Errorf("not within %s", d))
	t.Cleanup(cancel)
	return ctx
}

// newTestCluster makes a lab with an etcd of three members.
func newTestCluster(t *testing.T, hosts int, o ClusterOptions) (*Lab, *Cluster) {
	t.Helper()
	needsRoot(t)
	self, err := buildSelf()
	if err != nil {
		t.Fatal(err)
	}
	l := newTestLabWith(t, Options{Hosts: hosts, Self: self, Daemon: writeScript(t, "exec sleep 600")})
	c, err := l.StartCluster(within(t, time.Minute), o)
	if err != nil {
		t.Fatal(err)
	}
	return l, c
}

func leader(t *testing.T, c *Cluster) *Member {
	t.Helper()
	m, err := c.Leader(within(t, 30*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// put puts until it is acknowledged, and returns the revision.
func put(t *testing.T, client *clientv3.Client, key, value string) int64 {
	t.Helper()
	ctx := within(t, 30*time.Second)
	var last error
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		resp, err := client.Put(attempt, key, value)
		cancel()
		if err == nil {
			return resp.Header.Revision
		}
		if last = errors.Join(last, err); ctx.Err() != nil {
			t.Fatalf("put %s: %v", key, last)
		}
	}
}

func get(t *testing.T, client *clientv3.Client, key string) (string, int64) {
	t.Helper()
	resp, err := client.Get(within(t, 30*time.Second), key)
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return "", resp.Header.Revision
	}
	return string(resp.Kvs[0].Value), resp.Header.Revision
}

func TestClusterServes(t *testing.T) {
	l, c := newTestCluster(t, 1, ClusterOptions{})
	if len(c.Members) != 3 || strings.Count(l.EtcdURL(), ",") != 2 {
		t.Errorf("%d members at %s, want 3", len(c.Members), l.EtcdURL())
	}
	if err := l.PutConfig(within(t, 10*time.Second), "{}"); err != nil {
		t.Fatal(err)
	}
	for _, m := range c.Members {
		if got, _ := get(t, m.Client(), Prefix+"/config"); got != "{}" {
			t.Errorf("%s has the config %q", m.Name, got)
		}
		if !strings.Contains(l.EtcdURL(), m.URL()) {
			t.Errorf("%s is not in %s", m.URL(), l.EtcdURL())
		}
	}
	if _, err := l.StartCluster(t.Context(), ClusterOptions{}); err == nil {
		t.Error("a second cluster starts")
	}
	// The TTLs of tests must be possible.
	granted, err := l.Client().Grant(within(t, 10*time.Second), 1)
	if err != nil || granted.TTL > 2 {
		t.Errorf("a lease of 1 s gets a TTL of %v, %v, want at most 2", granted, err)
	}
}
