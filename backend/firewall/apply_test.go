package firewall

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	jumpForward = "-j FLANNELD-GO-FWD"
	jumpInput   = "-p udp -m udp --dport 8472 -j FLANNELD-GO-INPUT"
	jumpNAT     = "-j FLANNELD-GO-NAT"
)

// wantChain compares one chain with the rules that should be in it.
func (b *bench) wantChain(t *testing.T, table, chain string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, b.chain(t, table, chain)); diff != "" {
		t.Errorf("%s %s (-want +got):\n%s", table, chain, diff)
	}
}

// wantPlaces checks our jumps beside docker20.
func (b *bench) wantPlaces(t *testing.T) {
	t.Helper()
	b.wantChain(t, "filter", "INPUT", jumpInput, "-j ACCEPT -m conntrack --ctstate RELATED,ESTABLISHED")
	b.wantChain(t, "filter", "DOCKER-USER",
		`-s 10.5.9.9/32 -m comment --comment "the user\'s \"own\" rule" -j DROP`,
		"-i eth0 -p tcp -m tcp --dport 22 -j RETURN",
		jumpForward, "-j RETURN")
	b.wantChain(t, "nat", "POSTROUTING", jumpNAT, "-s 10.5.3.0/24 -j MASQUERADE ! -o docker0")
	forward := b.chain(t, "filter", "FORWARD")
	if len(forward) != 7 || forward[0] != "-j DOCKER-USER" || forward[1] != jumpForward ||
		slices.Contains(forward[2:], jumpForward) {
		t.Errorf("FORWARD is %q, want ours once, second", forward)
	}
}

func (b *bench) cleanup(t *testing.T) {
	t.Helper()
	if err := b.f.Cleanup(t.Context()); err != nil {
		t.Fatalf("Cleanup: %v", err)
	}
}

func TestApplyBesideDocker(t *testing.T) {
	onEach(t, func(t *testing.T, b *bench) {
		b.others(t, docker20)
		before := b.save(t)
		b.apply(t, vxlanDesired())
		b.wantPlaces(t)

		b.cleanup(t)
		if diff := cmp.Diff(before, b.save(t)); diff != "" {
			t.Errorf("after Cleanup (-before +after):\n%s", diff)
		}
	})
}

// Whatever others do to our rules, one Apply puts them back, and nothing that is
// theirs changes.
func TestApplyPutsBack(t *testing.T) {
	cases := []struct{ name, script string }{
		{"nothing happened", ""},
		{"forward flushed and refilled", `
*filter
-F FORWARD
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
COMMIT
`},
		{"docker restarted: its jumps are first again", `
*filter
-D FORWARD -j DOCKER-ISOLATION-STAGE-1
-I FORWARD 1 -j DOCKER-ISOLATION-STAGE-1
-D FORWARD -j DOCKER-USER
-I FORWARD 1 -j DOCKER-USER
COMMIT
`},
		{"our chains emptied", "*filter\n-F FLANNELD-GO-FWD\n-F FLANNELD-GO-INPUT\nCOMMIT\n*nat\n-F FLANNELD-GO-NAT\nCOMMIT\n"},
		{"a rule of ours changed", `
*filter
-I FLANNELD-GO-FWD 1 -j ACCEPT
COMMIT
*nat
-A FLANNELD-GO-NAT -s 10.5.3.0/24 -m comment --comment "flanneld-go: masquerade to the outside" -j MASQUERADE
COMMIT
`},
		{"duplicates of our jumps", `
*filter
-A FORWARD -j FLANNELD-GO-FWD
-I FORWARD 1 -m comment --comment flanneld-go -j FLANNELD-GO-FWD
-A DOCKER-USER -m comment --comment flanneld-go -j FLANNELD-GO-FWD
-A INPUT -j FLANNELD-GO-INPUT
COMMIT
*nat
-A POSTROUTING -m comment --comment flanneld-go -j FLANNELD-GO-NAT
COMMIT
`},
		{"our jumps in wrong places", `
*filter
-D DOCKER-USER -m comment --comment flanneld-go -j FLANNELD-GO-FWD
-I DOCKER-USER 1 -m comment --comment flanneld-go -j FLANNELD-GO-FWD
-D INPUT -p udp -m udp --dport 8472 -m comment --comment flanneld-go -j FLANNELD-GO-INPUT
-A INPUT -p udp -m udp --dport 8472 -m comment --comment flanneld-go -j FLANNELD-GO-INPUT
-A OUTPUT -j FLANNELD-GO-FWD
COMMIT
`},
		{"unknown chains of ours", `
*filter
:FLANNELD-GO-IN-OLD - [0:0]
:FLANNELD-GO-IN-OLDER - [0:0]
-A FLANNELD-GO-IN-OLD -j FLANNELD-GO-IN-OLDER
-A FLANNELD-GO-INPUT -j FLANNELD-GO-IN-OLD
COMMIT
`},
	}
	onEach(t, func(t *testing.T, b *bench) {
		b.others(t, docker20)
		b.apply(t, vxlanDesired())
		want := b.save(t)
		for _, c := range cases {
			if c.script != "" {
				b.others(t, c.script)
				if b.save(t) == want {
					t.Fatalf("%s: the test disturbed nothing", c.name)
				}
			}
			b.apply(t, vxlanDesired())
			b.wantPlaces(t)
			// nf_tables lists chains by name, legacy by age: order of
			// tables and chains aside, all is as it was.
			if diff := cmp.Diff(sorted(want), sorted(b.save(t))); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.name, diff)
			}
		}
	})
}

