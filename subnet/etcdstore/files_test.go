package etcdstore

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
)

// logBuffer is a log that several goroutines write.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *logBuffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func contentOf(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func put(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestReadPassword(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"one line", "secret\n", "secret"},
		{"no newline", "secret", "secret"},
		{"several lines", "secret\nnotes\n", "secret"},
		{"spaces are of the password", " se cret \n", " se cret "},
		{"as Windows writes it", "secret\r\n", "secret"},
		{"empty", "", ""},
		{"empty line", "\nsecret\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "password")
			put(t, path, c.text)
			got, _, err := readPassword(path)
			if string(got) != c.want || errors.Is(err, errNoPassword) != (c.want == "") {
				t.Errorf("readPassword = %q, %v, want %q", string(got), err, c.want)
			}
		})
	}
}

// Whatever part of a file of certificates there is, it is all or nothing: the
// authorities in it are never some of them.
func TestCutShort(t *testing.T) {
	pki := writePKI(t)
	whole := "# ours\n" + contentOf(t, pki.CA) + contentOf(t, pki.StrangeCA)
	path := filepath.Join(t.TempDir(), "ca.pem")
	first := len("# ours\n" + contentOf(t, pki.CA))
	const begin = len("-----BEGIN CERTIFICATE")
	for n := range len(whole) {
		put(t, path, whole[:n])
		pool, _, err := readAuthority(path)
		// One newline less is no loss. A file that ends between two
		// certificates, or in the line that begins one, is one of fewer.
		fine := n >= len(whole)-1 || n >= first-1 && n < first+begin
		if (err == nil) != fine {
			t.Fatalf("%d of %d bytes: %v, %v; the first certificate has %d", n, len(whole), pool, err, first)
		}
	}
	put(t, path, whole+contentOf(t, pki.ClientKey))
	if _, _, err := readAuthority(path); err != nil {
		t.Errorf("with a key behind the certificates: %v", err)
	}
	pair := filepath.Join(t.TempDir(), "pair.pem")
	put(t, pair, contentOf(t, pki.ClientCert)+contentOf(t, pki.CA)[:100])
	if _, _, err := readPair(pair, pki.ClientKey); err == nil {
		t.Error("a chain that is cut short is taken")
	}
}

// A file that is not in order, in whatever way and however often it is asked
// for, leaves what was there before and is told once.
func TestKeptFiles(t *testing.T) {
	pki, other := writePKI(t), writePKI(t)
	dir := t.TempDir()
	cert, key, secret := filepath.Join(dir, "cert"), filepath.Join(dir, "key"), filepath.Join(dir, "secret")
	put(t, cert, contentOf(t, pki.ClientCert))
	put(t, key, contentOf(t, pki.ClientKey))
	put(t, secret, "word-1\n")
	log := &logBuffer{}
	f, err := openFiles(&Options{CertFile: cert, KeyFile: key, PasswordFile: secret, Log: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	former := string(f.own.get().Certificate[0])
	const bad, good = "is not in order", "was replaced"
	for _, step := range []struct {
		name, path, text string
		password         string
		// says is how often the log has bad and good so far.
		bad, good int
	}{
		{"nothing happened", secret, "word-1\n", "word-1", 0, 0},
		{"password emptied", secret, "", "word-1", 1, 0},
		{"still no password", secret, "\n", "word-1", 1, 0},
		{"another password", secret, "word-2\n", "word-2", 1, 1},
		{"another certificate, half", cert, contentOf(t, other.ClientCert)[:50], "word-2", 2, 1},
		{"another certificate without its key", cert, contentOf(t, other.ClientCert), "word-2", 2, 1},
		{"half the key", key, contentOf(t, other.ClientKey)[:50], "word-2", 2, 1},
	} {
		put(t, step.path, step.text)
		for range 3 {
			if got := f.secret(); string(got) != step.password {
				t.Errorf("%s: password %q, want %q", step.name, string(got), step.password)
			}
			if got := string(f.own.get().Certificate[0]); got != former {
				t.Errorf("%s: another certificate", step.name)
			}
		}
		if b, g := strings.Count(log.String(), bad), strings.Count(log.String(), good); b != step.bad || g != step.good {
			t.Errorf("%s: said %q %d times and %q %d times, want %d and %d\n%s", step.name, bad, b, good, g, step.bad, step.good, log)
		}
	}
	put(t, key, contentOf(t, other.ClientKey))
	if got := string(f.own.get().Certificate[0]); got == former || f.own.get().PrivateKey == nil {
		t.Error("the former certificate is in use although both files are in order")
	}
	if n := strings.Count(log.String(), good); n != 2 {
		t.Errorf("%d replacements said, want 2\n%s", n, log)
	}
	if f.commonName() != "root" {
		t.Errorf("common name %q", f.commonName())
	}
	for _, hidden := range []string{"word-1", "word-2", keyBody(t, pki), keyBody(t, other)} {
		if strings.Contains(log.String(), hidden) {
			t.Errorf("the log has %q", hidden)
		}
	}
}

// keyBody is the part of a key's file that must show nowhere.
func keyBody(t testing.TB, pki etcdtest.PKI) string {
	t.Helper()
	return strings.Split(contentOf(t, pki.ClientKey), "\n")[1]
}

// A pipe gives its content once: `--etcd-password-file <(...)`.
func TestPipeIsReadOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	go func() { _ = os.WriteFile(path, []byte("secret\n"), 0) }()
	f, err := openFiles(&Options{PasswordFile: path, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := f.secret(); got != "secret" {
			t.Errorf("password %q", string(got))
		}
	}
}
