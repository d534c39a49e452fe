package firewall

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend/firewall/native"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// starts are programs that note that they were started, and then do their work.
type starts struct{ dir string }

func countStarts(t *testing.T) (*Exec, starts) {
	t.Helper()
	s := starts{t.TempDir()}
	return &Exec{LookPath: func(name string) (string, error) {
		path, err := exec.LookPath(name)
		if err != nil {
			return "", err
		}
		wrapped := filepath.Join(s.dir, name)
		script := fmt.Sprintf("#!/bin/sh\necho \"$0 $*\" >> %s/log\nexec %s \"$@\"\n", s.dir, path)
		// What another test starts has the files of this process, between its fork and its
		// exec, and nobody can run one that somebody may write.
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
		return wrapped, os.WriteFile(wrapped, []byte(script), 0o755)
	}}, s
}

func (s starts) count(t *testing.T) int {
	t.Helper()
	log, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(log), "\n")
}

// Many resyncs at which nothing has changed start no program. Nobody listens to
// events here: what others did is mended by the first resync after it.
func TestResyncsStartNoProgram(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			enterNamespace(t)
			if _, err := exec.LookPath(command); err != nil {
				t.Skip("needs program: " + command)
			}
			testResyncs(t, command)
		})
	}
}

func testResyncs(t *testing.T, command string) {
	const resyncs = 200
	tools, started := countStarts(t)
	f := New(Options{Log: quiet(), Tools: tools, Firewalld: noFirewalld{}})
	b := &bench{&Exec{}, Variant{Command: command, RandomFully: true}, f}
	v6 := &bench{b.tools, Variant{Command: strings.Replace(command, "ip", "ip6", 1), RandomFully: true}, f}
	b.others(t, dockerWrites(t, "28.5", 3))
	v6.others(t, docker20v6)
	d := vxlanDesired()
	d.Networks[subnet.IPv6], d.Own[subnet.IPv6] = netip.MustParsePrefix("fd05::/32"), netip.MustParsePrefix("fd05:0:0:3::/64")

	// What is written to one table of nf_tables makes the kernel count for all,
	// so that the next one reads once more.
	b.apply(t, d)
	b.apply(t, d)
	before := started.count(t)
	if before == 0 {
		t.Fatal("nothing was started: the test proves nothing")
	}
	for range resyncs {
		b.apply(t, d)
	}
	if n := started.count(t) - before; n != 0 {
		t.Errorf("%d resyncs started %d programs, want none", resyncs, n)
	}

	want := b.save(t) + v6.save(t)
	for _, deed := range []string{
		command + " -P FORWARD DROP; " + command + " -F FORWARD",
		command + " -F FLANNELD-GO-FWD",
		command + " -t nat -D POSTROUTING 1",
		command + " -t raw -F PREROUTING; " + command + " -t raw -A PREROUTING -d 10.5.3.2/32 ! -i docker0 -j DROP",
		v6.v.Command + " -F INPUT",
		v6.v.Command + " -R FLANNELD-GO-FWD 1 -j DROP",
	} {
		b.run(t, "sh", "-c", deed)
		if b.save(t)+v6.save(t) == want {
			t.Fatalf("%s: changes nothing", deed)
		}
		b.apply(t, d)
		text := b.save(t) + v6.save(t)
		for _, jump := range []string{
			"-A FORWARD -m comment", "-A DOCKER-USER -m comment", "-A INPUT", "-A FLANNELD-GO-FWD -s 10.5.0.0/16 -d 10.5.3.0/24",
			"-A FLANNELD-GO-FWD -s fd05::/32 -d fd05:0:0:3::/64", "-A POSTROUTING -m comment", "-A PREROUTING -m comment",
		} {
			if strings.Count(text, jump) != strings.Count(want, jump) {
				t.Errorf("%s: not mended by the next resync: %d of %q, want %d in:\n%s", deed, strings.Count(text, jump), jump, strings.Count(want, jump), text)
			}
		}
		b.apply(t, d)
		before := started.count(t)
		b.apply(t, d)
		if n := started.count(t) - before; n != 0 {
			t.Errorf("%s: resyncs after it start %d programs, want none", deed, n)
		}
	}
}