func sorted(text string) []string {
	return slices.Sorted(strings.Lines(text))
}

func TestApplyFollowsDesired(t *testing.T) {
	onEach(t, func(t *testing.T, b *bench) {
		b.others(t, docker20)
		before := b.save(t)
		b.apply(t, vxlanDesired())

		d := vxlanDesired()
		d.Tunnel.Port, d.Peers = 4789, peers(addrs("198.18.0.7")...)
		b.apply(t, d)
		b.wantChain(t, "filter", "INPUT",
			"-p udp -m udp --dport 4789 -j FLANNELD-GO-INPUT",
			"-j ACCEPT -m conntrack --ctstate RELATED,ESTABLISHED")
		b.wantChain(t, "filter", chainInput,
			`-s 198.18.0.7/32 -m comment --comment "flanneld-go: tunnel from a peer" -j ACCEPT`)

		d.Masquerade, d.ForwardRules = false, false
		b.apply(t, d)
		if got := b.chain(t, "filter", chainForward); got != nil {
			t.Errorf("forwards are switched off and still there: %q", got)
		}
		if text := b.save(t); strings.Contains(text, "masquerade to the outside") {
			t.Errorf("masquerade is switched off and still there:\n%s", text)
		}

		b.apply(t, Desired{})
		if diff := cmp.Diff(before, b.save(t)); diff != "" {
			t.Errorf("nothing desired (-before +after):\n%s", diff)
		}
	})
}

