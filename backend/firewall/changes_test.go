package firewall

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// Generous bounds: what comes comes within patience, what does not come has
// nothing under way after silence.
const (
	patience = time.Minute
	silence  = 4*pollEvery + calm + 200*time.Millisecond
)

// noticed reports whether a signal comes in time.
func noticed(changes <-chan struct{}, within time.Duration) bool {
	select {
	case <-changes:
		return true
	case <-time.After(within):
		return false
	}
}

func watch(t *testing.T) <-chan struct{} {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	changes, err := (&Exec{}).Changes(ctx)
	if err != nil {
		t.Errorf("Changes: %v", err)
	}
	t.Cleanup(func() {
		cancel()
		for range changes { //nolint:revive // until it is closed
		}
	})
	return changes
}

func (b *bench) run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

// Each way to change the rules of either variant and family is noticed, and
// neither packets nor looking at the rules are.
func TestChanges(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			enterNamespace(t)
			if _, err := exec.LookPath(command); err != nil {
				t.Skip("needs program: " + command)
			}
			testChanges(t, command)
		})
	}
}

func testChanges(t *testing.T, command string) {
	b := &bench{tools: &Exec{}, v: Variant{Command: command, NFT: strings.HasSuffix(command, "nft"), RandomFully: true}}
	if strings.HasPrefix(command, "ip6") {
		b.v.Family = subnet.IPv6
	}
	b.run(t, "ip", "link", "set", "lo", "up")
	changes := watch(t)
	if noticed(changes, silence) {
		t.Error("a change is told before there was one")
	}
	stamp := b.stamp(t)
	for _, c := range []struct{ name, script string }{
		{"a table came into use", "*filter\n:ONE - [0:0]\n:TWO - [0:0]\n-A ONE -p tcp -j ACCEPT\n-A ONE -p udp -j DROP\n-A INPUT -j TWO\nCOMMIT\n"},
		{"another table", "*nat\n-A POSTROUTING -o eth0 -j ACCEPT\nCOMMIT\n"},
		{"a rule that was moved", "*filter\n-D ONE -p udp -j DROP\n-I ONE 1 -p udp -j DROP\nCOMMIT\n"},
		{"a rule replaced by one of the same size", "*filter\n-D ONE -p tcp -j ACCEPT\n-A ONE -p sctp -j ACCEPT\nCOMMIT\n"},
		{"a policy", "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n"},
		{"a chain flushed", "*filter\n-F ONE\nCOMMIT\n"},
		{"a chain removed", "*filter\n-X ONE\nCOMMIT\n"},
	} {
		b.others(t, c.script)
		if !noticed(changes, patience) {
			t.Errorf("%s: nothing is told", c.name)
		}
		before := stamp
		if stamp = b.stamp(t); stamp == before {
			t.Errorf("%v: the stamp is still %v", c.name, stamp)
		}
		// The nf_tables variant may need two transactions for it.
		for noticed(changes, 100*time.Millisecond) {
		}
	}
	// What a busy machine tells late must not pass for what comes now.
	for noticed(changes, silence) {
	}
	address := "127.0.0.1"
	if strings.HasPrefix(command, "ip6") {
		address = "::1"
	}
	b.run(t, "ping", "-c", "3", "-i", "0.2", address)
	if text := b.save(t); !strings.Contains(text, "INPUT") {
		t.Fatalf("there are no rules that could count: %s", text)
	}
	if noticed(changes, silence) {
		t.Error("packets and looks are told as a change")
	}
	if now := b.stamp(t); now != stamp {
		t.Errorf("after packets and looks the stamp is %v, want %v", now, stamp)
	}
}

func (b *bench) stamp(t *testing.T) Stamp {
	t.Helper()
	s, err := b.tools.Stamp(t.Context(), b.v)
	if err != nil || s == (Stamp{}) {
		t.Fatalf("Stamp: %v, %v", s, err)
	}
	return s
}

// What others do in tables of their own does not wake us.
func TestChangesOfOthers(t *testing.T) {
	t.Parallel()
	enterNamespace(t)
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs program: nft")
	}
	b := &bench{}
	changes := watch(t)
	b.run(t, "nft", "add table inet filter; add chain inet filter c; add rule inet filter c accept; "+
		"add table ip somebody; add set ip somebody s { type ipv4_addr; }; add element ip somebody s { 10.0.0.1 }")
	if noticed(changes, silence) {
		t.Error("other tables are told as a change")
	}
	b.run(t, "nft", "add table ip filter; add chain ip filter c")
	if !noticed(changes, patience) {
		t.Error("a change of the same family and name as iptables' is not told")
	}
}

