package etcdtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// PKI are the files of a certificate authority made for one test, in PEM.
type PKI struct {
	CA                    string
	ServerCert, ServerKey string
	ClientCert, ClientKey string
	// HostCert is for a client named "host".
	HostCert, HostKey string
	// ExpiredCert is for a server and a client, and was valid until a minute
	// ago.
	ExpiredCert, ExpiredKey string
	StrangeCA               string
}

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// WritePKI makes an authority with a certificate for a server on 127.0.0.1,
// localhost and the given hosts, one each for clients named "root" and "host" and one that has
// expired, and writes them into dir. StrangeCA is an authority that has signed none of them.
func WritePKI(dir string, hosts ...net.IP) (PKI, error) {
	p := PKI{
		CA:         filepath.Join(dir, "ca.crt"),
		ServerCert: filepath.Join(dir, "server.crt"), ServerKey: filepath.Join(dir, "server.key"),
		ClientCert: filepath.Join(dir, "client.crt"), ClientKey: filepath.Join(dir, "client.key"),
		HostCert: filepath.Join(dir, "host.crt"), HostKey: filepath.Join(dir, "host.key"),
		ExpiredCert: filepath.Join(dir, "expired.crt"), ExpiredKey: filepath.Join(dir, "expired.key"),
		StrangeCA: filepath.Join(dir, "strange.crt"),
	}
	ca, err := newAuthority("etcdtest", p.CA)
	if err != nil {
		return PKI{}, err
	}
	if _, err := newAuthority("a stranger", p.StrangeCA); err != nil {
		return PKI{}, err
	}
	server := template("server")
	server.DNSNames = []string{"localhost"}
	server.IPAddresses = append([]net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, hosts...)
	server.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	if err := ca.issue(server, p.ServerCert, p.ServerKey); err != nil {
		return PKI{}, err
	}
	expired := template("expired")
	expired.DNSNames, expired.IPAddresses = server.DNSNames, server.IPAddresses
	expired.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	expired.NotAfter = time.Now().Add(-time.Minute)
	if err := ca.issue(expired, p.ExpiredCert, p.ExpiredKey); err != nil {
		return PKI{}, err
	}
	client := template("root")
	client.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if err := ca.issue(client, p.ClientCert, p.ClientKey); err != nil {
		return PKI{}, err
	}
	host := template("host")
	host.ExtKeyUsage = client.ExtKeyUsage
	return p, ca.issue(host, p.HostCert, p.HostKey)
}

func template(name string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
}

func newAuthority(name, file string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make authority %s: %w", name, err)
	}
	cert := template(name)
	cert.IsCA, cert.BasicConstraintsValid = true, true
	cert.KeyUsage = x509.KeyUsageCertSign
	a := &authority{cert: cert, key: key}
	return a, a.sign(cert, key, file)
}

// issue makes a key and a certificate for it.
func (a *authority) issue(cert *x509.Certificate, certFile, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make key of %s: %w", cert.Subject.CommonName, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode key of %s: %w", cert.Subject.CommonName, err)
	}
	if err := writePEM(keyFile, "PRIVATE KEY", der); err != nil {
		return err
	}
	return a.sign(cert, key, certFile)
}

func (a *authority) sign(cert *x509.Certificate, key *ecdsa.PrivateKey, file string) error {
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("sign certificate of %s: %w", cert.Subject.CommonName, err)
	}
	return writePEM(file, "CERTIFICATE", der)
}

func writePEM(file, kind string, der []byte) error {
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

// ClientConfig is for a client that shows ClientCert.
func (p PKI) ClientConfig() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(p.ClientCert, p.ClientKey)
	if err != nil {
		return nil, fmt.Errorf("read client certificate: %w", err)
	}
	ca, err := os.ReadFile(p.CA)
	if err != nil {
		return nil, fmt.Errorf("read authority: %w", err)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, RootCAs: x509.NewCertPool()}
	cfg.RootCAs.AppendCertsFromPEM(ca)
	return cfg, nil
}
