package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/subnet/etcdstore"
)

func TestParse(t *testing.T) {
	local := []string{"http://127.0.0.1:4001", "http://127.0.0.1:2379"}
	credentials := t.TempDir()
	if err := os.WriteFile(filepath.Join(credentials, "etcd-password"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
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
			env:  []string{"FLANNELD_ETCD_PREFIX=/own", "FLANNEL_ETCD_PREFIX=/package", "FLANNELD_ETCD_CAFILE=own", "FLANNEL_ETCD_CAFILE=package"},
			want: Etcd{Endpoints: []string{"http://127.0.0.1:4001", "http://127.0.0.1:2379"}, Prefix: "/flag", CAFile: "own"},
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
		{
			name: "user and password file",
			args: []string{"--etcd-username=host", "--etcd-password-file=/secret"},
			want: Etcd{Endpoints: local, Prefix: DefaultPrefix, Username: "host", PasswordFile: "/secret"},
		},
		{
			name: "user and password by environment",
			env:  []string{"FLANNELD_ETCD_USERNAME=host", "FLANNELD_ETCD_PASSWORD=secret"},
			want: Etcd{Endpoints: local, Prefix: DefaultPrefix, Username: "host", Password: "secret"},
		},
		{
			name: "password file by environment",
			env:  []string{"FLANNELD_ETCD_USERNAME=host", "FLANNELD_ETCD_PASSWORD_FILE=/secret"},
			want: Etcd{Endpoints: local, Prefix: DefaultPrefix, Username: "host", PasswordFile: "/secret"},
		},
		{
			name: "systemd's credential",
			args: []string{"--etcd-username=host"},
			env:  []string{"CREDENTIALS_DIRECTORY=" + credentials},
			want: Etcd{Endpoints: local, Prefix: DefaultPrefix, Username: "host", PasswordFile: credentials + "/etcd-password"},
		},
		{
			name: "systemd's credential for nobody",
			env:  []string{"CREDENTIALS_DIRECTORY=" + credentials},
			want: Etcd{Endpoints: local, Prefix: DefaultPrefix},
		},
		{
			name: "a password wins over systemd's credential",
			args: []string{"--etcd-username=host", "--etcd-password=secret"},
			env:  []string{"CREDENTIALS_DIRECTORY=" + credentials},
			want: Etcd{Endpoints: local, Prefix: DefaultPrefix, Username: "host", Password: "secret"},
		},
		{
			name: "a password file wins over systemd's credential",
			args: []string{"--etcd-username=host", "--etcd-password-file=/secret"},
			env:  []string{"CREDENTIALS_DIRECTORY=" + credentials},
			want: Etcd{Endpoints: local, Prefix: DefaultPrefix, Username: "host", PasswordFile: "/secret"},
		},
		{
			name: "discovery",
			args: []string{"--etcd-discovery-srv=example.com", "--etcd-discovery-srv-name=prod"},
			want: Etcd{DiscoverySRV: "example.com", DiscoverySRVName: "prod", Prefix: DefaultPrefix},
		},
		{
			name: "no credential for this",
			args: []string{"--etcd-username=host"}, env: []string{"CREDENTIALS_DIRECTORY=" + t.TempDir()},
			err: "--etcd-username needs --etcd-password-file (or --etcd-password)",
		},
		{
			name: "password and password file", args: []string{"--etcd-username=host", "--etcd-password=secret", "--etcd-password-file=/secret"},
			err: "--etcd-password and --etcd-password-file exclude each other",
		},
		{name: "password file without user", args: []string{"--etcd-password-file=/secret"}, err: "--etcd-password-file needs --etcd-username"},
		{
			name: "discovery and endpoints", args: []string{"--etcd-discovery-srv=example.com"}, env: []string{"FLANNELD_ETCD_ENDPOINTS=http://a:1"},
			err: "--etcd-endpoints and --etcd-discovery-srv exclude each other",
		},
		{name: "discovery of a URL", args: []string{"--etcd-discovery-srv=http://a"}, err: `--etcd-discovery-srv: "http://a": must be a domain such as example.com`},
		{name: "name of no discovery", args: []string{"--etcd-discovery-srv-name=prod"}, err: "--etcd-discovery-srv-name needs --etcd-discovery-srv"},
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

// What passes on the way to etcd in a way that others can use is said.
func TestRisks(t *testing.T) {
	user := []string{"--etcd-username=host", "--etcd-password-file=/secret"}
	const srv = "--etcd-discovery-srv=example.com"
	tests := []struct {
		name string
		args []string
		user bool
		want []string
	}{
		{name: "no password", args: []string{"--etcd-endpoints=http://192.0.2.1:2379"}},
		{
			name: "password in plain text", args: []string{"--etcd-endpoints=http://192.0.2.1:2379,http://127.0.0.1:2379,etcd.example:2379"}, user: true,
			want: []string{"the password of user host goes over the network in plain text to http://192.0.2.1:2379,http://etcd.example:2379: use https:// in --etcd-endpoints, and --etcd-cafile"},
		},
		{name: "an authority does not help without TLS", args: []string{"--etcd-endpoints=http://[2001:db8::1]:2379", "--etcd-cafile=ca"}, user: true, want: []string{"the password of user host goes over the network in plain text to http://[2001:db8::1]:2379: use https:// in --etcd-endpoints, and --etcd-cafile"}},
		{name: "password on this machine", args: []string{"--etcd-endpoints=http://127.0.0.1:4001,http://[::1]:2379,http://localhost:1"}, user: true},
		{name: "password with TLS", args: []string{"--etcd-endpoints=https://192.0.2.1:2379"}, user: true},
		{name: "discovery", args: []string{srv}, want: []string{"who forges the SRV records of example.com is taken for etcd: config and leases can be whoever's: give --etcd-cafile"}},
		{
			name: "discovery and password", args: []string{srv}, user: true,
			want: []string{"who forges the SRV records of example.com is taken for etcd: config and leases can be whoever's, and the password of user host goes to them: give --etcd-cafile"},
		},
		{name: "discovery with an authority", args: []string{srv, "--etcd-cafile=ca"}, user: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var e Etcd
			fs := NewFlagSet("test", "usage", io.Discard)
			e.Register(fs)
			args := tt.args
			if tt.user {
				args = append(args, user...)
			}
			if err := Parse(fs, args, EnvOf(nil)); err != nil {
				t.Fatal(err)
			}
			if err := e.Validate(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, e.Risks()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// However a password gets into the wrong flag, no error quotes it.
func TestNoErrorQuotesUserInfo(t *testing.T) {
	const part, rest = "hunter2", "of-the-operator"
	for _, value := range []string{
		"ftp://root:%s@192.0.2.1:2379", "http://root:%s@192.0.2.1:2379", "root:%s@192.0.2.1:2379", "://root:%s@192.0.2.1",
		"htp://root:%s@a,http://b:1", "http://b:1,root:%s@a", "http://%s@", "http://root:%s@", "//%s@a",
	} {
		for _, flag := range []string{"etcd-endpoints", "etcd-discovery-srv"} {
			for _, password := range []string{part + rest, part + "," + rest, part + "://" + rest, part + "@" + rest} {
				var e Etcd
				fs := NewFlagSet("test", "usage", io.Discard)
				e.Register(fs)
				if err := Parse(fs, []string{"--" + flag + "=" + fmt.Sprintf(value, password)}, EnvOf(nil)); err != nil {
					t.Fatal(err)
				}
				err := e.Validate()
				if want := "--" + flag + ": must hold no user: give --etcd-username and --etcd-password-file"; err == nil || err.Error() != want {
					t.Errorf("--%s=%s: error %v, want %s", flag, fmt.Sprintf(value, password), err, want)
				}
				if strings.Contains(fmt.Sprint(err), part) || strings.Contains(fmt.Sprint(err), rest) {
					t.Errorf("the password shows in %v", err)
				}
			}
		}
	}
}

// Options that reach etcd are checked first, and nothing is left out.
func TestStoreOptions(t *testing.T) {
	var e Etcd
	fs := NewFlagSet("test", "usage", io.Discard)
	e.Register(fs)
	args := []string{
		"--etcd-endpoints=192.0.2.1:2379", "--etcd-prefix=p/", "--etcd-cafile=ca", "--etcd-certfile=cert", "--etcd-keyfile=key",
		"--etcd-username=host", "--etcd-password=secret",
	}
	if err := Parse(fs, args, EnvOf(nil)); err != nil {
		t.Fatal(err)
	}
	got, err := e.StoreOptions()
	if err != nil {
		t.Fatal(err)
	}
	want := etcdstore.Options{
		Endpoints: []string{"https://192.0.2.1:2379"}, Prefix: "/p", CAFile: "ca", CertFile: "cert", KeyFile: "key", Username: "host", Password: "secret",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	e.Password, e.PasswordFile = "", "/secret"
	e.DiscoverySRV, e.DiscoverySRVName, fs.Lookup("etcd-endpoints").Changed = "example.com", "prod", false
	want.Endpoints, want.DiscoverySRV, want.DiscoverySRVName, want.Password, want.PasswordFile = nil, "example.com", "prod", "", "/secret"
	fs.Lookup("etcd-password-file").Changed = true
	if got, err = e.StoreOptions(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got, want := e.Etcdctl(), "etcdctl --discovery-srv=example.com --discovery-srv-name=prod --cacert=ca --cert=cert --key=key --user=host"; got != want {
		t.Errorf("Etcdctl() = %q, want %q", got, want)
	}
	e.Username = ""
	if usage := new(UsageError); !errors.As(second(e.StoreOptions()), &usage) {
		t.Error("a password file without a user is no usage error")
	}
}

func second[T any](_ T, err error) error { return err }

// Whoever prints flags, options or their usage does not print the password.
func TestPasswordIsNotShown(t *testing.T) {
	const password = "hunter2-of-the-operator"
	var e Etcd
	var out strings.Builder
	fs := NewFlagSet("test", "usage", &out)
	e.Register(fs)
	if err := Parse(fs, []string{"--etcd-username=host", "--etcd-password=" + password}, EnvOf(nil)); err != nil {
		t.Fatal(err)
	}
	fs.Usage()
	if strings.Contains(out.String(), "redacted") {
		t.Errorf("usage shows a default:\n%s", &out)
	}
	fmt.Fprint(&out, fs.Lookup("etcd-password").Value, Parse(fs, []string{"--etcd-password", password, "--wrong"}, EnvOf(nil)))
	for _, slip := range []string{"-etcd-pasword=", "--etcd-pasword="} {
		fmt.Fprint(&out, Parse(fs, []string{slip + password}, EnvOf(nil)))
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		fmt.Fprintf(&out, verb+verb, e, &e)
	}
	for _, form := range []string{password, fmt.Sprintf("%x", password)} {
		if strings.Contains(out.String(), form) {
			t.Errorf("the password shows as %s in\n%s", form, &out)
		}
	}
	if e.Password != password || !strings.Contains(out.String(), "[redacted]") {
		t.Error("there is no password: the test tests nothing")
	}
}
