package examples_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
)

// guarded is an etcd on which everything was typed that the page says.
type guarded struct {
	dir    string
	server *etcdtest.Server
	root   *clientv3.Client
}

func TestEtcdRBAC(t *testing.T) {
	needs(t, "etcdctl")
	t.Run("embedded", func(t *testing.T) { etcdRBAC(t, "") })
	t.Run("debian", func(t *testing.T) {
		needs(t, "/usr/bin/etcd")
		etcdRBAC(t, "/usr/bin/etcd")
	})
}

func etcdRBAC(t *testing.T, binary string) {
	g := newGuarded(t, binary)
	for _, c := range []struct {
		role, user, passwordFile string
		life                     func(context.Context, *etcdstore.Store) error
		rights                   int
	}{
		{"flanneld", "flanneld", "etcd-password", daemonLife, 3},
		{"flannel-operator", "operator", "operator-password", operatorLife, 4},
	} {
		t.Run(c.role, func(t *testing.T) {
			live := func() error { return g.live(t, c.user, c.passwordFile, c.life) }
			if err := live(); err != nil {
				t.Fatalf("with all rights: %v", err)
			}
			role, err := g.root.RoleGet(t.Context(), c.role)
			if err != nil || len(role.Perm) != c.rights {
				t.Fatalf("rights %v, %v, want %d", role, err, c.rights)
			}
			for _, p := range role.Perm {
				documentedRight(t, c.role, p)
				key, end := string(p.Key), string(p.RangeEnd)
				if _, err := g.root.RoleRevokePermission(t.Context(), c.role, key, end); err != nil {
					t.Fatal(err)
				}
				err := live()
				wantDenial(t, fmt.Sprintf("without %s %s", p.PermType, key), err, c.user, key)
				if _, err := g.root.RoleGrantPermission(t.Context(), c.role, key, end, clientv3.PermissionType(p.PermType)); err != nil {
					t.Fatal(err)
				}
			}
			if err := live(); err != nil {
				t.Errorf("with all rights again: %v", err)
			}
		})
	}
	t.Run("flanneld may not change the config", func(t *testing.T) {
		err := g.live(t, "flanneld", "etcd-password", func(ctx context.Context, s *etcdstore.Store) error {
			w, err := s.Load(ctx)
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.PutConfig(ctx, "{}", w)
			return err
		})
		wantDenial(t, "PutConfig", err, "flanneld", "/coreos.com/network/config")
	})
}

// wantDenial wants an error that names user and key.
func wantDenial(t *testing.T, what string, err error, user, key string) {
	t.Helper()
	said := fmt.Sprint(err)
	if !errors.Is(err, etcdstore.ErrAuth) || !strings.Contains(said, fmt.Sprintf("permission denied: user %q has no right to ", user)) || !strings.Contains(said, key) {
		t.Errorf("%s: %v, want a denial that names user %s and %s", what, err, user, key)
	}
}

// documentedRight wants a row of the page for a right.
func documentedRight(t *testing.T, role string, p *authpb.Permission) {
	t.Helper()
	key := "`" + string(p.Key) + "`"
	if len(p.RangeEnd) > 0 {
		key += " and below"
	}
	row := "| " + strings.ToLower(p.PermType.String()) + " | " + key + " | "
	if role == "flannel-operator" {
		// The daemon's column comes first.
		row += map[bool]string{true: "no", false: "yes"}[strings.HasSuffix(string(p.Key), "/config")] + " | "
	}
	if !strings.Contains(read(t, "examples/etcd-rbac/README.md"), row+"yes |") {
		t.Errorf("README has no row %syes", row)
	}
}

func newGuarded(t *testing.T, binary string) guarded {
	t.Helper()
	server, err := etcdtest.Start(t.Context(), etcdtest.Options{Binary: binary})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	g := guarded{dir: t.TempDir(), server: server}
	if err := os.CopyFS(g.dir, os.DirFS("etcd-rbac")); err != nil {
		t.Fatal(err)
	}
	runBlocks(t, "examples/etcd-rbac/README.md", g.dir, "192.0.2.10:2379", strings.TrimPrefix(server.Endpoint(), "http://"))
	word, err := os.ReadFile(filepath.Join(g.dir, "root-password"))
	if err != nil {
		t.Fatal(err)
	}
	g.root, err = clientv3.New(clientv3.Config{Endpoints: server.Endpoints(), Username: "root", Password: strings.TrimSpace(string(word)), Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.root.Close() })
	return g
}

// live calls life with a store of its own, on an etcd that has nothing but a
// config.
func (g guarded) live(t *testing.T, user, passwordFile string, life func(context.Context, *etcdstore.Store) error) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	const prefix = "/coreos.com/network"
	if _, err := g.root.Delete(ctx, prefix, clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	if _, err := g.root.Put(ctx, prefix+"/config", `{"Network":"10.5.0.0/16"}`); err != nil {
		t.Fatal(err)
	}
	s, err := etcdstore.New(etcdstore.Options{
		Endpoints: g.server.Endpoints(), Prefix: prefix, Username: user, PasswordFile: filepath.Join(g.dir, passwordFile),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	return life(ctx, s)
}

// daemonLife is everything that a daemon asks of etcd.
func daemonLife(ctx context.Context, s *etcdstore.Store) error {
	world, err := s.Load(ctx)
	if err != nil {
		return err
	}
	claim := subnet.Claim{Node: "node", Instance: "i", Attrs: subnet.Attrs{PublicIP: subnet.ByFamily[netip.Addr]{netip.MustParseAddr("192.0.2.1")}}, TTL: time.Hour}
	lease, err := subnet.Acquire(ctx, s, world, claim)
	if err != nil {
		return err
	}
	for b, err := range s.Watch(ctx, world.Revision) {
		if err != nil {
			return err
		}
		if len(b.Put) > 0 {
			break
		}
	}
	if lease, err = s.Renew(ctx, lease); err != nil {
		return err
	}
	lease.Attrs.Instance = "another"
	if lease, err = s.Update(ctx, lease); err != nil {
		return err
	}
	if _, _, err := s.TTL(ctx, lease.ID); err != nil {
		return err
	}
	if err := s.Release(ctx, lease); err != nil {
		return err
	}
	if lease, err = s.Create(ctx, lease, time.Hour, world); err != nil {
		return err
	}
	if lease, err = s.Reserve(ctx, lease, world); err != nil {
		return err
	}
	return s.Release(ctx, lease)
}

// operatorLife is everything that flannelctl asks of etcd.
func operatorLife(ctx context.Context, s *etcdstore.Store) error {
	world, err := s.Load(ctx)
	if err != nil {
		return err
	}
	if world.Config, err = s.PutConfig(ctx, `{"Network":"10.6.0.0/16"}`, world); err != nil {
		return err
	}
	reserved, err := subnet.ParseSubnet("10.6.7.0-24")
	if err != nil {
		return err
	}
	holder := subnet.Attrs{PublicIP: subnet.ByFamily[netip.Addr]{netip.MustParseAddr("192.0.2.7")}}
	lease, err := subnet.Reserve(ctx, s, world, reserved, holder)
	if err != nil {
		return err
	}
	if _, _, err := s.TTL(ctx, 1); !errors.Is(err, subnet.ErrLeaseLost) { // leases
		return err
	}
	return s.Release(ctx, lease)
}
