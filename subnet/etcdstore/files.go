package etcdstore

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
)

// files are what the options name by path. They are replaced while we run, and
// so each is read again when it is needed: certificates at every handshake, the
// password whenever a token is asked for.
type files struct {
	// A field is nil if the options name no such file.
	authority *kept[*x509.CertPool]
	own       *kept[*tls.Certificate]
	password  *kept[Secret]
	// given is the password that came without a file.
	given Secret
}

// openFiles reads all files once: what is wrong with them at the start is the
// operator's mistake, later it is a replacement half done.
func openFiles(o *Options) (*files, error) {
	f := &files{given: o.Password}
	var err error
	if o.CAFile != "" {
		f.authority, err = keep(o.Log, func() (*x509.CertPool, []byte, error) { return readAuthority(o.CAFile) }, o.CAFile)
	}
	if o.CertFile != "" && err == nil {
		f.own, err = keep(o.Log, func() (*tls.Certificate, []byte, error) { return readPair(o.CertFile, o.KeyFile) }, o.CertFile, o.KeyFile)
	}
	if o.PasswordFile != "" && err == nil {
		f.password, err = keep(o.Log, func() (Secret, []byte, error) { return readPassword(o.PasswordFile) }, o.PasswordFile)
	}
	return f, err
}

// tlsConfig is for one handshake.
func (f *files) tlsConfig() *tls.Config {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.authority != nil {
		cfg.RootCAs = f.authority.get()
	}
	if f.own != nil {
		own := f.own.get()
		// Not cfg.Certificates: it is left out where etcd names authorities
		// that did not sign it, and etcd then misses a certificate instead of
		// refusing this one.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own, nil }
	}
	return cfg
}

// secret is the password as it is now.
func (f *files) secret() Secret {
	if f.password != nil {
		return f.password.get()
	}
	return f.given
}

// commonName is the user that etcd takes from our certificate if it is told to
// (--client-cert-auth) and we give no other.
func (f *files) commonName() string {
	if f.own == nil {
		return ""
	}
	return f.own.get().Leaf.Subject.CommonName
}

// kept is what files say, or said last while they were in order.
type kept[T any] struct {
	log   *slog.Logger
	paths []string
	// read returns what the files say, and their content.
	read func() (T, []byte, error)

	mu sync.Mutex
	// The fields below are guarded by mu.

	value T
	sum   [sha256.Size]byte
	// bad: the files are not in order, which was said.
	bad bool
}

func keep[T any](log *slog.Logger, read func() (T, []byte, error), paths ...string) (*kept[T], error) {
	value, content, err := read()
	if err != nil {
		return nil, err
	}
	return &kept[T]{log: log, paths: paths, read: read, value: value, sum: sha256.Sum256(content)}, nil
}

func (k *kept[T]) get() T {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !rereadable(k.paths) {
		return k.value
	}
	value, content, err := k.read()
	if err != nil {
		if !k.bad {
			k.log.Warn("etcd access file is not in order, its former content stays in use", "error", err)
		}
		k.bad = true
		return k.value
	}
	sum := sha256.Sum256(content)
	if k.bad || sum != k.sum {
		k.log.Info("etcd access file was replaced", "files", k.paths)
	}
	k.value, k.sum, k.bad = value, sum, false
	return value
}

// rereadable reports whether none of the files is a pipe, which gives its content
// once and would then block. One that is missing is for read to tell.
func rereadable(paths []string) bool {
	for _, p := range paths {
		if info, err := os.Stat(p); err == nil && !info.Mode().IsRegular() {
			return false
		}
	}
	return true
}

func readAuthority(path string) (*x509.CertPool, []byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("--etcd-cafile: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, nil, fmt.Errorf("--etcd-cafile: %s: has no certificate in PEM", path)
	}
	if cutShort(text) {
		return nil, nil, fmt.Errorf("--etcd-cafile: %s: ends within a certificate", path)
	}
	return pool, text, nil
}

// cutShort reports whether a file of certificates ends within one, as while it is
// written. Those before it would do for the standard library.
func cutShort(text []byte) bool {
	for block := new(pem.Block); block != nil; {
		block, text = pem.Decode(text)
	}
	return bytes.Contains(text, []byte("-----BEGIN CERTIFICATE"))
}

func readPair(certFile, keyFile string) (*tls.Certificate, []byte, error) {
	cert, err := os.ReadFile(certFile)
	if err != nil {
		return nil, nil, fmt.Errorf("--etcd-certfile: %w", err)
	}
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, nil, fmt.Errorf("--etcd-keyfile: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err == nil && cutShort(cert) {
		err = errors.New("certificate file ends within a certificate")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("--etcd-certfile %s, --etcd-keyfile %s: %w", certFile, keyFile, err)
	}
	return &pair, append(cert, key...), nil
}

// readPassword reads the first line of a file.
func readPassword(path string) (Secret, []byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", nil, fmt.Errorf("--etcd-password-file: %w", err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	if line = strings.TrimSuffix(line, "\r"); line == "" {
		return "", nil, fmt.Errorf("--etcd-password-file: %s: %w", path, errNoPassword)
	}
	return Secret(line), []byte(line), nil
}

var errNoPassword = errors.New("has no password in its first line")
