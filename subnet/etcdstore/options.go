package etcdstore

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
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
	// Prefix is the key below which config and leases are kept.
	Prefix string
	// Username and Password are for etcd's own authentication.
	Username string
	Password Secret
	// CertFile and KeyFile are our certificate for etcd; CAFile is the
	// authority that etcd's certificate is checked against, the system's when
	// empty. Each file is in PEM.
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
	o.Prefix = path.Join("/", o.Prefix)
	if o.Prefix == "/" {
		return o, fmt.Errorf("--etcd-prefix: %q: must be a key such as /coreos.com/network", o.Prefix)
	}
	if (o.CertFile == "") != (o.KeyFile == "") {
		return o, errors.New("--etcd-certfile and --etcd-keyfile go together")
	}
	if (o.Username == "") != (o.Password == "") {
		return o, errors.New("--etcd-username and --etcd-password go together")
	}
	return o, o.validateEndpoints()
}

func (o *Options) validateEndpoints() error {
	if len(o.Endpoints) == 0 {
		return errors.New("--etcd-endpoints: must name at least one URL")
	}
	var schemes []string
	endpoints := make([]string, 0, len(o.Endpoints))
	for _, e := range o.Endpoints {
		e = strings.TrimRight(e, "/")
		u, err := url.Parse(e)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" || u.User != nil || u.Path != "" {
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

// secure reports whether the endpoints are https.
func (o *Options) secure() bool { return strings.HasPrefix(o.Endpoints[0], "https://") }

// tlsConfig reads the certificate files; nil: plain connections.
func (o *Options) tlsConfig() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		text, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("--etcd-cafile: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("--etcd-cafile: %s: has no certificate in PEM", o.CAFile)
		}
	}
	if o.CertFile != "" {
		if _, err := o.certificate(); err != nil {
			return nil, err
		}
		// Read at every handshake: certificates are replaced while we run.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return o.certificate() }
	}
	if !o.secure() {
		if o.CAFile != "" || o.CertFile != "" {
			o.Log.Warn("etcd endpoints are plain http: certificates are not used", "endpoints", o.Endpoints)
		}
		return nil, nil
	}
	return cfg, nil
}

// certificate reads our certificate and its key.
func (o *Options) certificate() (*tls.Certificate, error) {
	cert, err := os.ReadFile(o.CertFile)
	if err != nil {
		return nil, fmt.Errorf("--etcd-certfile: %w", err)
	}
	key, err := os.ReadFile(o.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("--etcd-keyfile: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("--etcd-certfile %s, --etcd-keyfile %s: %w", o.CertFile, o.KeyFile, err)
	}
	return &pair, nil
}