// Docker 28 has no RETURN in DOCKER-USER; users put rules behind the RETURN where
// they have no effect, or a DROP before it; others have no Docker at all.
func TestPlaces(t *testing.T) {
	cases := []struct {
		name, script string
		user         []string
		forward      []string
	}{
		{
			name: "no docker", script: "*filter\n-A FORWARD -j REJECT\nCOMMIT\n",
			forward: []string{jumpForward, "-j REJECT --reject-with icmp-port-unreachable"},
		},
		{
			name:    "empty DOCKER-USER",
			script:  "*filter\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\nCOMMIT\n",
			user:    []string{jumpForward},
			forward: []string{"-j DOCKER-USER", jumpForward},
		},
		{
			name:    "a user's DROP, no RETURN",
			script:  "*filter\n:DOCKER-USER - [0:0]\n-A DOCKER-USER -j DROP\n-A FORWARD -j DOCKER-USER\nCOMMIT\n",
			user:    []string{"-j DROP", jumpForward},
			forward: []string{"-j DOCKER-USER", jumpForward},
		},
		{
			name:    "dead rules behind the RETURN",
			script:  "*filter\n:DOCKER-USER - [0:0]\n-A DOCKER-USER -i eth0 -j RETURN\n-A DOCKER-USER -j RETURN\n-A DOCKER-USER -j DROP\n-A FORWARD -j DOCKER-USER\nCOMMIT\n",
			user:    []string{"-i eth0 -j RETURN", jumpForward, "-j RETURN", "-j DROP"},
			forward: []string{"-j DOCKER-USER", jumpForward},
		},
		{
			name:    "DOCKER-USER that nobody jumps to",
			script:  "*filter\n:DOCKER-USER - [0:0]\n-A DOCKER-USER -j RETURN\n-A FORWARD -j DROP\nCOMMIT\n",
			user:    []string{jumpForward, "-j RETURN"},
			forward: []string{jumpForward, "-j DROP"},
		},
		{
			name:    "a conditional jump to DOCKER-USER is not Docker's",
			script:  "*filter\n:DOCKER-USER - [0:0]\n-A FORWARD -i eth0 -j DOCKER-USER\n-A FORWARD -j DOCKER-USER\n-A FORWARD -j DROP\nCOMMIT\n",
			user:    []string{jumpForward},
			forward: []string{"-i eth0 -j DOCKER-USER", "-j DOCKER-USER", jumpForward, "-j DROP"},
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			onEach(t, func(t *testing.T, b *bench) {
				b.others(t, c.script)
				b.apply(t, vxlanDesired())
				b.wantChain(t, "filter", dockerUser, c.user...)
				got := b.chain(t, "filter", "FORWARD")
				for i := range got {
					// The fake does not add what iptables adds by itself.
					if got[i] == "-j REJECT" {
						got[i] += " --reject-with icmp-port-unreachable"
					}
				}
				if diff := cmp.Diff(c.forward, got); diff != "" {
					t.Errorf("FORWARD (-want +got):\n%s", diff)
				}
			})
		})
	}
}

const flannelLeft = `
*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.3.0/24 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
COMMIT
`

func TestFlannelsLeftovers(t *testing.T) {
	cases := []struct {
		name, script string
		stay         bool
	}{
		{"of our network", flannelLeft, false},
		{"of another network", strings.ReplaceAll(flannelLeft, "10.5.", "10.6."), true},
		{"with a rule of somebody else", strings.ReplaceAll(flannelLeft,
			`-d 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT`, "-j DROP"), true},
		{"without chains, as older versions wrote", `
*filter
-A FORWARD -s 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FORWARD -d 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
`, false},
		{"like flannel's, without its comment", "*filter\n-A FORWARD -s 10.5.0.0/16 -j ACCEPT\nCOMMIT\n", true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			onEach(t, func(t *testing.T, b *bench) {
				b.others(t, docker20)
				clean := b.save(t)
				b.others(t, c.script)
				b.apply(t, vxlanDesired())
				left := strings.Contains(b.save(t), "flanneld forward") || strings.Contains(b.save(t), "-s 10.5.0.0/16 -j ACCEPT")
				if left != c.stay {
					t.Errorf("flannel's rules stayed: %v, want %v:\n%s", left, c.stay, b.save(t))
				}
				b.cleanup(t)
				if gone := b.save(t) == clean; gone == c.stay {
					t.Errorf("after Cleanup only Docker's rules are left: %v, want %v:\n%s", gone, !c.stay, b.save(t))
				}
			})
		})
	}
}

