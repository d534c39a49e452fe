package firewall

import (
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// A chain is one instance's at most, by its name alone.
func TestChainHasOneOwner(t *testing.T) {
	for _, i := range kernel.Instances() {
		for _, chain := range []string{chainForward, chainInput, chainNAT, chainRaw, chainPeers + "0123456789AB"} {
			name := owner(i).named(chain)
			if len(name) > 28 {
				t.Errorf("%s has %d characters, 28 is the most", name, len(name))
			}
			if !isOurs(name) {
				t.Errorf("%s is not known for one of ours", name)
			}
			for _, other := range kernel.Instances() {
				if has := owner(other).has(name); has != (other == i) {
					t.Errorf("%s of instance %d is instance %d's: %t", name, i, other, has)
				}
			}
		}
	}
	for _, foreign := range []string{"FLANNELD-GO", "FLANNELD-GO0-FWD", "FLANNELD-GO10-FWD", "FLANNELD-GOX-FWD", "FLANNEL-FWD", "DOCKER-USER"} {
		if isOurs(foreign) {
			t.Errorf("%s is taken for ours", foreign)
		}
	}
	if owner(0).has(chainMade) || owner(1).has(chainMade) {
		t.Error("a mark is one instance's alone")
	}
}

// second is an instance beside that of vxlanDesired, with so many peers that their
// chains are a tree.
func second() Desired {
	d := vxlanDesired()
	d.Networks[subnet.IPv4], d.Own[subnet.IPv4] = netip.MustParsePrefix("10.6.0.0/16"), netip.MustParsePrefix("10.6.3.0/24")
	d.Tunnel = backend.Tunnel{Devices: []string{"flannel1"}, Port: 8286, Encapsulation: backend.PlainPacket}
	for i := range 200 {
		d.Peers = append(d.Peers, peers(netip.AddrFrom4([4]byte{198, 19, byte(i), 1}))...)
	}
	return d
}

// part is what of everything belongs to an instance: its chains and the jumps to them,
// and its table.
func part(everything string, i kernel.Instance) string {
	var out strings.Builder
	table := false
	for l := range strings.Lines(everything) {
		head := regexp.MustCompile(`^table ip6? ` + i.Alias() + ` \{`).MatchString(l)
		if table = table || head; table || strings.Contains(l, owner(i).prefix()) && !strings.Contains(l, madePrefix) && l[0] != '\t' {
			out.WriteString(l)
		}
		table = table && l != "}\n"
	}
	return out.String()
}

// Two instances on one host: neither moves what the other wrote, whoever comes first;
// what is flushed of one, or cleaned up, leaves the other byte-equal, and when both are
// gone nothing is left of either.
func TestInstancesSideBySide(t *testing.T) {
	for _, command := range []string{"iptables-nft", "iptables-legacy"} {
		for _, docker := range []string{"", "20.10", "28.5"} {
			for _, order := range [][2]kernel.Instance{{0, 1}, {1, 0}} {
				t.Run(fmt.Sprintf("%s/docker=%s/first=%d", command, docker, order[0]), func(t *testing.T) {
					enterNamespace(t)
					for _, program := range []string{command, "nft"} {
						if _, err := exec.LookPath(program); err != nil {
							t.Skip("needs program: " + program)
						}
					}
					testSideBySide(t, command, docker, order)
				})
			}
		}
	}
}

func testSideBySide(t *testing.T, command, docker string, order [2]kernel.Instance) {
	var b [2]*bench
	for i := range b {
		tools := &Exec{Instance: kernel.Instance(i)}
		v := Variant{Command: command, NFT: command == "iptables-nft", RandomFully: true}
		b[i] = &bench{tools, v, New(Options{Instance: kernel.Instance(i), Log: quiet(), Tools: tools})}
	}
	b[0].useTables(t)
	if docker != "" {
		b[0].others(t, dockerWrites(t, docker, 3))
	}
	desired := []Desired{vxlanDesired(), second()}
	clean := b[0].everything(t)
	first, last := order[0], order[1]

	b[first].apply(t, desired[first])
	b[last].apply(t, desired[last])
	both := b[0].everything(t)
	for _, i := range order {
		if p := part(both, i); !strings.Contains(p, owner(i).named(chainForward)) || !strings.Contains(p, "table ip "+i.Alias()+" {") {
			t.Fatalf("instance %d has written nothing:\n%s", i, p)
		}
	}
	// Fresh ones, which know nothing: a restart.
	for range 2 {
		for _, i := range order {
			b[i].f = New(Options{Instance: i, Log: quiet(), Tools: b[i].tools})
			b[i].apply(t, desired[i])
		}
	}
	if diff := cmp.Diff(both, b[0].everything(t)); diff != "" {
		t.Fatalf("two instances move each other's rules (-want +got):\n%s", diff)
	}
	for _, i := range order {
		other := part(b[0].everything(t), 1-i)
		b[0].undo(t, i)
		if diff := cmp.Diff(other, part(b[0].everything(t), 1-i)); diff != "" {
			t.Fatalf("a flush of instance %d took something else (-want +got):\n%s", i, diff)
		}
		b[i].apply(t, desired[i])
		now := b[0].everything(t)
		if diff := cmp.Diff(other, part(now, 1-i)); diff != "" {
			t.Errorf("the repair of instance %d changed the other (-want +got):\n%s", i, diff)
		}
		if diff := cmp.Diff(linesOf(part(both, i)), linesOf(part(now, i))); diff != "" {
			t.Errorf("instance %d after its repair (-want +got):\n%s", i, diff)
		}
	}

	stays := part(b[0].everything(t), last)
	b[first].cleanup(t)
	left := b[0].everything(t)
	if diff := cmp.Diff(stays, part(left, last)); diff != "" {
		t.Errorf("the cleanup of instance %d changed the other (-want +got):\n%s", first, diff)
	}
	if p := part(left, first); p != "" {
		t.Errorf("instance %d left after its cleanup:\n%s", first, p)
	}
	b[last].apply(t, desired[last])
	if diff := cmp.Diff(left, b[0].everything(t)); diff != "" {
		t.Errorf("instance %d alone (-want +got):\n%s", last, diff)
	}
	b[last].cleanup(t)
	if diff := cmp.Diff(clean, b[0].everything(t)); diff != "" {
		t.Errorf("after both cleanups (-before +after):\n%s", diff)
	}
}

// undo takes an instance's rules away, by hand: the jumps, the content of the chains, and
// the table.
func (b *bench) undo(t *testing.T, i kernel.Instance) {
	t.Helper()
	set, err := parseSave(b.save(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range set {
		var lines []string
		for _, c := range table.chains {
			if owner(i).has(c.name) {
				lines = append(lines, "-F "+c.name)
			}
			for _, l := range c.rules {
				if !isOurs(c.name) && owner(i).hasJump(l) {
					lines = append(lines, "-D "+c.name+" "+l.spec)
				}
			}
		}
		if len(lines) > 0 {
			b.others(t, "*"+table.name+"\n"+strings.Join(lines, "\n")+"\nCOMMIT\n")
		}
	}
	b.run(t, "nft", "delete table ip "+i.Alias())
}

func linesOf(text string) []string {
	return slices.Sorted(strings.Lines(text))
}
