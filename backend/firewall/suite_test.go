package firewall

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/firewall/native"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// bench is one firewall that tests act on, as we and as others.
type bench struct {
	tools Tools
	// v is the variant that others use.
	v Variant
	f *Firewall
}

// onEach runs a test on the fake and on the real variants, each in a network
// namespace of its own.
func onEach(t *testing.T, test func(t *testing.T, b *bench)) {
	t.Helper()
	run := func(t *testing.T, tools Tools, native Native, command string) {
		variants, err := tools.Variants(t.Context(), subnet.IPv4)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range variants {
			if v.Command == command {
				test(t, &bench{tools, v, New(Options{Log: quiet(), Tools: tools, Native: native})})
				return
			}
		}
		t.Skipf("needs program: %s", command)
	}
	t.Run("fake", func(t *testing.T) { run(t, newFakeTools(), &fakeNative{}, "iptables-nft") })
	for _, command := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(command, func(t *testing.T) {
			enterNamespace(t)
			run(t, &Exec{}, nil, command)
		})
	}
}

// enterNamespace gives the goroutine's thread a new network namespace. Both end
// with the test: a locked thread ends with its goroutine.
func enterNamespace(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a network namespace")
	}
	runtime.LockOSThread()
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		t.Fatalf("unshare: %v", err)
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// others does what another program would: whole tables, in the form of restore.
func (b *bench) others(t *testing.T, script string) {
	t.Helper()
	for _, table := range strings.SplitAfter(strings.TrimLeft(script, "\n"), "COMMIT\n") {
		if table == "" {
			continue
		}
		if err := b.tools.Restore(context.Background(), b.v, table); err != nil {
			t.Fatalf("%v in:\n%s", err, table)
		}
	}
}

var volatile = regexp.MustCompile(`(?m)^#.*\n|\[\d+:\d+\]`)

// save returns the rules without comments and counters.
func (b *bench) save(t *testing.T) string {
	t.Helper()
	text, err := b.tools.Save(context.Background(), b.v)
	if err != nil {
		t.Fatal(err)
	}
	return volatile.ReplaceAllString(text, "")
}

// chain returns the rules of one chain, as we understand them: what is not in
// our vocabulary is put behind.
func (b *bench) chain(t *testing.T, table, name string) []string {
	t.Helper()
	set, err := parseSave(b.save(t))
	if err != nil {
		t.Fatal(err)
	}
	c := set.table(table).chain(name)
	if c == nil {
		return nil
	}
	var out []string
	for _, l := range c.rules {
		r := l.rule
		if isOurs(r.target) {
			r.comment = ""
		}
		out = append(out, strings.TrimSpace(r.String()+" "+r.other))
	}
	return out
}

func (b *bench) apply(t *testing.T, d Desired) {
	t.Helper()
	if err := b.f.Apply(t.Context(), d); err != nil {
		t.Fatalf("Apply: %v", err)
	}
}

func vxlanDesired() Desired {
	return Desired{
		Networks:     subnet.ByFamily[netip.Prefix]{netip.MustParsePrefix("10.5.0.0/16")},
		Own:          subnet.Subnet{netip.MustParsePrefix("10.5.3.0/24")},
		Tunnel:       backend.Tunnel{Devices: []string{"flannel.1"}, Port: 8472},
		Uplink:       "eth0",
		Peers:        peers(addrs("198.18.0.2", "198.18.0.3", "198.18.0.9")...),
		ForwardRules: true, Masquerade: true, RandomFully: true,
	}
}

// peers are hosts of which only the addresses matter.
func peers(addrs ...netip.Addr) []native.Peer {
	var out []native.Peer
	for _, a := range addrs {
		var p native.Peer
		p.PublicIP[subnet.FamilyOf(a)] = a
		out = append(out, p)
	}
	return out
}

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// dockerWrites returns what a version of Docker writes for the bridge docker0 and
// two containers, 10.5.n.2 and 10.5.n.3.
func dockerWrites(t *testing.T, version string, n int) string {
	t.Helper()
	text, err := os.ReadFile("testdata/docker-" + version + ".rules")
	if err != nil {
		t.Fatal(err)
	}
	rules := regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(string(text), "")
	return strings.ReplaceAll(rules, "10.5.3.", fmt.Sprintf("10.5.%d.", n))
}

// docker20 is what Docker 20.10 and 26 write, with two rules of a user.
const docker20 = `
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -s 10.5.9.9/32 -m comment --comment "the user's \"own\" rule" -j DROP
-A DOCKER-USER -i eth0 -p tcp -m tcp --dport 22 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 10.5.3.0/24 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
COMMIT
`