// The kernel drops what does not fit: one signal is left of it, and the events
// after it are told again.
func TestChangesOverrun(t *testing.T) {
	t.Parallel()
	enterNamespace(t)
	if _, err := exec.LookPath("iptables-nft"); err != nil {
		t.Skip("needs program: iptables-nft")
	}
	sock, err := subscribe()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := sock.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 1) })
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{tools: &Exec{}, v: Variant{Command: "iptables-nft", RandomFully: true}}
	var script strings.Builder
	script.WriteString("*filter\n")
	for i := range 2000 {
		fmt.Fprintf(&script, "-A INPUT -s 10.0.%d.%d -j ACCEPT\n", i/250, i%250)
	}
	b.others(t, script.String()+"COMMIT\n")

	ctx, cancel := context.WithCancel(t.Context())
	signals := make(chan struct{}, 1000)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		watchEvents(ctx, sock, kernel.Alias, func() { signals <- struct{}{} })
	}()
	if !noticed(signals, patience) {
		t.Error("a lost event is not told")
	}
	for noticed(signals, 100*time.Millisecond) {
	}
	b.others(t, "*filter\n-D INPUT 1\nCOMMIT\n")
	if !noticed(signals, patience) {
		t.Error("after an overrun nothing is told any more")
	}
	cancel()
	<-ended
}

// Apply wakes itself, finds nothing to do, and that is the end of it.
func TestDriftOfOurOwn(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			enterNamespace(t)
			tools := &Exec{}
			variants, err := tools.Variants(t.Context(), subnet.IPv4)
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(variants, func(v Variant) bool { return v.Command == command })
			if i < 0 {
				t.Skip("needs program: " + command)
			}
			b := &bench{tools, variants[i], New(Options{Log: quiet(), Tools: tools})}
			b.others(t, dockerWrites(t, "28.5", 3))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			drift := b.f.Drift(ctx)
			for range 2 {
				wakes := 0
				for b.apply(t, vxlanDesired()); noticed(drift, silence); b.apply(t, vxlanDesired()) {
					wakes++
				}
				if wakes > 4 {
					t.Errorf("our own writes woke us %d times", wakes)
				}
				b.others(t, "*filter\n-F\nCOMMIT\n")
				if !noticed(drift, patience) {
					t.Error("a flush does not wake us")
				}
			}
			cancel()
			for range drift { //nolint:revive // until it is closed
			}
		})
	}
}

// What we wrote to legacy tables, and another undid before anybody looked, is noticed: they
// are as they were at the last look.
func TestChangesBetweenTwoLooks(t *testing.T) {
	t.Parallel()
	enterNamespace(t)
	if _, err := exec.LookPath("iptables-legacy"); err != nil {
		t.Skip("needs program: iptables-legacy")
	}
	b := &bench{tools: &Exec{}, v: Variant{Command: "iptables-legacy", RandomFully: true}}
	b.others(t, "*filter\n-P FORWARD DROP\nCOMMIT\n")
	tools := &Exec{}
	ctx, cancel := context.WithCancel(t.Context())
	changes, err := tools.Changes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		for noticed(changes, silence) {
		}
		if err := tools.Restore(t.Context(), b.v, "*filter\n-A FORWARD -j ACCEPT\nCOMMIT\n"); err != nil {
			t.Fatal(err)
		}
		b.others(t, "*filter\n-F FORWARD\nCOMMIT\n")
		if !noticed(changes, patience) {
			t.Error("not noticed")
		}
	}
	cancel()
	for range changes { //nolint:revive // until it is closed
	}
}