// While peers come and go a change runs the program that writes it, and none to read what
// is there already. What is known then is what the kernel has, and who undoes it is noticed.
func TestFillsAreNotReadAgain(t *testing.T) {
	t.Parallel()
	enterNamespace(t)
	const command = "iptables-nft"
	if _, err := exec.LookPath(command); err != nil {
		t.Skip("needs program: " + command)
	}
	tools, started := countStarts(t)
	f := New(Options{Log: quiet(), Tools: tools, Firewalld: noFirewalld{}})
	b := &bench{&Exec{}, Variant{Command: command, RandomFully: true}, f}
	b.others(t, dockerWrites(t, "28.5", 3))
	d := vxlanDesired()
	b.apply(t, d)
	b.apply(t, d)
	for _, step := range []struct{ peers, programs int }{
		{1, 1},
		{leafSize, 1},
		{3 * leafSize, 1},   // a tree of chains
		{3*leafSize + 1, 1}, // some of them
		{2, 2},              // chains are removed
	} {
		d.Peers = nil
		for n := range step.peers {
			var p native.Peer
			p.Subnet[subnet.IPv4] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(n), 0}), 24)
			p.PublicIP[subnet.IPv4] = netip.AddrFrom4([4]byte{198, 18, byte(n), byte(7 * n)})
			d.Peers = append(d.Peers, p)
		}
		before := started.count(t)
		b.apply(t, d)
		if n := started.count(t) - before; n != step.programs {
			t.Errorf("%d peers: %d programs, want %d", step.peers, n, step.programs)
		}
		fresh, err := parseSave(b.save(t))
		if err != nil {
			t.Fatal(err)
		}
		for v, known := range f.known {
			if v.Command != command {
				continue
			}
			if diff := cmp.Diff(contents(fresh), contents(known.set)); diff != "" {
				t.Errorf("%d peers: known wrongly (-kernel +known):\n%s", step.peers, diff)
			}
		}
	}
	want := b.save(t)
	b.run(t, command, "-F", "FLANNELD-GO-INPUT")
	b.apply(t, d)
	if diff := cmp.Diff(want, b.save(t)); diff != "" {
		t.Errorf("a flush was not mended (-want +got):\n%s", diff)
	}
}

// contents are the rules of each chain.
func contents(set ruleset) map[string][]string {
	out := map[string][]string{}
	for _, t := range set {
		for _, c := range t.chains {
			rules := []string{}
			for _, l := range c.rules {
				rules = append(rules, fmt.Sprintf("%+v", l.rule))
			}
			out[t.name+" "+c.name+" "+c.policy] = rules
		}
	}
	return out
}

// docker20v6 is what Docker writes for IPv6, as far as it matters here.
const docker20v6 = `*filter
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A DOCKER-USER -j RETURN
COMMIT
`

// Rules are read when the kernel does not say that they are known, and now and
// then although it does.
func TestReadsWhenNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tools := newFakeTools()
		f := New(Options{Log: quiet(), Tools: tools, Native: &fakeNative{}, Firewalld: noFirewalld{}})
		d := vxlanDesired()
		apply := func(what string, want map[string]int) {
			t.Helper()
			clear(tools.calls)
			if err := f.Apply(t.Context(), d); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if diff := cmp.Diff(want, tools.calls); diff != "" {
				t.Errorf("%s (-want +got):\n%s", what, diff)
			}
		}
		nothing, all := map[string]int{}, map[string]int{"save": 2}
		apply("at first", map[string]int{"save": 5, "restore": 2})
		apply("the same again", nothing)
		time.Sleep(native.ReadAnyway / 2) //nolint:forbidigo // the bubble's clock
		apply("before the time is up", nothing)
		time.Sleep(native.ReadAnyway / 2) //nolint:forbidigo // the bubble's clock
		apply("when the time is up", all)
		apply("and then", nothing)
		d.Peers = d.Peers[1:]
		apply("a peer gone, without a look", map[string]int{"restore": 1, "save": 1})

		tools.fail = func(op string, v Variant, _ string) error {
			if op == "stamp" && !v.NFT {
				return errors.New("not told")
			}
			return nil
		}
		apply("one variant does not tell", map[string]int{"save": 1})
		apply("nor again", map[string]int{"save": 1})
		tools.fail = nil
		apply("told again", map[string]int{"save": 1})
		apply("and trusted", nothing)
		for v, known := range f.known {
			fresh, err := parseSave(tools.text(v))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(fresh, known.set) {
				t.Errorf("%s is known wrongly: planning has changed it", v.Command)
			}
		}
	})
}

// besideLegacy has somebody else change nf_tables while the legacy variant is written.
type besideLegacy struct {
	*Exec
	meanwhile func()
}

func (m *besideLegacy) Restore(ctx context.Context, v Variant, script string) error {
	if m.meanwhile != nil && !v.NFT {
		m.meanwhile()
	}
	return m.Exec.Restore(ctx, v, script)
}

// The legacy variant makes no transaction of nf_tables: the one that comes while it is
// written is not ours, though it is the only one.
func TestTransactionBesideLegacyIsSomebodyElses(t *testing.T) {
	t.Parallel()
	enterNamespace(t)
	tools := &besideLegacy{Exec: &Exec{}}
	f := New(Options{Log: quiet(), Tools: tools, Firewalld: noFirewalld{}})
	b := &bench{tools.Exec, Variant{Command: "iptables-legacy", RandomFully: true}, f}
	b.others(t, dockerWrites(t, "28.5", 3))
	for range 3 {
		b.apply(t, vxlanDesired())
	}
	if !f.Undisturbed(t.Context()) {
		t.Fatal("disturbed before anybody did anything: this test proves nothing")
	}
	run := func(name string, args ...string) {
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Errorf("%s %q: %v\n%s", name, args, err, out)
		}
	}
	times := 0
	tools.meanwhile = func() {
		times++
		run("nft", "delete", "table", "ip", "flanneld-go")
	}
	run("iptables-legacy", "-F", "FORWARD")
	b.apply(t, vxlanDesired())
	if times != 1 {
		t.Fatalf("the legacy variant was written %d times, want once", times)
	}
	if f.Undisturbed(t.Context()) {
		run("nft", "list", "table", "ip", "flanneld-go")
	}
}
