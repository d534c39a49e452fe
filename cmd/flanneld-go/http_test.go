package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
)

func get(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, http.NoBody))
	return w.Code, w.Body.String()
}

// atRest is the uptime of a loop whose age does not matter.
func atRest() time.Duration { return 0 }

func TestHealthz(t *testing.T) {
	now := 10 * time.Hour
	beat := now
	h := health{status.NewBoard(time.Now, status.Status{}), func() time.Duration { return beat }, func() time.Duration { return now }}
	for _, tt := range []struct {
		age  time.Duration
		code int
		body string
	}{
		{0, http.StatusOK, "ok\n"},
		{aliveFor, http.StatusOK, "ok\n"},
		{aliveFor + time.Second, http.StatusServiceUnavailable, "the loop has not finished a round for 1m31s\n"},
		{3 * time.Hour, http.StatusServiceUnavailable, "the loop has not finished a round for 3h0m0s\n"},
	} {
		beat = now - tt.age
		if code, body := get(t, h.mux(), "/healthz"); code != tt.code || body != tt.body {
			t.Errorf("%s after the last round: %d %q, want %d %q", tt.age, code, body, tt.code, tt.body)
		}
	}
}

func TestReadyz(t *testing.T) {
	board := status.NewBoard(time.Now, status.Status{})
	h := health{board, atRest, atRest}
	if code, body := get(t, h.mux(), "/readyz"); code != http.StatusServiceUnavailable || body != "starting\n" {
		t.Errorf("at start: %d %q", code, body)
	}
	board.Update(func(s *status.Status) { s.State, s.Ready = status.StateRunning, true })
	if code, body := get(t, h.mux(), "/readyz"); code != http.StatusOK || body != "ok\n" {
		t.Errorf("ready: %d %q", code, body)
	}
	board.Report(status.Problem{Component: status.ComponentFirewall, Message: "no iptables"})
	if code, _ := get(t, h.mux(), "/readyz"); code != http.StatusOK {
		t.Errorf("degraded, and ready all the same: %d", code)
	}
	board.Report(status.Problem{Component: status.ComponentFiles, Message: "disk full", Blocking: true})
	code, body := get(t, h.mux(), "/readyz")
	if want := "degraded\nfirewall: no iptables\nfiles: disk full\n"; code != http.StatusServiceUnavailable || body != want {
		t.Errorf("not ready: %d %q, want 503 %q", code, body, want)
	}
}

func TestStatusJSON(t *testing.T) {
	board := status.NewBoard(time.Now, status.Status{Node: "me", Version: "v1"})
	board.Update(func(s *status.Status) {
		s.State, s.Ready = status.StateRunning, true
		s.Peers = []status.Peer{{Subnet: "10.5.2.0/24", PublicIP: "198.18.0.2", Error: "no path"}}
	})
	board.Report(status.Problem{Component: status.ComponentPeers, Message: "1 of 1", Hint: "look"})
	h := health{board, atRest, atRest}
	w := httptest.NewRecorder()
	h.statusMux().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/status", http.NoBody))
	if got := w.Header().Get("Content-Type"); w.Code != http.StatusOK || got != "application/json" {
		t.Errorf("%d %s", w.Code, got)
	}
	var got status.Status
	dec := json.NewDecoder(w.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&got); err != nil {
		t.Fatal(err)
	}
	want := board.Snapshot()
	// The monotonic clock does not travel.
	want.Started, got.Started = want.Started.Round(0), got.Started.Local()
	want.Problems[0].Since, got.Problems[0].Since = want.Problems[0].Since.Round(0), got.Problems[0].Since.Local()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if code, _ := get(t, h.mux(), "/v1/status"); code != http.StatusNotFound {
		t.Errorf("the whole status is served on the health port: %d", code)
	}
}

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "d.sock")
	first, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 || info.Mode().Type() != os.ModeSocket {
		t.Errorf("socket is %v, %v; want -rw-------", info.Mode(), err)
	}
	second, err := listenUnix(path)
	if want := "--socket: " + path + ": another flanneld-go answers there: stop it first, since it holds this host's lease"; second != nil || text(err) != want {
		t.Errorf("a second daemon: %v\nwant %s", err, want)
	}
	if conn, err := net.Dial("unix", path); err != nil {
		t.Errorf("the first daemon's socket was taken away: %v", err)
	} else {
		conn.Close()
	}
	// A daemon that was killed leaves its socket behind.
	first.(*net.UnixListener).SetUnlinkOnClose(false)
	first.Close()
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("no dead socket to replace: %v", err)
	}
	third, err := listenUnix(path)
	if err != nil {
		t.Fatalf("a dead socket was not replaced: %v", err)
	}
	third.Close()
}

func TestListenAllOrNothing(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	o := options{socket: filepath.Join(t.TempDir(), "d.sock"), healthz: "127.0.0.1:0", metricsListen: taken.Addr().String()}
	_, err = listen(o)
	if want := "--metrics-listen: listen tcp " + taken.Addr().String() + ": bind: address already in use"; text(err) != want {
		t.Errorf("error %v, want %s", err, want)
	}
	if _, err := os.Stat(o.socket); !os.IsNotExist(err) {
		t.Errorf("the socket stays: %v", err)
	}
	o.healthz, o.metricsListen = taken.Addr().String(), ""
	if _, err := listen(o); !strings.HasPrefix(text(err), "--healthz-ip, --healthz-port: ") {
		t.Errorf("error %v", err)
	}
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(options{socket: filepath.Join(blocked, "d.sock")}); !strings.HasPrefix(text(err), "--socket: ") || !strings.Contains(text(err), blocked) {
		t.Errorf("error %v", err)
	}
}

// The three listeners serve what is theirs until the context ends.
func TestServe(t *testing.T) {
	o := options{socket: filepath.Join(t.TempDir(), "d.sock"), healthz: "127.0.0.1:0", metricsListen: "127.0.0.1:0"}
	ls, err := listen(o)
	if err != nil {
		t.Fatal(err)
	}
	board := status.NewBoard(time.Now, status.Status{Node: "me"})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ls.serve(ctx, health{board, atRest, atRest}, newRegistry(board)) }()
	ask := func(network, addr, path string) string {
		client := http.Client{Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, network, addr)
			},
		}}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://host"+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var b bytes.Buffer
		if _, err := b.ReadFrom(resp.Body); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	if got := ask("unix", o.socket, "/v1/status"); !strings.Contains(got, `"node":"me"`) {
		t.Errorf("socket: %s", got)
	}
	if got := ask("tcp", ls.healthz.Addr().String(), "/healthz"); got != "ok\n" {
		t.Errorf("health: %s", got)
	}
	if got := ask("tcp", ls.metrics.Addr().String(), "/metrics"); !strings.Contains(got, "\nflanneld_ready 0\n") || !strings.Contains(got, "\ngo_goroutines ") {
		t.Errorf("metrics: %s", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("serve ended with %v", err)
	}
	if conn, err := net.Dial("unix", o.socket); err == nil {
		conn.Close()
		t.Error("the socket still answers")
	}
}
