package etcdstore

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
)

// covers is compared with a walk over keys. Only where a span begins or ends does
// anything change: those keys stand for all.
func TestCoversProperty(t *testing.T) {
	within := func(s span, key string) bool {
		switch {
		case len(s.end) == 0:
			return key == string(s.key)
		case string(s.end) == everything:
			return key >= string(s.key)
		default:
			return key >= string(s.key) && key < string(s.end)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[abc]{1,2}`)
		draw := func(label string) span {
			s := span{key: []byte(name.Draw(t, label))}
			switch rapid.IntRange(0, 5).Draw(t, label+" end") {
			case 0:
				s.end = []byte(everything)
			case 1, 2:
				if end := name.Draw(t, label+" to"); end > string(s.key) {
					s.end = []byte(end)
				}
			case 3:
				s.end = []byte(clientv3.GetPrefixRangeEnd(string(s.key)))
			}
			return s
		}
		rights := rapid.SampledFrom([]authpb.Permission_Type{authpb.READ, authpb.WRITE, authpb.READWRITE})
		var granted []*authpb.Permission
		for range rapid.IntRange(0, 5).Draw(t, "permissions") {
			s := draw("granted")
			granted = append(granted, &authpb.Permission{PermType: rights.Draw(t, "right"), Key: s.key, RangeEnd: s.end})
		}
		n := need{draw("needed"), rapid.SampledFrom([]authpb.Permission_Type{authpb.READ, authpb.WRITE}).Draw(t, "needed right")}
		keys := edges(n.span)
		for _, p := range granted {
			keys = append(keys, edges(span{p.Key, p.RangeEnd})...)
		}
		want := true
		for _, key := range keys {
			covered := !within(n.span, key)
			for _, p := range granted {
				covered = covered || (p.PermType == n.right || p.PermType == authpb.READWRITE) && within(span{p.Key, p.RangeEnd}, key)
			}
			want = want && covered
		}
		if got := covers(granted, n); got != want {
			t.Fatalf("covers(%v, %v) = %v, want %v", granted, n, got, want)
		}
	})
}

// edges are the first key of a span, and the first behind it.
func edges(s span) []string {
	switch {
	case len(s.end) == 0:
		return []string{string(s.key), string(s.key) + "\x00"}
	case string(s.end) == everything:
		return []string{string(s.key)}
	default:
		return []string{string(s.key), string(s.end)}
	}
}

func TestNeedsRead(t *testing.T) {
	for _, c := range []struct {
		need need
		want string
	}{
		{need{span{key: []byte("/p/config")}, authpb.READ}, "read /p/config"},
		{need{span{[]byte("/p/"), []byte("/p0")}, authpb.WRITE}, "write everything below /p/"},
		{need{span{[]byte("/p"), []byte(everything)}, authpb.READ}, "read everything from /p on"},
		{need{span{[]byte("a"), []byte("c")}, authpb.READ}, "read a up to c"},
	} {
		if got := c.need.String(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// What is missing is named, by every call: also where several permissions
// together would do, and where the watch, whose range is larger than what a Load
// reads, is the first to miss something.
func TestDenialNamesTheRight(t *testing.T) {
	t.Run("embedded", func(t *testing.T) { denialNames(t, "") })
	t.Run("debian", func(t *testing.T) { needDebian(t); denialNames(t, debianEtcd) })
}

func denialNames(t *testing.T, binary string) {
	server := startServer(t, etcdtest.Options{Binary: binary})
	enableAuth(t, server)
	admin := root(t, server)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s := open(t, Options{Endpoints: server.Endpoints(), Prefix: "/p", Username: "host", Password: password})
	grant := func(right authpb.Permission_Type, key, end string) {
		t.Helper()
		if _, err := admin.RoleGrantPermission(ctx, "hosts", key, end, clientv3.PermissionType(right)); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(err error, missing string) {
		t.Helper()
		want := ` etcd ` + server.Endpoint() + `: permission denied: user "host" has no right to ` + missing
		if !errors.Is(err, ErrAuth) || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%v, want ..%s", err, want)
		}
	}
	_, err := s.Load(ctx)
	refused(err, "read /p/flanneld-go/store, nor to read /p/config, nor to read everything below /p/subnets/")
	grant(authpb.READ, "/p/flanneld-go/", "/p/flanneld-go0")
	grant(authpb.READ, "/p/config", "")
	grant(authpb.READ, "/p/subnets/", "/p/subnets/10.5.1")
	grant(authpb.WRITE, "/p/subnets/", "/p/subnets0")
	_, err = s.Load(ctx)
	refused(err, "read everything below /p/subnets/")
	grant(authpb.READ, "/p/subnets/10.5.1", "/p/subnets0")
	_, err = s.Load(ctx)
	refused(err, "write /p/flanneld-go/store")
	grant(authpb.WRITE, "/p/flanneld-go/store", "")
	w, err := s.Load(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for b, err := range s.Watch(ctx, w.Revision) {
		if err == nil {
			t.Errorf("a watch of what may not be read yields %v", b)
		}
		refused(err, "read everything below /p/")
		break
	}
	_, err = s.PutConfig(ctx, "{}", w)
	refused(err, "write /p/config")
}

func TestStats(t *testing.T) {
	server := startServer(t, etcdtest.Options{})
	s := open(t, Options{Endpoints: server.Endpoints(), Prefix: "/p"})
	if got := s.Stats(); got != (Stats{}) {
		t.Errorf("%+v before the first call", got)
	}
	step := func(name string, call func(), want Stats) {
		t.Helper()
		before := s.Stats()
		call()
		after := s.Stats()
		got := Stats{
			Requests: after.Requests - before.Requests, Failures: after.Failures - before.Failures, Streams: after.Streams - before.Streams,
		}
		if got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
		if after.BytesSent <= before.BytesSent || want.Failures == 0 && after.BytesReceived <= before.BytesReceived {
			t.Errorf("%s: no bytes: %+v, then %+v", name, before, after)
		}
	}
	step("a Load that finds no identity", func() { loaded(t, s) }, Stats{Requests: 3})
	step("a Load", func() { loaded(t, s) }, Stats{Requests: 1})
	// As many as a config of that size: messages are counted, and no more.
	text := strings.Repeat("x", 100_000)
	before := s.Stats()
	w := loaded(t, s)
	step("a config", func() {
		if _, err := s.PutConfig(t.Context(), text, w); err != nil {
			t.Fatal(err)
		}
	}, Stats{Requests: 1})
	loaded(t, s)
	after := s.Stats()
	for name, n := range map[string]uint64{"sent": after.BytesSent - before.BytesSent, "received": after.BytesReceived - before.BytesReceived} {
		if n < 100_000 || n > 101_000 {
			t.Errorf("%d bytes %s for a config of 100,000", n, name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	step("a watch", func() {
		// The stream, the question who the store is, and the config.
		for _, err := range s.Watch(ctx, w.Revision) {
			if err != nil {
				t.Error(err)
			}
			break
		}
	}, Stats{Requests: 2, Streams: 1})
	cancel()
	step("a keep-alive of no lease", func() {
		if _, err := s.keepAlive(t.Context(), 1); err == nil {
			t.Error("no error")
		}
	}, Stats{Requests: 1, Streams: 1})
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	failed := s.Stats().Failures
	short, end := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer end()
	if _, err := s.Load(short); err == nil {
		t.Error("Load from nobody succeeds")
	}
	if s.Stats().Failures == failed {
		t.Error("a call that fails is not counted")
	}
}
