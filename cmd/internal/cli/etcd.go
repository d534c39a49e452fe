package cli

import (
	"strings"

	"github.com/spf13/pflag"
)

// DefaultEndpoints and DefaultPrefix are flannel's.
const (
	DefaultEndpoints = "http://127.0.0.1:4001,http://127.0.0.1:2379"
	DefaultPrefix    = "/coreos.com/network"
)

// Etcd is how to reach etcd.
type Etcd struct {
	Endpoints                 []string
	Prefix                    string
	KeyFile, CertFile, CAFile string
	Username                  string
	Password                  string
	endpoints                 string
	fs                        *pflag.FlagSet
}

// Register adds the flags to fs.
func (e *Etcd) Register(fs *pflag.FlagSet) {
	e.fs = fs
	fs.StringVar(&e.endpoints, "etcd-endpoints", DefaultEndpoints, "comma-separated `URLs` of the etcd members")
	fs.StringVar(&e.Prefix, "etcd-prefix", DefaultPrefix, "etcd `key` below which config and leases are kept")
	fs.StringVar(&e.CAFile, "etcd-cafile", "", "`file` with the certificate authority that etcd's certificate is checked against")
	fs.StringVar(&e.CertFile, "etcd-certfile", "", "`file` with our client certificate for etcd")
	fs.StringVar(&e.KeyFile, "etcd-keyfile", "", "`file` with the client certificate's key")
	fs.StringVar(&e.Username, "etcd-username", "", "etcd user `name`")
	fs.StringVar(&e.Password, "etcd-password", "", "etcd user's `password`; better given by FLANNELD_ETCD_PASSWORD, which other users cannot read")
}

// Given reports whether a flag was set on the command line or by environment.
func (e *Etcd) Given(flag string) bool { return e.fs.Changed(flag) }

// Validate checks the values and fills Endpoints.
func (e *Etcd) Validate() error {
	e.Endpoints = nil
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
	if (e.CertFile == "") != (e.KeyFile == "") {
		return Usagef("--etcd-certfile and --etcd-keyfile go together: give both or neither")
	}
	if e.Password != "" && e.Username == "" {
		return Usagef("--etcd-password needs --etcd-username")
	}
	trimmed := strings.Trim(e.Prefix, "/")
	if trimmed == "" {
		return Usagef("--etcd-prefix: %q: must be a key such as %s", e.Prefix, DefaultPrefix)
	}
	e.Prefix = "/" + trimmed
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
