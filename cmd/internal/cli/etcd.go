package cli

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"github.com/spf13/pflag"

	"github.com/flanneld-go/flanneld-go/subnet/etcdstore"
)

// DefaultEndpoints and DefaultPrefix are flannel's.
const (
	DefaultEndpoints = "http://127.0.0.1:4001,http://127.0.0.1:2379"
	DefaultPrefix    = "/coreos.com/network"
)

// Etcd is how to reach etcd.
type Etcd struct {
	// Endpoints are empty with DiscoverySRV.
	Endpoints                      []string
	DiscoverySRV, DiscoverySRVName string
	Prefix                         string
	KeyFile, CertFile, CAFile      string
	Username                       string
	Password                       etcdstore.Secret
	PasswordFile                   string
	endpoints                      string
	fs                             *pflag.FlagSet
}

// secretValue is a flag whose value nobody is shown, usage and errors included.
type secretValue struct{ *etcdstore.Secret }

// Set implements [pflag.Value].
func (s secretValue) Set(text string) error {
	*s.Secret = etcdstore.Secret(text)
	return nil
}

// Type implements [pflag.Value].
func (secretValue) Type() string { return "string" }

// String implements [pflag.Value]: empty as long as there is none, so that usage
// shows no default.
func (s secretValue) String() string {
	if s.Secret == nil || *s.Secret == "" {
		return ""
	}
	return s.Secret.String()
}

// passwordCredential is the name under which systemd hands us the password
// (LoadCredential=, systemd.exec(5)).
const passwordCredential = "etcd-password"

// Register adds the flags to fs.
func (e *Etcd) Register(fs *pflag.FlagSet) {
	e.fs = fs
	fs.StringVar(&e.endpoints, "etcd-endpoints", DefaultEndpoints, "comma-separated `URLs` of the etcd members")
	fs.StringVar(&e.DiscoverySRV, "etcd-discovery-srv", "", "`domain` whose DNS SRV records name the etcd members, instead of --etcd-endpoints")
	fs.StringVar(&e.DiscoverySRVName, "etcd-discovery-srv-name", "", "`suffix` of the SRV records' service name: _etcd-client-ssl-SUFFIX")
	fs.StringVar(&e.Prefix, "etcd-prefix", DefaultPrefix, "etcd `key` below which config and leases are kept")
	fs.StringVar(&e.CAFile, "etcd-cafile", "", "`file` with the certificate authority that etcd's certificate is checked against")
	fs.StringVar(&e.CertFile, "etcd-certfile", "", "`file` with our client certificate for etcd")
	fs.StringVar(&e.KeyFile, "etcd-keyfile", "", "`file` with the client certificate's key")
	fs.StringVar(&e.Username, "etcd-username", "", "etcd user `name`")
	fs.Var(secretValue{&e.Password}, "etcd-password", "etcd user's `password`; better given by --etcd-password-file: other users see a command line")
	fs.StringVar(&e.PasswordFile, "etcd-password-file", "", "`file` whose first line is the password, read again when it is needed again (default: systemd's credential "+passwordCredential+", if there is one)")
	markCredential(fs, "etcd-password-file", passwordCredential)
}

// Given reports whether a flag was set on the command line or by environment.
func (e *Etcd) Given(flag string) bool { return e.fs.Changed(flag) }

// Validate checks the values and fills Endpoints.
func (e *Etcd) Validate() error {
	for _, check := range []func() error{e.checkEndpoints, e.checkDiscovery, e.checkSecrets} {
		if err := check(); err != nil {
			return err
		}
	}
	trimmed := strings.Trim(e.Prefix, "/")
	if trimmed == "" {
		return Usagef("--etcd-prefix: %q: must be a key such as %s", e.Prefix, DefaultPrefix)
	}
	e.Prefix = "/" + trimmed
	return nil
}

// StoreOptions are the options of a store there, checked.
func (e *Etcd) StoreOptions() (etcdstore.Options, error) {
	if err := e.Validate(); err != nil {
		return etcdstore.Options{}, err
	}
	return etcdstore.Options{
		Endpoints: e.Endpoints, DiscoverySRV: e.DiscoverySRV, DiscoverySRVName: e.DiscoverySRVName,
		Prefix:   e.Prefix,
		Username: e.Username, Password: e.Password, PasswordFile: e.PasswordFile,
		CertFile: e.CertFile, KeyFile: e.KeyFile, CAFile: e.CAFile,
	}, nil
}

// Where says which etcd this is.
func (e *Etcd) Where() string {
	if e.DiscoverySRV != "" {
		return "the SRV records of " + e.DiscoverySRV
	}
	return strings.Join(e.Endpoints, ",")
}

