package firewall

import (
	"flag"
	"fmt"
	"os/exec"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// TestThousandRounds lets others do whatever they like to their rules and ours,
// a thousand times: after each Apply ours are there once and in their places, and
// what others have is what they made it.
func TestThousandRounds(t *testing.T) {
	const rounds = 1000
	rapid.Check(t, func(t *rapid.T) {
		tools := newFakeTools()
		f := New(Options{Log: quiet(), Tools: tools, Native: &fakeNative{}, Firewalld: noFirewalld{}})
		v := tools.variants[subnet.IPv4][0]
		for _, name := range tableNames() {
			tools.sets[v.Command] = append(tools.sets[v.Command], newTable(name))
		}
		// All checks of rapid together make the thousand.
		for range rounds / 100 {
			for _, tab := range tools.sets[v.Command] {
				disturb(t, tab)
			}
			var before [][]string
			for _, tab := range tools.sets[v.Command] {
				before = append(before, foreign(tab))
			}
			if err := f.Apply(t.Context(), vxlanDesired()); err != nil {
				t.Fatal(err)
			}
			for i, tab := range tools.sets[v.Command] {
				if diff := cmp.Diff(before[i], foreign(tab)); diff != "" {
					t.Fatalf("others' rules (-before +after):\n%s", diff)
				}
				checkHooks(t, tools.sets[v.Command], tab)
			}
		}
	})
}

// disturb does something to a table that another program could do.
func disturb(t *rapid.T, tab *table) {
	pick := func(label string, ours bool) *chain {
		var names []*chain
		for _, c := range tab.chains {
			if isOurs(c.name) == ours {
				names = append(names, c)
			}
		}
		if len(names) == 0 {
			return &chain{}
		}
		return rapid.SampledFrom(names).Draw(t, label)
	}
	do := func(format string, args ...any) {
		// What a real program would be refused is refused here.
		_ = tab.do(fmt.Sprintf(format, args...))
	}
	switch rapid.IntRange(0, 7).Draw(t, "what") {
	case 0:
		do("-F %s", pick("flush", false).name)
	case 1:
		do("-F %s", pick("flush ours", true).name)
	case 2:
		c := pick("chain", false)
		spec := rapid.SampledFrom([]string{
			"-j DROP", "-j DOCKER-USER", "-j RETURN", "-i eth0 -j ACCEPT", "-i eth0 -j DOCKER-USER", "-j FLANNELD-GO-FWD",
			"-m comment --comment flanneld-go -j FLANNELD-GO-FWD", "-j FLANNELD-GO-NAT", "-j FLANNELD-GO-INPUT",
			"-j FLANNELD-GO-RAW", "-m comment --comment flanneld-go -j FLANNELD-GO-RAW", directDrop, bridgeDrop,
		}).Draw(t, "rule")
		do("-I %s %d %s", c.name, 1+rapid.IntRange(0, len(c.rules)).Draw(t, "at"), spec)
	case 3:
		do("-A %s -j ACCEPT", pick("widen", true).name)
	case 4:
		do(":%s - [0:0]", rapid.SampledFrom([]string{"DOCKER-USER", "DOCKER"}).Draw(t, "declare"))
	case 5:
		do("-X DOCKER-USER")
	case 6:
		do(":FLANNELD-GO-OLD - [0:0]")
		do("-A %s -j FLANNELD-GO-OLD", pick("refer", true).name)
	case 7:
		if c := pick("delete", false); len(c.rules) > 0 {
			i := rapid.IntRange(0, len(c.rules)-1).Draw(t, "index")
			c.rules = slices.Delete(c.rules, i, i+1)
		}
	}
}

// Rules of Docker's that make raw PREROUTING ours to write.
const (
	directDrop = "-d 10.5.3.2/32 ! -i docker0 -j DROP"
	bridgeDrop = "! -i docker0 -o docker0 -j DROP"
)

func isSpec(spec string) func(line) bool { return func(l line) bool { return l.spec == spec } }

// checkHooks states the places of our jumps in other words than plan does.
func checkHooks(t *rapid.T, set ruleset, tab *table) {
	drops := slices.ContainsFunc(set.table("raw").chain("PREROUTING").rules, isSpec(directDrop))
	if docker := set.table("filter").chain("DOCKER"); docker != nil {
		drops = drops || slices.ContainsFunc(docker.rules, isSpec(bridgeDrop))
	}
	for _, c := range tab.chains {
		if isOurs(c.name) {
			continue
		}
		var at []int
		for i, l := range c.rules {
			if jumpsToUs(l) {
				at = append(at, i)
			}
		}
		hooked := map[string]bool{
			"filter INPUT": true, "filter FORWARD": true, "filter DOCKER-USER": true, "nat POSTROUTING": true,
			"raw PREROUTING": drops,
		}[tab.name+" "+c.name]
		if hooked != (len(at) == 1) || len(at) > 1 {
			t.Fatalf("%s %s has jumps of ours at %v of %d rules", tab.name, c.name, at, len(c.rules))
		}
		if !hooked {
			continue
		}
		before, after := c.rules[:at[0]], c.rules[at[0]+1:]
		isReturn, isUser := isSpec("-j RETURN"), isSpec("-j DOCKER-USER")
		switch c.name {
		case dockerUser:
			if slices.ContainsFunc(before, isReturn) || len(after) > 0 && !isReturn(after[0]) {
				t.Fatalf("DOCKER-USER: not between the user's rules and the RETURN: %v", c.rules)
			}
		case "FORWARD":
			behind := len(before) > 0 && isUser(before[len(before)-1])
			if !behind && (len(before) > 0 || slices.ContainsFunc(after, isUser)) {
				t.Fatalf("FORWARD: neither behind the jump to DOCKER-USER nor first: %v", c.rules)
			}
		case "PREROUTING":
			if slices.ContainsFunc(before, isSpec(directDrop)) || len(after) > 0 && after[0].spec != directDrop {
				t.Fatalf("raw PREROUTING: neither right before Docker's first drop nor last: %v", c.rules)
			}
		default:
			if len(before) > 0 {
				t.Fatalf("%s: not first: %v", c.name, c.rules)
			}
		}
	}
}

var realRounds = flag.Int("rounds", 25, "how often the real variants are disturbed")

// TestRealRounds is TestThousandRounds in the kernel: what others do to ours is
// mended, and nothing is ever there twice.
func TestRealRounds(t *testing.T) {
	scripts := []string{
		"*filter\n-F FORWARD\n-A FORWARD -j DOCKER-USER\n-A FORWARD -j DOCKER-FORWARD\nCOMMIT\n",
		"*filter\n-D FORWARD -j DOCKER-FORWARD\n-I FORWARD 1 -j DOCKER-FORWARD\n-D FORWARD -j DOCKER-USER\n-I FORWARD 1 -j DOCKER-USER\nCOMMIT\n",
		"*filter\n-A FORWARD -j FLANNELD-GO-FWD\n-I INPUT 1 -j FLANNELD-GO-INPUT\n-I DOCKER-USER 1 -j FLANNELD-GO-FWD\nCOMMIT\n",
		"*raw\n-I PREROUTING 1 -j FLANNELD-GO-RAW\nCOMMIT\n",
		"*raw\n-D PREROUTING " + directDrop + "\n-I PREROUTING 1 " + directDrop + "\nCOMMIT\n",
		"*nat\n-F FLANNELD-GO-NAT\n-A POSTROUTING -j FLANNELD-GO-NAT\nCOMMIT\n",
		"*filter\n-F FLANNELD-GO-FWD\n-A FLANNELD-GO-FWD -j ACCEPT\nCOMMIT\n",
	}
	for _, command := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			enterNamespace(t)
			if _, err := exec.LookPath(command); err != nil {
				t.Skip("needs program: " + command)
			}
			tools := &Exec{}
			b := &bench{tools, Variant{Command: command, NFT: command == "iptables-nft", RandomFully: true}, New(Options{Log: quiet(), Tools: tools})}
			b.others(t, dockerWrites(t, "28.5", 3))
			b.apply(t, vxlanDesired())
			want := sorted(b.save(t))
			for n := range *realRounds {
				b.others(t, scripts[n%len(scripts)])
				b.apply(t, vxlanDesired())
				if diff := cmp.Diff(want, sorted(b.save(t))); diff != "" {
					t.Fatalf("round %d (-want +got):\n%s", n, diff)
				}
			}
		})
	}
}
