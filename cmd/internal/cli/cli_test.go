package cli

import (
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	tests := []struct {
		name string
		args []string
		env  []string
		want Etcd
		err  string
	}{
		{
			name: "defaults",
			want: Etcd{Endpoints: []string{"http://127.0.0.1:4001", "http://127.0.0.1:2379"}, Prefix: "/coreos.com/network"},
		},
		{
			name: "two dashes",
			args: []string{"--etcd-prefix=/a/b", "--etcd-endpoints", "http://192.0.2.1:2379"},
			want: Etcd{Endpoints: []string{"http://192.0.2.1:2379"}, Prefix: "/a/b"},
		},
		{
			name: "one dash, as Go's flags are written",
			args: []string{"-etcd-prefix=/a/b", "-etcd-endpoints", "http://192.0.2.1:2379"},
			want: Etcd{Endpoints: []string{"http://192.0.2.1:2379"}, Prefix: "/a/b"},
		},
		{
			name: "environment",
			env:  []string{"FLANNELD_ETCD_PREFIX=/atomic.io/network/", "FLANNELD_ETCD_ENDPOINTS=https://a:1, https://b:2"},
			want: Etcd{Endpoints: []string{"https://a:1", "https://b:2"}, Prefix: "/atomic.io/network"},
		},
		{
			name: "names of the packages of Fedora and CentOS",
			env:  []string{"FLANNEL_ETCD_PREFIX=/atomic.io/network", "FLANNEL_ETCD_ENDPOINTS=http://192.0.2.9:2379"},
			want: Etcd{Endpoints: []string{"http://192.0.2.9:2379"}, Prefix: "/atomic.io/network"},
		},
		{
			name: "flannel's own name wins over the package's, a flag over both",
			args: []string{"--etcd-prefix=/flag"},
			env:  []string{"FLANNELD_ETCD_PREFIX=/own", "FLANNEL_ETCD_PREFIX=/package", "FLANNELD_ETCD_USERNAME=own", "FLANNEL_ETCD_USERNAME=package"},
			want: Etcd{Endpoints: []string{"http://127.0.0.1:4001", "http://127.0.0.1:2379"}, Prefix: "/flag", Username: "own"},
		},
		{
			name: "host and port alone",
			args: []string{"--etcd-endpoints=192.0.2.1:2379"},
			want: Etcd{Endpoints: []string{"http://192.0.2.1:2379"}, Prefix: DefaultPrefix},
		},
		{
			name: "host and port alone, with TLS",
			args: []string{"--etcd-endpoints=192.0.2.1:2379", "--etcd-cafile=/ca.pem"},
			want: Etcd{Endpoints: []string{"https://192.0.2.1:2379"}, Prefix: DefaultPrefix, CAFile: "/ca.pem"},
		},
		{name: "no scheme of etcd", args: []string{"--etcd-endpoints=ftp://a"}, err: `--etcd-endpoints: "ftp://a": must be a URL such as http://192.0.2.10:2379 or https://etcd.example:2379`},
		{name: "no endpoint", args: []string{"--etcd-endpoints=,"}, err: `--etcd-endpoints: ",": must name at least one URL such as http://192.0.2.10:2379`},
		{name: "certificate without key", args: []string{"--etcd-certfile=/c"}, err: "--etcd-certfile and --etcd-keyfile go together: give both or neither"},
		{name: "password without user", env: []string{"FLANNELD_ETCD_PASSWORD=secret"}, err: "--etcd-password needs --etcd-username"},
		{name: "empty prefix", args: []string{"--etcd-prefix=/"}, err: `--etcd-prefix: "/": must be a key such as /coreos.com/network`},
		{name: "unknown flag", args: []string{"--etcd-prefx=/a"}, err: "unknown flag: --etcd-prefx (see --help)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got Etcd
			fs := NewFlagSet("test", "usage", io.Discard)
			got.Register(fs)
			err := Parse(fs, tt.args, EnvOf(tt.env))
			if err == nil {
				err = got.Validate()
			}
			if tt.err != "" {
				var usage *UsageError
				if !errors.As(err, &usage) || err.Error() != tt.err {
					t.Fatalf("error %v, want a UsageError %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got.endpoints, got.fs = "", nil
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(Etcd{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	for _, arg := range []string{"-h", "-help", "--help"} {
		fs := NewFlagSet("test", "usage", io.Discard)
		if err := Parse(fs, []string{arg}, EnvOf(nil)); !errors.Is(err, ErrHelp) {
			t.Errorf("%s: %v, want ErrHelp", arg, err)
		}
	}
}

func TestBadEnvironmentNamesTheVariable(t *testing.T) {
	fs := NewFlagSet("test", "usage", io.Discard)
	fs.Int("healthz-port", 0, "")
	err := Parse(fs, nil, EnvOf([]string{"FLANNELD_HEALTHZ_PORT=eighty"}))
	want := `environment: FLANNELD_HEALTHZ_PORT: "eighty": strconv.ParseInt: parsing "eighty": invalid syntax`
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}
