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

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// selfDir is where buildSelf builds.
func selfDir() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("flannel-lab-%d", os.Getpid()))
}

// buildSelf builds flannel-lab, which runs etcd's members: this executable is a
// test.
var buildSelf = sync.OnceValues(func() (string, error) {
	path := filepath.Join(selfDir(), "flannel-lab")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "..")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
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
	c, err := l.StartCluster(within(t, patience), o)
	if err != nil {
		t.Fatal(err)
	}
	return l, c
}

func leader(t *testing.T, c *Cluster) *Member {
	t.Helper()
	m, err := c.Leader(within(t, patience))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// put puts until it is acknowledged, and returns the revision.
func put(t *testing.T, client *clientv3.Client, key, value string) int64 {
	t.Helper()
	ctx := within(t, patience)
	var last error
	for {
		// What a follower sent to a leader that is gone is never answered.
		attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
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

// putSoon puts in less time than a connection is waited for that is dead. What a member
// refuses, since a busy machine has made them elect once more, is put again; what is not
// answered is not.
func putSoon(t *testing.T, client *clientv3.Client, key, value string) error {
	t.Helper()
	ctx := within(t, aliveEvery/2)
	for {
		_, err := client.Put(ctx, key, value)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if Wait(ctx, pollEvery) != nil {
			return err
		}
	}
}

func get(t *testing.T, client *clientv3.Client, key string) (string, int64) {
	t.Helper()
	resp, err := client.Get(within(t, patience), key)
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
	if err := l.PutConfig(within(t, patience), "{}"); err != nil {
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
	granted, err := l.Client().Grant(within(t, patience), 1)
	if err != nil || granted.TTL > 2 {
		t.Errorf("a lease of 1 s gets a TTL of %v, %v, want at most 2", granted, err)
	}
}

// The lab's client goes on whatever happens to the leader, and the member that
// was away catches up.
func TestClientOutlivesTheLeader(t *testing.T) {
	_, c := newTestCluster(t, 1, ClusterOptions{})
	for _, tc := range []struct {
		name       string
		away, back func(*Member) error
		running    bool
	}{
		{"killed", (*Member).Kill, start(t), false},
		{"paused", (*Member).Pause, (*Member).Resume, true},
		{"stopped", func(m *Member) error { return m.Stop(within(t, patience)) }, start(t), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			was := leader(t, c)
			put(t, c.Client(), "before", tc.name)
			if err := tc.away(was); err != nil {
				t.Fatal(err)
			}
			if was.Running() != tc.running {
				t.Errorf("running: %v", was.Running())
			}
			put(t, c.Client(), "during", tc.name)
			if now := leader(t, c); now == was {
				t.Errorf("%s still leads", now.Name)
			}
			// More than one request per member, so that all would be asked; and
			// less time than the client's keepalive takes to notice.
			for i := range 2 * len(c.Members) {
				if err := putSoon(t, c.Client(), fmt.Sprint("during", i), tc.name); err != nil {
					t.Errorf("request %d under another leader: %v", i, err)
				}
			}
			if err := tc.back(was); err != nil {
				t.Fatal(err)
			}
			if err := c.WaitHealthy(within(t, patience)); err != nil {
				t.Fatal(err)
			}
			for i := range 2 * len(c.Members) {
				if got, _ := get(t, was.Client(), fmt.Sprint("during", i)); got != tc.name {
					t.Errorf("the member that was away has %q as value %d", got, i)
				}
			}
		})
	}
}

func start(t *testing.T) func(*Member) error {
	return func(m *Member) error { return m.Start(within(t, patience)) }
}

func TestMajorityLost(t *testing.T) {
	_, c := newTestCluster(t, 1, ClusterOptions{})
	put(t, c.Client(), "k", "kept")
	for _, m := range c.Members[1:] {
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := c.Client().Put(ctx, "k", "lost"); err == nil {
		t.Error("one member of three acknowledges a write")
	}
	if m, err := c.Leader(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without a majority %v leads, %v", m, err)
	}
	if err := c.WaitHealthy(within(t, patience)); !errors.Is(err, ErrNotRunning) {
		t.Errorf("two members are gone, and etcd is healthy: %v", err)
	}
	// One that waits for a majority ends when asked.
	alone := c.Members[0]
	if err := errors.Join(alone.Kill(), alone.Start(within(t, patience)), alone.Stop(within(t, patience))); err != nil {
		t.Error(err)
	}
	if err := c.Start(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	for _, m := range c.Members {
		// What was proposed to a leader in vain may be committed after all.
		if got, _ := get(t, m.Client(), "k"); got != "kept" && got != "lost" {
			t.Errorf("%s has %q after the loss of a majority", m.Name, got)
		}
	}
	if err := c.Members[0].Start(t.Context()); err == nil {
		t.Error("a member that runs is started again")
	}
}

func TestBackupRestoreWipe(t *testing.T) {
	l, c := newTestCluster(t, 1, ClusterOptions{})
	if err := c.Restore(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("restore without a backup: %v", err)
	}
	// The later of two backups is the one.
	var old int64
	for _, value := range []string{"older", "old"} {
		old = put(t, c.Client(), "k", value)
		if err := c.Backup(within(t, patience)); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := get(t, c.Client(), "k"); got != "old" {
		t.Errorf("after a backup k is %q", got)
	}
	id := clusterID(t, c)
	// A backup is good for more than one time.
	for range 2 {
		for range 5 {
			put(t, c.Client(), "k", "new")
		}
		if err := c.Restore(within(t, patience)); err != nil {
			t.Fatal(err)
		}
		if got, revision := get(t, c.Client(), "k"); got != "old" || revision != old {
			t.Errorf("restored: %q at revision %d, want %q at %d", got, revision, "old", old)
		}
	}
	if err := c.Wipe(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	if got, revision := get(t, l.Client(), "k"); got != "" || revision != 1 {
		t.Errorf("wiped: %q at revision %d, want nothing at 1", got, revision)
	}
	if now := clusterID(t, c); now != id {
		t.Errorf("cluster id %x, was %x: a wipe is to be seen by its revision alone", now, id)
	}
}

func clusterID(t *testing.T, c *Cluster) uint64 {
	t.Helper()
	resp, err := c.Client().Get(within(t, patience), "k")
	if err != nil {
		t.Fatal(err)
	}
	return resp.Header.ClusterId
}

// A quota can be filled, which raises NOSPACE.
func TestQuota(t *testing.T) {
	_, c := newTestCluster(t, 1, ClusterOptions{QuotaBytes: 256 << 10})
	var err error
	for i := 0; i < 100 && err == nil; i++ {
		_, err = c.Client().Put(within(t, patience), fmt.Sprint("filler", i), string(make([]byte, 16<<10)))
	}
	if !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Errorf("1.6 MB into 256 KiB: %v, want %v", err, rpctypes.ErrNoSpace)
	}
	if err := c.WaitHealthy(within(t, patience)); err != nil {
		t.Errorf("reads without space: %v", err)
	}
}

func TestOneMember(t *testing.T) {
	needsRoot(t)
	self, err := buildSelf()
	if err != nil {
		t.Fatal(err)
	}
	l := newTestLabWith(t, Options{Hosts: 1, Self: self})
	if l.Etcd() != nil || l.Client() != nil || l.PutConfig(t.Context(), "{}") == nil {
		t.Error("there is an etcd before it was started")
	}
	url := l.EtcdURL()
	if err := l.StartEtcd(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	if l.EtcdURL() != url || url != "http://198.18.0.254:2379" {
		t.Errorf("etcd is at %s, was to be at %s", l.EtcdURL(), url)
	}
	if err := l.PutConfig(within(t, patience), "{}"); err != nil {
		t.Fatal(err)
	}
	first := l.Etcd()
	if err := first.Stop(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	if err := l.StartEtcd(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	if l.Etcd() == first {
		t.Error("etcd was not started again")
	}
	if got, _ := get(t, l.Client(), Prefix+"/config"); got != "{}" {
		t.Errorf("after a restart the config is %q", got)
	}
}

func TestClusterRefusesNumbers(t *testing.T) {
	l := newTestLab(t, 1, "sleep 60")
	for _, members := range []int{-1, MaxMembers + 1} {
		if _, err := l.StartCluster(t.Context(), ClusterOptions{Members: members}); err == nil {
			t.Errorf("%d members start", members)
		}
	}
}

// What a killed lab leaves of its cluster and its disks goes as well.
func TestStaleClusterIsReplaced(t *testing.T) {
	needsRoot(t)
	self, err := buildSelf()
	if err != nil {
		t.Fatal(err)
	}
	stale, err := New(t.Context(), Options{Hosts: 1, Self: self})
	if err != nil {
		t.Fatal(err)
	}
	c, err := stale.StartCluster(within(t, patience), ClusterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := stale.Hosts[0].LimitState(64 << 10); err != nil {
		t.Fatal(err)
	}
	if err := c.Members[2].Pause(); err != nil {
		t.Fatal(err)
	}
	if err := c.closeClients(); err != nil {
		t.Fatal(err)
	}
	abandon(t, stale)
	l, err := New(t.Context(), Options{Name: stale.Name, Hosts: 1, Replace: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range c.Members {
		if _, err := m.Process().ExitCode(within(t, patience)); err != nil {
			t.Errorf("%s of the stale lab: %v", m.Name, err)
		}
	}
	if limited, err := isMount(l.Hosts[0].StateDir()); err != nil || limited {
		t.Errorf("the stale lab's state directory is mounted: %v", err)
	}
	if err := l.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if left := traces(t, l.Name); len(left) > 0 {
		t.Errorf("left behind: %s", left)
	}
}

// Who leads is what a majority says in one term, the leader among it.
func TestReigning(t *testing.T) {
	status := func(id, leader, term uint64) *clientv3.StatusResponse {
		return &clientv3.StatusResponse{Header: &etcdserverpb.ResponseHeader{MemberId: id}, Leader: leader, RaftTerm: term}
	}
	for _, tc := range []struct {
		name    string
		answers []*clientv3.StatusResponse
		want    int
	}{
		{"all agree", []*clientv3.StatusResponse{status(1, 2, 5), status(2, 2, 5), status(3, 2, 5)}, 1},
		{"one is away", []*clientv3.StatusResponse{nil, status(2, 3, 5), status(3, 3, 5)}, 2},
		{"the leader is away", []*clientv3.StatusResponse{status(1, 3, 5), status(2, 3, 5), nil}, -1},
		{"a majority is away", []*clientv3.StatusResponse{nil, nil, status(3, 3, 5)}, -1},
		{"nobody answers", []*clientv3.StatusResponse{nil, nil, nil}, -1},
		{"an election", []*clientv3.StatusResponse{status(1, 0, 6), status(2, 0, 6), status(3, 0, 6)}, -1},
		{"a leader of the past", []*clientv3.StatusResponse{status(1, 1, 5), status(2, 3, 6), status(3, 3, 6)}, 2},
		{"half of four", []*clientv3.StatusResponse{status(1, 1, 5), status(2, 1, 5), nil, nil}, -1},
		{"not yet in one term", []*clientv3.StatusResponse{status(1, 1, 6), status(2, 1, 5), nil}, -1},
	} {
		if got := reigning(tc.answers); got != tc.want {
			t.Errorf("%s: leader %d, want %d", tc.name, got, tc.want)
		}
	}
}