// A table that did not exist before must not exist afterwards, where the kernel
// can forget it.
func TestCleanupForgetsTables(t *testing.T) {
	onEach(t, func(t *testing.T, b *bench) {
		if !b.v.NFT {
			// The kernel keeps a legacy table once it has been used.
			b.others(t, "*filter\nCOMMIT\n*nat\nCOMMIT\n")
		}
		before := b.save(t)
		d := vxlanDesired()
		b.apply(t, d)
		if !b.v.NFT {
			// Without other rules the one the plain name means is in use.
			if b.save(t) != before {
				t.Fatalf("the variant that is not in use was written:\n%s", b.save(t))
			}
			return
		}
		if !strings.Contains(b.save(t), chainForward) {
			t.Fatalf("nothing was written:\n%s", b.save(t))
		}
		b.cleanup(t)
		if diff := cmp.Diff(before, b.save(t)); diff != "" {
			t.Errorf("after Cleanup (-before +after):\n%s", diff)
		}

		// Somebody who came to use a table keeps it, be it for a policy.
		b.apply(t, d)
		b.others(t, "*nat\n-A PREROUTING -i eth0 -j ACCEPT\nCOMMIT\n*filter\n:INPUT DROP [0:0]\nCOMMIT\n")
		b.cleanup(t)
		b.wantChain(t, "nat", "PREROUTING", "-i eth0 -j ACCEPT")
		if text := b.save(t); strings.Contains(text, "FLANNELD") || !strings.Contains(text, ":INPUT DROP") {
			t.Errorf("after Cleanup there is not exactly what somebody else has made:\n%s", text)
		}
	})
}

func TestBothFamilies(t *testing.T) {
	onEach(t, func(t *testing.T, b *bench) {
		b.others(t, docker20)
		v6 := *b
		v6.v.Command = "ip6" + strings.TrimPrefix(b.v.Command, "ip")
		v6.others(t, strings.NewReplacer("10.5.9.9/32", "fd05::9/128", "10.5.3.0/24", "fd05:0:0:3::/64", "127.0.0.0/8", "::1/128").Replace(docker20))
		before := v6.save(t)

		d := vxlanDesired()
		d.Networks[1], d.Own[1] = netip.MustParsePrefix("fd05::/32"), netip.MustParsePrefix("fd05:0:0:3::/64")
		d.Tunnel.Devices = []string{"flannel.1", "flannel-v6.1"}
		d.Peers = append(d.Peers, peers(addrs("fd00:198:18::2", "fd00:198:18::3")...)...)
		b.apply(t, d)
		b.wantPlaces(t)
		v6.wantChain(t, "filter", chainInput,
			`-s fd00:198:18::2/127 -m comment --comment "flanneld-go: tunnel from a peer" -j ACCEPT`)
		v6.wantChain(t, "filter", "INPUT", jumpInput, "-j ACCEPT -m conntrack --ctstate RELATED,ESTABLISHED")
		if got := v6.chain(t, "nat", chainNAT); len(got) != 5 {
			t.Errorf("nat has %d rules for IPv6, want 5: %q", len(got), got)
		}

		// IPv6 is switched off: what was there goes; the second time too.
		for range 2 {
			b.apply(t, vxlanDesired())
			if diff := cmp.Diff(before, v6.save(t)); diff != "" {
				t.Errorf("after IPv6 was switched off (-before +after):\n%s", diff)
			}
			b.apply(t, d)
		}
	})
}

// The kernel's own check: between our look and the removal somebody may have come.
func TestRemoveTableKeepsWhatIsUsed(t *testing.T) {
	onEach(t, func(t *testing.T, b *bench) {
		if !b.v.NFT {
			return
		}
		for _, c := range []struct{ name, script string }{
			{"a rule", "-A POSTROUTING -o eth0 -j ACCEPT\n"},
			{"a chain", ":SOMEBODYS - [0:0]\n"},
			{"nothing", ""},
		} {
			b.others(t, "*nat\n"+c.script+"COMMIT\n")
			if err := b.tools.RemoveTable(t.Context(), b.v, "nat"); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			if stays := strings.Contains(b.save(t), "*nat"); stays != (c.script != "") {
				t.Errorf("with %s in it the table stays: %v\n%s", c.name, stays, b.save(t))
			}
			if c.name == "a rule" {
				b.wantChain(t, "nat", "POSTROUTING", "-o eth0 -j ACCEPT")
				b.others(t, "*nat\n-F POSTROUTING\nCOMMIT\n")
			}
			if c.name == "a chain" {
				b.others(t, "*nat\n-X SOMEBODYS\nCOMMIT\n")
			}
		}
	})
}
