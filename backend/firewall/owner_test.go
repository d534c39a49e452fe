package firewall

import (
	"fmt"
	"net"
	"testing"
)

// What a host's owner has decided keeps its effect, and what other programs put
// behind or in front does not harm the overlay.
func TestOwnersRules(t *testing.T) {
	onPaths(t, paths("20.10", "28.5"), func(t *testing.T, p path) {
		a, b, _ := pair(t, p)
		b.apply(t)
		for _, c := range []struct {
			name string
			// do is what is done on both hosts before ours, and undo.
			do, undo string
			want     string
		}{
			{"nothing", "", "", a.contained()},
			{
				"ufw: a reject at the end of everything",
				"*filter\n-A FORWARD -j REJECT\n-A INPUT -j REJECT\n-A OUTPUT -o lo -j ACCEPT\nCOMMIT\n",
				"*filter\n-D FORWARD -j REJECT\n-D INPUT -j REJECT\n-D OUTPUT -o lo -j ACCEPT\nCOMMIT\n", a.contained(),
			},
			{
				"firewalld: chains of its own in front",
				"*filter\n:FWD_Z - [0:0]\n-A FWD_Z -i lo -j ACCEPT\n-I FORWARD 1 -j FWD_Z\n-A FORWARD -j REJECT\n-I INPUT 1 -j FWD_Z\n-A INPUT -j REJECT\nCOMMIT\n",
				"*filter\n-D FORWARD -j FWD_Z\n-D FORWARD -j REJECT\n-D INPUT -j FWD_Z\n-D INPUT -j REJECT\n-F FWD_Z\n-X FWD_Z\nCOMMIT\n", a.contained(),
			},
			{
				"a block in DOCKER-USER",
				"*filter\n-I DOCKER-USER 1 -d " + b.contained() + " -j DROP\nCOMMIT\n",
				"*filter\n-D DOCKER-USER -d " + b.contained() + " -j DROP\nCOMMIT\n", unreachable,
			},
			{
				"a block in raw before Docker's",
				"*raw\n-I PREROUTING 1 -s " + a.contained() + " -d " + b.contained() + " -j DROP\nCOMMIT\n",
				"*raw\n-D PREROUTING -s " + a.contained() + " -d " + b.contained() + " -j DROP\nCOMMIT\n", unreachable,
			},
			{"nothing again", "", "", a.contained()},
		} {
			for _, m := range []*machine{a, b} {
				m.others(t, c.do)
				m.apply(t)
			}
			wantCall(t, c.name, a.container.calling("", b.contained()), c.want)
			for _, m := range []*machine{a, b} {
				m.others(t, c.undo)
			}
		}
	})
}

// icc=false: containers of one host do not reach each other, those of two do.
// Bridged packets meet iptables only with br_netfilter, which Docker turns on.
func TestNoInterContainerCommunication(t *testing.T) {
	onPaths(t, paths("28.5"), func(t *testing.T, p path) {
		a, b, _ := pair(t, p)
		neighbour := newSpace(t)
		neighbour.plug(t, a.host, "c9")
		a.host.ip(t, "link set c9 master docker0")
		neighbour.ip(t, "addr add 10.5.1.9/24 dev eth0\nroute add default via 10.5.1.1")
		a.host.sysctl(t, "net/bridge/bridge-nf-call-iptables", "1")
		for _, m := range []*machine{a, b} {
			m.apply(t)
		}
		wantCall(t, "icc", neighbour.calling("", a.contained()), "10.5.1.9")
		a.others(t, "*filter\n-A DOCKER-FORWARD -i docker0 -o docker0 -j DROP\n-D DOCKER-FORWARD -i docker0 -j ACCEPT\n-A DOCKER-FORWARD -i docker0 ! -o docker0 -j ACCEPT\nCOMMIT\n")
		a.apply(t)
		wantCall(t, "no icc, same host", neighbour.calling("", a.contained()), unreachable)
		wantCall(t, "no icc, two hosts", neighbour.calling("", b.contained()), "10.5.1.9")
		wantCall(t, "no icc, two hosts, back", b.container.calling("", a.contained()), b.contained())
	})
}

