package firewall

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
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
