package main

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/daemonconfig/dockerd/dockerdtest"
)

// statusSocket is a daemon that says s.
func statusSocket(t *testing.T, s status.Status) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "flanneld-go.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(s) // the test is there to read it
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l) // until it is closed
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
	return path
}

func TestNetworkCreate(t *testing.T) {
	tests := []struct {
		name, version, network string
		daemon                 func(*status.Status)
		engine                 func(*dockerdtest.Engine)
		says, fails            string
		want                   map[string]string
	}{
		{
			name: "made", version: "28.5.2", network: "flannel",
			says: "docker network flannel created: bridge br-flannel, subnet 10.5.72.0/24, mtu 1430\nIt stays as it is when subnet or MTU change; run the daemon with --docker-network=flannel to have it kept.\n",
			want: map[string]string{
				"com.docker.network.bridge.name": "br-flannel", "com.docker.network.driver.mtu": "1430",
				"com.docker.network.bridge.trusted_host_interfaces": "flannel-v6.1:flannel.1",
			},
		},
		{
			name: "kept by the daemon, with an older Docker", version: "26.1.5", network: "n",
			daemon: func(s *status.Status) { s.Docker = &status.Docker{Network: "n"} },
			says:   "docker network n created: bridge br-n, subnet 10.5.72.0/24, mtu 1430\n",
			want:   map[string]string{"com.docker.network.bridge.name": "br-n", "com.docker.network.driver.mtu": "1430"},
		},
		{
			name: "beside a daemon that masquerades and has no part in Docker", version: "26.1.5", network: "n",
			daemon: func(s *status.Status) { s.IPMasq = true },
			says:   "docker network n created: bridge br-n, subnet 10.5.72.0/24, mtu 1430\nIt stays as it is when subnet or MTU change; run the daemon with --docker-network=n to have it kept.\n",
			want: map[string]string{
				"com.docker.network.bridge.name": "br-n", "com.docker.network.driver.mtu": "1430", "com.docker.network.bridge.enable_ip_masquerade": "false",
			},
		},
		{
			name: "direct routes", version: "28.5.2", network: "n",
			daemon: func(s *status.Status) { s.Docker, s.Backend.Direct = &status.Docker{Network: "n"}, true },
			says:   "docker network n created: bridge br-n, subnet 10.5.72.0/24, mtu 1430\n",
			want: map[string]string{
				"com.docker.network.bridge.name": "br-n", "com.docker.network.driver.mtu": "1430",
				"com.docker.network.bridge.trusted_host_interfaces": "eth0:flannel-v6.1:flannel.1",
			},
		},
		{
			name: "docker0 has the subnet", version: "28.5.2", network: "n", engine: func(e *dockerdtest.Engine) { e.SetBridge("10.5.72.1/24", 1430, true) },
			fails: "docker0 has this host's subnet: run the daemon with --docker-network=n and restart Docker once",
		},
		{
			name: "another network has it", version: "28.5.2", network: "n", engine: func(e *dockerdtest.Engine) {
				n := dockerdtest.Network{Name: "old", Driver: "bridge"}
				n.IPAM.Config = []dockerdtest.IPAM{{Subnet: "10.5.0.0/16"}}
				e.Put(n)
			},
			fails: "network old has 10.5.0.0/16: docker network rm old",
		},
		{
			name: "no lease", version: "28.5.2", network: "n", daemon: func(s *status.Status) { s.Lease.Subnet, s.State = "", status.StateWaiting },
			fails: "the daemon has no subnet yet (waiting): flannelctl status",
		},
		{name: "a name of Docker's", version: "28.5.2", network: "host", fails: `"host": is a network of Docker's own`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			engine := dockerdtest.New(t)
			engine.Version = tt.version
			if tt.engine != nil {
				tt.engine(engine)
			}
			s := running()
			if tt.daemon != nil {
				tt.daemon(&s)
			}
			var out bytes.Buffer
			args := []string{"docker", "network", "create", "--socket=" + statusSocket(t, s), "--docker-socket=" + engine.Socket(), tt.network}
			err := run(t.Context(), streams{strings.NewReader(""), &out, &out}, args, cli.EnvOf(nil))
			if (err == nil) != (tt.fails == "") || err != nil && !strings.HasSuffix(err.Error(), tt.fails) {
				t.Fatalf("error %v, want %q", err, tt.fails)
			}
			if diff := cmp.Diff(tt.says, out.String()); diff != "" {
				t.Errorf("says (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.want, engine.Get(tt.network).Options); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
		})
	}
}