// Drift wakes at the first of many changes, then at most once per calm, and again
// after the last one.
func TestDriftCollects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tools := newFakeTools()
		tools.changes = make(chan struct{}, 1)
		ctx, cancel := context.WithCancel(t.Context())
		drift := New(Options{Log: quiet(), Tools: tools, Native: &fakeNative{}, Firewalld: noFirewalld{}}).Drift(ctx)
		wakes := make(chan time.Duration, 100)
		began := time.Now()
		go func() {
			defer close(wakes)
			for range drift {
				wakes <- time.Since(began)
			}
		}()
		// One change every 10 ms for a second.
		for range 100 {
			select {
			case tools.changes <- struct{}{}:
			default:
			}
			time.Sleep(10 * time.Millisecond) //nolint:forbidigo // the bubble's clock
		}
		time.Sleep(time.Minute) //nolint:forbidigo // the bubble's clock
		cancel()
		close(tools.changes)
		var got []time.Duration
		for w := range wakes {
			got = append(got, w)
		}
		var want []time.Duration
		for at := time.Duration(0); at <= time.Second; at += calm {
			want = append(want, at)
		}
		if !slices.Equal(got, want) {
			t.Errorf("wakes at %v, want %v", got, want)
		}
	})
}

// event is one message as the kernel sends it.
func event(kind uint16, family byte, table string) []byte {
	b := message(subsysNFTables<<8|kind, 0, 0, family, 0, slices.Concat(attribute(attrTableName, table), attribute(7, "x")))
	return b
}

func TestReadEvents(t *testing.T) {
	const rule, element = 6, 12
	generation := message(subsysNFTables<<8|newGeneration, 0, 0, 0, 0, attribute(1, "gen"))
	cases := []struct {
		name string
		in   [][]byte
		want int
	}{
		{"nothing", nil, 0},
		{"one transaction, one signal", [][]byte{event(rule, 2, "filter"), event(rule, 2, "nat"), generation}, 1},
		{"not before its end", [][]byte{event(rule, 2, "filter")}, 0},
		{"two transactions", [][]byte{event(rule, 2, "filter"), generation, event(rule, 10, "raw"), generation}, 2},
		{"of others", [][]byte{event(element, 1, "filter"), event(rule, 2, "fail2ban"), generation}, 0},
		{"ours after others'", [][]byte{event(element, 2, "fail2ban"), generation, event(rule, 2, "filter"), generation}, 1},
		{"cut off", [][]byte{event(rule, 2, "filter")[:30]}, 1},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			whole, split := 0, 0
			readEvents(slices.Concat(c.in...), kernel.Alias, false, func() { whole++ })
			concerned := false
			for _, b := range c.in {
				concerned = readEvents(b, kernel.Alias, concerned, func() { split++ })
			}
			if whole != c.want || split != c.want {
				t.Errorf("%d signals in one datagram, %d in several, want %d", whole, split, c.want)
			}
		})
	}
}

// Whatever comes, it is read to its end.
func FuzzReadEvents(f *testing.F) {
	f.Add(event(6, 2, "filter"))
	f.Add(slices.Concat(event(12, 1, "x"), event(15, 0, "")))
	f.Add([]byte{20, 0, 0, 0, 15, 10})
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		readEvents(b, kernel.Alias, true, func() { n++ })
		if most := len(b)/syscall.NLMSG_HDRLEN + 1; n > most {
			t.Errorf("%d signals of %d bytes", n, len(b))
		}
		if len(b) >= 4 && binary.NativeEndian.Uint32(b) > uint32(len(b)) && n == 0 && len(b) >= syscall.NLMSG_HDRLEN {
			t.Error("a message that is cut off gives no signal")
		}
	})
}

// What a poll costs: a look at the sizes, and one at the rules.
func BenchmarkPoll(b *testing.B) {
	for _, rules := range []int{50, 10_000} {
		for _, compare := range []bool{false, true} {
			b.Run(fmt.Sprintf("rules=%d/compare=%v", rules, compare), func(b *testing.B) {
				enterNamespace(b)
				var script strings.Builder
				script.WriteString("*filter\n")
				for i := range rules {
					fmt.Fprintf(&script, "-A INPUT -s 10.0.%d.%d -j ACCEPT\n", i/250, i%250)
				}
				v := Variant{Command: "iptables-legacy", RandomFully: true}
				if err := (&Exec{}).Restore(b.Context(), v, script.String()+"COMMIT\n"); err != nil {
					b.Skip("needs program: iptables-legacy: ", err)
				}
				p, err := openPoller(subnet.IPv4, maphash.MakeSeed())
				if err != nil {
					b.Fatal(err)
				}
				defer p.close()
				p.changed(true)
				for b.Loop() {
					if p.changed(compare) {
						b.Fatal("nothing changed")
					}
				}
			})
		}
	}
}
