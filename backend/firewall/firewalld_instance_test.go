package firewall

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/firewall/firewalld"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// halves are the networks of two instances: what machines 1 to 63 have, and 64 to 127.
func halves() [2]netip.Prefix {
	return [2]netip.Prefix{netip.MustParsePrefix("10.5.0.0/18"), netip.MustParsePrefix("10.5.64.0/18")}
}

// beside is another instance on the machine, with an address, a bridge and a container of
// its own.
func (w *walled) beside(t *testing.T) *machine {
	t.Helper()
	m := &machine{host: w.host, container: newSpace(t), family: w.family, n: 100 + w.n}
	m.host.ip(t, fmt.Sprintf("addr add %s dev eth0\nlink add second type bridge\naddr add %s dev second\nlink set second up", onLink(m.public()), onLink(m.gateway())))
	m.container.plug(t, m.host, "c2")
	m.host.ip(t, "link set c2 master second")
	m.container.ip(t, fmt.Sprintf("addr add %s dev eth0\nroute add default via %s", onLink(m.contained()), m.gateway()))
	m.container.answer(t)
	tools := &Exec{Instance: 1}
	m.b = &bench{tools, w.b.v, New(Options{
		Instance: 1, Log: quiet(), Tools: tools,
		Firewalld: firewalld.New(firewalld.Options{Instance: 1, Log: quiet(), Connect: w.bus.Connect, Config: w.wall.Config()}),
	})}
	m.d = Desired{
		Tunnel: secondTunnel(), Uplink: "eth0", ForwardRules: true,
		Networks: subnet.ByFamily[netip.Prefix]{halves()[1]}, Own: subnet.Subnet{netip.MustParsePrefix(m.subnet())},
	}
	return m
}

func secondTunnel() backend.Tunnel {
	return backend.Tunnel{Devices: []string{"flannel.2"}, Port: 8473, Encapsulation: backend.VXLANFrame, VNI: 2}
}

// partOf are the lines of a listing that are about an instance's policies and sets.
func partOf(listing string, i kernel.Instance) (out string) {
	for section := range strings.SplitSeq(listing, "\n\n") {
		if strings.Contains(section, i.Alias()+"-") {
			out += section + "\n"
		}
	}
	return out
}

// Two instances beside one firewalld. The second opens what is its own, and the reload
// that this takes costs the first as much as anybody's does; a reload harms neither for
// longer, and who goes takes nothing of the other along.
func TestFirewalldInstances(t *testing.T) {
	p := vxlanPath(t)
	ma, mb, _ := pair(t, p)
	first := [2]*walled{wall(t, ma, p, "nftables"), wall(t, mb, p, "nftables")}
	var second [2]*machine
	for i, w := range first {
		w.wall.Cmd(t, "--permanent", "--zone=docker", "--add-interface=second") // as Docker does
		w.wall.Cmd(t, "--reload")
		w.d.Networks = subnet.ByFamily[netip.Prefix]{halves()[0]}
		w.d.Own[subnet.IPv6] = netip.Prefix{}
		second[i] = w.beside(t)
	}
	for i, m := range second {
		m.join(t, second[1-i], secondTunnel())
		m.d.Peers = append(m.d.Peers, second[1-i].peer())
	}
	callFirst := first[0].container.calling("", first[1].contained())
	callSecond, callBack := second[0].container.calling("", second[1].contained()), second[1].container.calling("", second[0].contained())
	wantCall(t, "first, without us", callFirst, unreachable)
	wantCall(t, "second, without us", callSecond, unreachable)
	for _, w := range first {
		w.apply(t)
		w.guard(t, p)
		w.apply(t)
		w.keep(t)
	}
	wantCall(t, "first, alone", callFirst, first[0].contained())
	wantCall(t, "second, while only the first is let through", callSecond, unreachable)
	whole := func() string {
		return first[1].wall.Cmd(t, "--list-all-policies") + first[1].wall.Cmd(t, "--get-ipsets")
	}
	alone := whole()

	unharmed := func(what string, disturb func()) {
		t.Helper()
		var took time.Duration
		longest := callFirst.outage(t, "first, after "+what, first[0].contained(), func() {
			began := time.Now()
			disturb()
			took = time.Since(began)
		})
		t.Logf("%s: took %v, longest outage of the first %v", what, took.Round(time.Millisecond), longest)
		if longest > took+most {
			t.Errorf("%s: the longest outage of the first is %v, want at most %v more than the %v that it took", what, longest, most, took)
		}
	}
	unharmed("the start of the second", func() {
		for _, m := range second {
			m.apply(t)
			m.keep(t)
		}
	})
	wantCall(t, "second", callSecond, second[0].contained())
	wantCall(t, "second, back", callBack, second[1].contained())
	unharmed("a reload", func() { first[1].wall.Cmd(t, "--reload") })
	wantCall(t, "second, after a reload", callSecond, second[0].contained())

	mine := partOf(whole(), 1)
	if !strings.Contains(mine, "flanneld-go1-fwd") {
		t.Fatalf("nothing of the second in:\n%s", whole())
	}
	second[1].unkeep()
	unharmed("the cleanup of the second", func() {
		second[1].host.do(t, func() error { return second[1].b.f.Cleanup(t.Context()) })
	})
	wantCall(t, "second, after its cleanup", callSecond, unreachable)
	if diff := cmp.Diff(strings.Split(alone, "\n"), strings.Split(whole(), "\n")); diff != "" {
		t.Errorf("firewalld after the second is gone (-before +after):\n%s", diff)
	}
	second[1].apply(t)
	second[1].keep(t)
	wantCall(t, "second, again", callBack, second[1].contained())
	first[1].unkeep()
	first[1].host.do(t, func() error { return first[1].b.f.Cleanup(t.Context()) })
	wantCall(t, "first, after its cleanup", callFirst, unreachable)
	wantCall(t, "second, after the cleanup of the first", callBack, second[1].contained())
	if diff := cmp.Diff(mine, partOf(whole(), 1)); diff != "" {
		t.Errorf("the second's part after the cleanup of the first (-before +after):\n%s", diff)
	}
}
