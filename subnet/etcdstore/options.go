package etcdstore

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"path"
	"strings"
	"time"
)

// defaultTimeout bounds one attempt to connect, and every request that a watch
// makes by itself.
const defaultTimeout = 5 * time.Second

// Secret is a string that shows itself to nobody: every way of formatting,
// logging or encoding it gives "[redacted]".
type Secret string

const redacted = "[redacted]"

// Format implements [fmt.Formatter], for every verb.
func (Secret) Format(f fmt.State, _ rune) {
	// The state collects into memory and does not fail.
	_, _ = io.WriteString(f, redacted)
}

// String implements [fmt.Stringer].
func (Secret) String() string { return redacted }

// LogValue implements [slog.LogValuer].
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements encoding.TextMarshaler, for JSON too.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Options say which etcd to use and how to reach it.
type Options struct {
	// Endpoints are URLs with a port, all of them http or all https.
	Endpoints []string
	// DiscoverySRV is the domain whose SRV records name the endpoints, instead
	// of Endpoints: _etcd-client-ssl._tcp and, where there are none of these,
	// _etcd-client._tcp. With DiscoverySRVName they are called
	// _etcd-client-ssl-NAME and _etcd-client-NAME.
	DiscoverySRV, DiscoverySRVName string
	// Resolver asks DNS; nil: [net.DefaultResolver].
	Resolver *net.Resolver
	// Prefix is the key below which config and leases are kept.
	Prefix string
	// Username and Password are for etcd's own authentication. PasswordFile is
	// instead of Password: its first line, read again whenever etcd wants to
	// know the password.
	Username     string
	Password     Secret
	PasswordFile string
	// CertFile and KeyFile are our certificate for etcd; CAFile is the
	// authority that etcd's certificate is checked against, the system's when
	// empty. Each file is in PEM, and read again at every handshake.
	CertFile, KeyFile, CAFile string
	// DialTimeout bounds one attempt to connect; 5 s by default.
	DialTimeout time.Duration
	// ReadOnly refuses every write with [ErrReadOnly]: Load then returns a
	// store that has no identity as it is.
	ReadOnly bool
	// Log may be nil.
	Log *slog.Logger
}

// validated returns a copy of o with defaults filled in.
func (o Options) validated() (Options, error) {
	if o.DialTimeout <= 0 {
		o.DialTimeout = defaultTimeout
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Resolver = prompt(cmp.Or(o.Resolver, net.DefaultResolver))
	o.Prefix = path.Join("/", o.Prefix)
	if o.Prefix == "/" {
		return o, fmt.Errorf("--etcd-prefix: %q: must be a key such as /coreos.com/network", o.Prefix)
	}
	if (o.CertFile == "") != (o.KeyFile == "") {
		return o, errors.New("--etcd-certfile and --etcd-keyfile go together")
	}
	if o.Password != "" && o.PasswordFile != "" {
		return o, errors.New("--etcd-password and --etcd-password-file exclude each other")
	}
	if (o.Username == "") != (o.Password == "" && o.PasswordFile == "") {
		return o, errors.New("--etcd-username and --etcd-password (or --etcd-password-file) go together")
	}
	if o.DiscoverySRV == "" {
		return o, o.validateEndpoints()
	}
	if len(o.Endpoints) > 0 {
		return o, errors.New("--etcd-endpoints and --etcd-discovery-srv exclude each other")
	}
	return o, nil
}

func (o *Options) validateEndpoints() error {
	if len(o.Endpoints) == 0 {
		return errors.New("--etcd-endpoints: must name at least one URL")
	}
	var schemes []string
	endpoints := make([]string, 0, len(o.Endpoints))
	for _, e := range o.Endpoints {
		e = strings.TrimRight(e, "/")
		if strings.Contains(e, "@") {
			// Not quoted: what stands before it may be a password.
			return errors.New("--etcd-endpoints: must hold no user: give --etcd-username and --etcd-password-file")
		}
		u, err := url.Parse(e)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" || u.Path != "" {
			return fmt.Errorf("--etcd-endpoints: %q: must be a URL such as http://192.0.2.10:2379", e)
		}
		schemes, endpoints = append(schemes, u.Scheme), append(endpoints, e)
	}
	for i, s := range schemes {
		if s != schemes[0] {
			return fmt.Errorf("--etcd-endpoints: %q: must be %s like the others", endpoints[i], schemes[0])
		}
	}
	o.Endpoints = endpoints
	return nil
}

// secure reports whether endpoints, which are all of one kind, are https.
func secure(endpoints []string) bool { return strings.HasPrefix(endpoints[0], "https://") }