// Docker's ip-masq and ours in all four combinations: inside the network a source
// is kept, outside it is the host's wherever anybody masquerades.
func TestMasqueradeOfBoth(t *testing.T) {
	onPaths(t, append(paths("28.5"), paths6("28.5")...), func(t *testing.T, p path) {
		a, b, lan := pair(t, p)
		outside := a.outside(t, lan)
		docker := "POSTROUTING -s " + a.subnet() + " ! -o docker0 -j MASQUERADE\nCOMMIT\n"
		b.apply(t)
		for _, c := range []struct{ docker, ours bool }{{true, true}, {true, false}, {false, true}, {false, false}} {
			name := fmt.Sprintf("Docker %v, ours %v", c.docker, c.ours)
			if !c.docker {
				a.others(t, "*nat\n-D "+docker)
			}
			a.d.Masquerade, a.d.RandomFully = c.ours, c.ours && p.tunnel.Direct
			a.apply(t)
			wantCall(t, name+": inside", a.container.calling("", b.contained()), a.contained())
			wantCall(t, name+": inside, back", b.container.calling("", a.contained()), b.contained())
			want := a.public()
			if !c.docker && !c.ours {
				want = unreachable
			}
			wantCall(t, name+": outside", a.container.calling("", outside), want)
			if !c.docker {
				a.others(t, "*nat\n-A "+docker)
			}
		}
	})
}

// A published port answers from every host: from another one's container by the
// publisher's address, and at home by hairpin.
func TestPublishedPorts(t *testing.T) {
	onPaths(t, everyTranslation(append(paths("28.5"), paths6("28.5")...)), func(t *testing.T, p path) {
		a, b, lan := pair(t, p)
		outside := a.outside(t, lan)
		for _, m := range []*machine{a, b} {
			m.d.Masquerade = true
			port := "-p tcp -m tcp --dport 7000"
			m.others(t, fmt.Sprintf("*nat\n-A DOCKER ! -i docker0 %s -j DNAT --to-destination %s\nCOMMIT\n"+
				"*filter\n-I DOCKER 1 -d %s ! -i docker0 -o docker0 %s -j ACCEPT\nCOMMIT\n", port, net.JoinHostPort(m.contained(), "7000"), m.contained(), port))
			m.apply(t)
		}
		wantCall(t, "from the LAN", lan.calling("", b.public()), outside)
		wantCall(t, "from another host", a.host.calling("", b.public()), a.public())
		wantCall(t, "from another host's container", a.container.calling("", b.public()), a.public())
		if got, why := b.host.calling("", b.public()).made(t, patiently); got == unreachable {
			t.Errorf("from its own host: %v", why)
		}
		testHairpin(t, b)
	})
}

// What distributions and other programs set in the kernel. Strict reverse path
// filtering passes what comes by the way that answers take. Without br_netfilter
// bridged packets do not meet iptables; those of the overlay are routed.
func TestKernelSettings(t *testing.T) {
	onPaths(t, paths("28.5"), func(t *testing.T, p path) {
		a, b, _ := pair(t, p)
		set := func(name, value string) {
			for _, m := range []*machine{a, b} {
				m.host.sysctl(t, name, value)
			}
		}
		own := a.gateway()
		if !p.tunnel.Direct {
			own = a.vtep()
		}
		a.apply(t)
		b.apply(t)
		for _, c := range []struct {
			name string
			do   func()
		}{
			{"rp_filter strict", func() {
				for _, device := range append([]string{"all", "default", "eth0", "docker0"}, p.tunnel.Devices...) {
					set("net/ipv4/conf/"+device+"/rp_filter", "1")
				}
			}},
			{"br_netfilter off", func() { set("net/bridge/bridge-nf-call-iptables", "0") }},
			{"br_netfilter on", func() { set("net/bridge/bridge-nf-call-iptables", "1") }},
		} {
			c.do()
			wantCall(t, c.name+": container to container", a.container.calling("", b.contained()), a.contained())
			wantCall(t, c.name+": container to container, back", b.container.calling("", a.contained()), b.contained())
			wantCall(t, c.name+": host to container", a.host.calling("", b.contained()), own)
		}
	})
}
