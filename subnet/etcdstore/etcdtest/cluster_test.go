package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// clusterOptions are those of three members that know each other.
func clusterOptions(t *testing.T, common Options) []Options {
	t.Helper()
	var all []Options
	var members []string
	for i := range 3 {
		r, err := Reserve("127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
		o := common
		o.Name, o.Peer = fmt.Sprintf("e%d", i+1), "http://"+r.Addr.String()
		members = append(members, o.Name+"="+o.Peer)
		all = append(all, o)
	}
	for i := range all {
		all[i].Cluster = strings.Join(members, ",")
	}
	return all
}

func TestCluster(t *testing.T) {
	for name, binary := range map[string]string{"embedded": "", "debian": "/usr/bin/etcd"} {
		t.Run(name, func(t *testing.T) {
			if binary != "" {
				if _, err := exec.LookPath(binary); err != nil {
					t.Skipf("needs package etcd-server: %v", err)
				}
			}
			testCluster(t, Options{Binary: binary, Heartbeat: 100 * time.Millisecond, QuotaBytes: 256 << 10})
		})
	}
}

func testCluster(t *testing.T, common Options) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	servers := make([]*Server, 3)
	var starting errgroup.Group
	for i, o := range clusterOptions(t, common) {
		starting.Go(func() error {
			var err error
			servers[i], err = Start(ctx, o)
			return err
		})
	}
	err := starting.Wait()
	for _, s := range servers {
		if s != nil {
			defer s.Close()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: servers[2].Endpoints(), Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	all, err := client.MemberList(ctx)
	if err != nil || len(all.Members) != 3 {
		t.Fatalf("members %v, %v, want 3", all, err)
	}
	// A lease of less than one and a half elections gets just that, in whole seconds.
	granted, err := client.Grant(ctx, 1)
	if err != nil || granted.TTL != 2 {
		t.Errorf("the smallest lease: %v, %v, want 2 s", granted, err)
	}
	for i := 0; i < 100 && err == nil; i++ {
		_, err = client.Put(ctx, fmt.Sprint("filler", i), string(make([]byte, 16<<10)))
	}
	if !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Errorf("1.6 MB into 256 KiB: %v, want %v", err, rpctypes.ErrNoSpace)
	}
}

// Without a majority there is nothing to serve, and only the caller knows for how
// long that is right.
func TestMemberWaitsForAMajority(t *testing.T) {
	o := clusterOptions(t, Options{})[0]
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	s, err := Start(ctx, o)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one of three starts: %v, %v", s, err)
	}
	if s != nil {
		s.Close()
	}
}

func TestBadPeerAddress(t *testing.T) {
	if s, err := Start(t.Context(), Options{Peer: "http://a b"}); err == nil {
		t.Error("starts with an address for peers that is none")
		s.Close()
	}
}
