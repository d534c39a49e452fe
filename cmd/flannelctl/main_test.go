package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shell is what an operator types into.
type shell struct {
	t      *testing.T
	env    []string
	in     string
	socket string
}

// newShell has no daemon on its host.
func newShell(t *testing.T, env ...string) *shell {
	t.Helper()
	return &shell{t: t, env: env, socket: filepath.Join(t.TempDir(), "d.sock")}
}

// result is what a command left on the screen.
type result struct {
	out, err string
	// said is what stands on standard error beside the error.
	said  string
	usage bool
}

func (s *shell) run(args ...string) result {
	s.t.Helper()
	if len(args) > 0 && args[0] != "help" && args[0] != "version" && !strings.HasPrefix(args[0], "-") {
		args = append(args, "--socket="+s.socket)
	}
	var out, stderr bytes.Buffer
	err := run(s.t.Context(), streams{strings.NewReader(s.in), &out, &stderr}, args, cli.EnvOf(s.env))
	r := result{out: out.String(), said: stderr.String()}
	if err != nil {
		var usage *cli.UsageError
		r.err, r.usage = err.Error(), errors.As(err, &usage)
	}
	return r
}

// want runs a command that must succeed, and compares what it prints.
func (s *shell) want(out string, args ...string) {
	s.t.Helper()
	if r := s.run(args...); r != (result{out: out}) {
		s.t.Errorf("flannelctl %s: %+v\nwant %q", strings.Join(args, " "), r, out)
	}
}

// refused runs a command that must fail, and compares its error.
func (s *shell) refused(usage bool, err string, args ...string) {
	s.t.Helper()
	if r := s.run(args...); r.err != err || r.usage != usage {
		s.t.Errorf("flannelctl %s: error %q, usage %t\nwant       %q, usage %t", strings.Join(args, " "), r.err, r.usage, err, usage)
	}
}

// daemon serves a status on the shell's socket.
func (s *shell) daemon(st status.Status) {
	s.t.Helper()
	l, err := net.Listen("unix", s.socket)
	if err != nil {
		s.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(st) })
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	s.t.Cleanup(func() {
		server.Close()
		<-done
	})
}

func startEtcd(t *testing.T) (endpoint string, client *clientv3.Client) {
	t.Helper()
	server, err := etcdtest.Start(t.Context(), etcdtest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	client, err = clientv3.New(clientv3.Config{Endpoints: server.Endpoints()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(client.Close(), server.Close()); err != nil {
			t.Errorf("close etcd: %v", err)
		}
	})
	return server.Endpoint(), client
}

func TestHelpListsEveryCommand(t *testing.T) {
	want := `flannelctl looks after the hosts of a flannel network.

Usage: flannelctl COMMAND [flags]

Commands:
  status                       what this host's daemon knows and what is wrong
  config get                   print the network config
  config set FILE|-|JSON       check a network config and put it, if nobody else changed it meanwhile
  config validate FILE|-|JSON  check a network config and put nothing
  leases                       list all leases with owner and remaining time
  reserve SUBNET               make a subnet one host's for ever: --node ID or --public-ip IP
  release SUBNET               end a reservation, or with --yes the lease of a host that is gone
  docker network create NAME   make a Docker network on this host's subnet, as the daemon does with --docker-network
  cleanup                      remove devices, routes, rules and settings that the daemon left on this host
  version                      print the version

flannelctl COMMAND --help lists a command's flags.
`
	s := newShell(t)
	for _, arg := range []string{"help", "--help", "-h", "-help"} {
		s.want(want, arg)
	}
	for _, c := range commands() {
		if !strings.Contains(want, "\n  "+c.name) {
			t.Errorf("help lacks %q", c.name)
		}
		r := s.run(append(strings.Fields(c.name), "--help")...)
		if r.err != cli.ErrHelp.Error() || !strings.HasPrefix(r.out, "Usage: flannelctl "+c.name+" [flags]") || !strings.Contains(r.out, "--socket") {
			t.Errorf("%s --help: %q, error %q", c.name, r.out, r.err)
		}
	}
}

func TestVersion(t *testing.T) {
	for _, arg := range []string{"version", "--version", "-version"} {
		if r := newShell(t).run(arg); r.err != "" || !strings.HasPrefix(r.out, "flannelctl devel (go") {
			t.Errorf("%s: %q, error %q", arg, r.out, r.err)
		}
	}
}

func TestUsageErrors(t *testing.T) {
	s := newShell(t)
	s.refused(true, "which command?")
	s.refused(true, `"stauts": no such command (see flannelctl help)`, "stauts", "--json")
	s.refused(true, `"config put": no such command (see flannelctl help)`, "config", "put", "{}")
	s.refused(true, "flags come behind the command (see flannelctl help)", "--etcd-password", "hunter2", "leases")
	s.refused(true, `1 arguments given, must be 0: flannelctl status [flags]`, "status", "web-3")
	s.refused(true, `0 arguments given, must be 1: flannelctl config set [flags] FILE|-|JSON`, "config", "set")
	s.refused(true, "unknown flag: --jsno (see --help)", "status", "--jsno")
	s.refused(true, `--etcd-endpoints: "ftp://a": must be a URL such as http://192.0.2.10:2379 or https://etcd.example:2379`, "leases", "--etcd-endpoints=ftp://a")
}

func TestNoDaemon(t *testing.T) {
	s := newShell(t)
	s.refused(false, "no daemon here: "+s.socket+" does not exist: systemctl status flanneld-go, or give --socket", "status")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	s.refused(false, "the daemon is gone: nobody answers on "+s.socket+": systemctl status flanneld-go", "status")
	if got, want := explainSocket("/run/d.sock", "flanneld-go", os.ErrPermission).Error(), "/run/d.sock is for root only: run flannelctl as root"; got != want {
		t.Errorf("error %q, want %q", got, want)
	}
}
