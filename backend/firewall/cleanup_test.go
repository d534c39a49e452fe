package firewall

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// firewalldTable is the native table of firewalld, much shortened.
const firewalldTable = `table inet firewalld {
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state { established, related } accept
		reject with icmpx admin-prohibited
	}
	chain nat_POSTROUTING {
		type nat hook postrouting priority srcnat + 10; policy accept;
	}
}
`

const ufwRules = `*filter
:INPUT DROP [0:0]
:ufw-before-forward - [0:0]
:ufw-reject-forward - [0:0]
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-reject-forward -j REJECT --reject-with icmp-port-unreachable
-A FORWARD -j ufw-before-forward
-A FORWARD -j ufw-reject-forward
COMMIT
`

// everything is all rules of a host in every form there is, without counters.
func (b *bench) everything(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, program := range []string{
		"iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save", "nft list ruleset",
	} {
		args := strings.Fields(program)
		if _, err := exec.LookPath(args[0]); err != nil {
			continue
		}
		out, err := exec.Command(args[0], args[1:]...).Output() // warnings would come in mid-line
		if err != nil {
			t.Fatalf("%s: %v: %s", program, err, out)
		}
		fmt.Fprintf(&all, "== %s\n%s", program, volatile.ReplaceAll(out, nil))
	}
	return all.String()
}

// Cleanup leaves all as it was, byte for byte, whatever was there.
func TestCleanupIsExact(t *testing.T) {
	for _, command := range []string{"iptables-nft", "iptables-legacy"} {
		for _, docker := range []string{"", "20.10", "28.5"} {
			t.Run(command+"/"+docker, func(t *testing.T) {
				t.Parallel()
				for _, ufw := range []bool{false, true} {
					for _, firewalld := range []bool{false, true} {
						name := fmt.Sprintf("ufw=%v,firewalld=%v", ufw, firewalld)
						t.Run(name, func(t *testing.T) { testCleanup(t, command, docker, ufw, firewalld) })
					}
				}
			})
		}
	}
}

func testCleanup(t *testing.T, command, docker string, ufw, firewalld bool) {
	enterNamespace(t)
	if _, err := exec.LookPath(command); err != nil {
		t.Skip("needs program: " + command)
	}
	tools := &Exec{}
	b := &bench{tools, Variant{Command: command, NFT: command == "iptables-nft", RandomFully: true}, New(Options{Log: quiet(), Tools: tools})}
	v6 := *b
	v6.v.Command = "ip6" + strings.TrimPrefix(command, "ip")
	b.useTables(t)
	v6.useTables(t)
	if docker != "" {
		b.others(t, dockerWrites(t, docker, 3))
	}
	if ufw {
		b.others(t, ufwRules)
		v6.others(t, strings.ReplaceAll(ufwRules, "icmp-port", "icmp6-port"))
	}
	if firewalld {
		if _, err := exec.LookPath("nft"); err != nil {
			t.Skip("needs program: nft")
		}
		b.run(t, "nft", firewalldTable)
	}
	before := b.everything(t)

	d := vxlanDesired()
	d.Networks[subnet.IPv6], d.Own[subnet.IPv6] = netip.MustParsePrefix("fd05::/32"), netip.MustParsePrefix("fd05:0:0:3::/64")
	for _, d.Native = range []bool{false, true, false} {
		b.apply(t, d)
		if text := b.everything(t); !strings.Contains(text, chainForward) || !strings.Contains(text, "table ip6 flanneld-go") {
			t.Fatalf("nothing was written:\n%s", text)
		}
		b.cleanup(t)
		if diff := cmp.Diff(before, b.everything(t)); diff != "" {
			t.Errorf("after Cleanup of native=%v (-before +after):\n%s", d.Native, diff)
		}
	}
}

// A chain that is built in exists in nf_tables from its first use on. If that was
// ours, it goes; if it was there, or somebody came to use it, it stays.
func TestCleanupForgetsChains(t *testing.T) {
	const input = "chain INPUT {"
	for _, c := range []struct {
		name, before, during string
		stays                bool
	}{
		{name: "ours", before: "-A FORWARD -s 10.66.0.0/16 -j ACCEPT"},
		{name: "there before, and empty", before: "-A FORWARD -s 10.66.0.0/16 -j ACCEPT\n:INPUT ACCEPT [0:0]", stays: true},
		{name: "used since", before: "-A FORWARD -s 10.66.0.0/16 -j ACCEPT", during: "-A INPUT -s 10.66.0.0/16 -j ACCEPT", stays: true},
		{name: "with a policy since", before: "-A FORWARD -s 10.66.0.0/16 -j ACCEPT", during: ":INPUT DROP [0:0]", stays: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			enterNamespace(t)
			for _, program := range []string{"iptables-nft", "nft"} {
				if _, err := exec.LookPath(program); err != nil {
					t.Skip("needs program: " + program)
				}
			}
			tools := &Exec{}
			b := &bench{tools, Variant{Command: "iptables-nft", NFT: true, RandomFully: true}, New(Options{Log: quiet(), Tools: tools})}
			b.others(t, "*filter\n"+c.before+"\nCOMMIT\n")
			before := b.everything(t)
			if there := strings.Contains(before, input); there != (c.stays && c.during == "") {
				t.Fatalf("INPUT is there before: %v\n%s", there, before)
			}
			for range 2 {
				b.apply(t, vxlanDesired())
				if during := b.everything(t); !strings.Contains(during, input) {
					t.Fatalf("nothing was written:\n%s", during)
				}
			}
			if c.during != "" {
				b.others(t, "*filter\n"+c.during+"\nCOMMIT\n")
			}
			b.cleanup(t)
			after := b.everything(t)
			if there := strings.Contains(after, input); there != c.stays {
				t.Errorf("INPUT is there after Cleanup: %v, want %v:\n%s", there, c.stays, after)
			}
			if diff := cmp.Diff(before, after); diff != "" && c.during == "" {
				t.Errorf("after Cleanup (-before +after):\n%s", diff)
			}
			if strings.Contains(after, ChainPrefix) {
				t.Errorf("ours are left:\n%s", after)
			}
		})
	}
}