// Etcdctl is the command line that makes etcdctl talk to the same members in the
// same way, without the password, which it asks for.
func (e *Etcd) Etcdctl() string {
	line := "etcdctl"
	add := func(flag, value string) {
		if value != "" {
			line += " --" + flag + "=" + value
		}
	}
	add("endpoints", strings.Join(e.Endpoints, ","))
	add("discovery-srv", e.DiscoverySRV)
	add("discovery-srv-name", e.DiscoverySRVName)
	add("cacert", e.CAFile)
	add("cert", e.CertFile)
	add("key", e.KeyFile)
	add("user", e.Username)
	return line
}

// Risks says what can go wrong with the password, or with whom we take for etcd,
// on the way there: one line each, for the log. It is asked after Validate.
func (e *Etcd) Risks() []string {
	var risks []string
	if open := e.inTheClear(); e.Username != "" && len(open) > 0 {
		risks = append(risks, fmt.Sprintf("the password of user %s goes over the network in plain text to %s: use https:// in --etcd-endpoints, and --etcd-cafile",
			e.Username, strings.Join(open, ",")))
	}
	if e.DiscoverySRV != "" && e.CAFile == "" {
		what := "config and leases can be whoever's"
		if e.Username != "" {
			what += ", and the password of user " + e.Username + " goes to them"
		}
		risks = append(risks, fmt.Sprintf("who forges the SRV records of %s is taken for etcd: %s: give --etcd-cafile", e.DiscoverySRV, what))
	}
	return risks
}

// inTheClear are the endpoints without TLS that are not on this machine.
func (e *Etcd) inTheClear() []string {
	var open []string
	for _, endpoint := range e.Endpoints {
		u, err := url.Parse(endpoint)
		if err != nil || u.Scheme != "http" || u.Hostname() == "localhost" {
			continue
		}
		if addr, err := netip.ParseAddr(u.Hostname()); err == nil && addr.IsLoopback() {
			continue
		}
		open = append(open, endpoint)
	}
	return open
}

func (e *Etcd) checkEndpoints() error {
	e.Endpoints = nil
	if e.DiscoverySRV != "" {
		return nil
	}
	if strings.Contains(e.endpoints, "@") {
		// Nothing of it is quoted: a password may hold a comma, and so stand in
		// two parts.
		return Usagef("--etcd-endpoints: must hold no user: give --etcd-username and --etcd-password-file")
	}
	for part := range strings.SplitSeq(e.endpoints, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		if !strings.Contains(part, "://") {
			part = e.defaultScheme() + part
		}
		scheme, rest, _ := strings.Cut(part, "://")
		if rest == "" || (scheme != "http" && scheme != "https") {
			return Usagef("--etcd-endpoints: %q: must be a URL such as http://192.0.2.10:2379 or https://etcd.example:2379", part)
		}
		e.Endpoints = append(e.Endpoints, part)
	}
	if len(e.Endpoints) == 0 {
		return Usagef("--etcd-endpoints: %q: must name at least one URL such as http://192.0.2.10:2379", e.endpoints)
	}
	return nil
}

func (e *Etcd) checkDiscovery() error {
	switch {
	case e.DiscoverySRV == "" && e.DiscoverySRVName != "":
		return Usagef("--etcd-discovery-srv-name needs --etcd-discovery-srv")
	case e.DiscoverySRV == "":
		return nil
	case e.Given("etcd-endpoints"):
		return Usagef("--etcd-endpoints and --etcd-discovery-srv exclude each other")
	case strings.Contains(e.DiscoverySRV, "@"):
		return Usagef("--etcd-discovery-srv: must hold no user: give --etcd-username and --etcd-password-file")
	case strings.ContainsAny(e.DiscoverySRV, ":/, "):
		return Usagef("--etcd-discovery-srv: %q: must be a domain such as example.com", e.DiscoverySRV)
	}
	return nil
}

func (e *Etcd) checkSecrets() error {
	if (e.CertFile == "") != (e.KeyFile == "") {
		return Usagef("--etcd-certfile and --etcd-keyfile go together: give both or neither")
	}
	if e.PasswordFile != "" && !e.Given("etcd-password-file") && (e.Password != "" || e.Username == "") {
		e.PasswordFile = "" // systemd's, and not wanted.
	}
	switch {
	case e.Password != "" && e.Username == "":
		return Usagef("--etcd-password needs --etcd-username")
	case e.PasswordFile != "" && e.Username == "":
		return Usagef("--etcd-password-file needs --etcd-username")
	case e.Password != "" && e.PasswordFile != "":
		return Usagef("--etcd-password and --etcd-password-file exclude each other")
	case e.Password == "" && e.PasswordFile == "" && e.Username != "":
		return Usagef("--etcd-username needs --etcd-password-file (or --etcd-password)")
	}
	return nil
}

// defaultScheme is that of endpoints given as host:port, which etcd's own
// client takes too.
func (e *Etcd) defaultScheme() string {
	if e.CAFile != "" || e.CertFile != "" {
		return "https://"
	}
	return "http://"
}
