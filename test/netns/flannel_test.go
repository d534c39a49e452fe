package netns_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// flannel stands in for flannel itself: what it does on a host at its start, and
// leaves there, as its captures show and its code says (commit cdf76059). What it
// finds it takes for its own if it is compatible, and else fails or makes it anew:
// both are failures here.
type flannel struct {
	lab     *lab.Lab
	backend string
	host    *lab.Host
	subnet  netip.Prefix
	// mac is what its device is given when there is none.
	mac string
	// peers are those that it has paths to.
	peers []*lab.Host
}

func (f *flannel) public() netip.Addr { return f.host.Addrs[0].Addr() }

func (f *flannel) key() string {
	return lab.Prefix + "/subnets/" + strings.ReplaceAll(f.subnet.String(), "/", "-")
}

// run runs a command on the host.
func (f *flannel) run(t *testing.T, format string, args ...any) {
	t.Helper()
	line := strings.Fields(fmt.Sprintf(format, args...))
	if _, err := f.host.Run(t.Context(), line[0], line[1:]...); err != nil {
		t.Fatal(err)
	}
}

// start is flannel's start.
func (f *flannel) start(t *testing.T) {
	t.Helper()
	f.run(t, "sysctl -qw net.ipv4.ip_forward=1")
	data, mtu := "", 1500
	if f.backend == "vxlan" {
		data, mtu = fmt.Sprintf(`,"BackendData":{"VNI":1,"VtepMAC":%q}`, f.device(t)), 1450
	}
	env := fmt.Sprintf("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=%s/24\nFLANNEL_MTU=%d\nFLANNEL_IPMASQ=true\n", f.subnet.Addr().Next(), mtu)
	if err := os.WriteFile(f.host.SubnetFile(), []byte(env), 0o644); err != nil {
		t.Fatal(err)
	}
	// A lease of its own each time, and a put that compares nothing.
	lease, err := f.lab.Client().Grant(within(t, time.Minute), 24*60*60)
	if err != nil {
		t.Fatal(err)
	}
	value := fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null,"BackendType":%q%s}`, f.public(), f.backend, data)
	if _, err := f.lab.Client().Put(within(t, time.Minute), f.key(), value, clientv3.WithLease(lease.ID)); err != nil {
		t.Fatal(err)
	}
	f.rules(t)
	for _, p := range f.peers {
		f.path(t, p)
	}
}

// device makes the device or takes the one that is there, and returns its MAC.
func (f *flannel) device(t *testing.T) string {
	t.Helper()
	if _, err := f.host.Links().LinkByName("flannel.1"); errors.As(err, new(netlink.LinkNotFoundError)) {
		f.run(t, "ip link add flannel.1 address %s mtu 1450 type vxlan id 1 local %s dev eth0 dstport 8472 nolearning", f.mac, f.public())
		f.run(t, "ip addr add %s/32 dev flannel.1", f.subnet.Addr())
	}
	eth0, err := f.host.Links().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	link, err := f.host.Links().LinkByName("flannel.1")
	if err != nil {
		t.Fatal(err)
	}
	v, ok := link.(*netlink.Vxlan)
	if !ok || v.VxlanId != 1 || v.VtepDevIndex != eth0.Attrs().Index || v.SrcAddr.String() != f.public().String() ||
		v.Group != nil || v.Learning || v.GBP || v.Port != 8472 {
		t.Errorf("flannel would make its device anew, it finds %T %+v", link, link)
	}
	addrs, err := f.host.Links().AddrList(link, netlink.FAMILY_V4)
	if err != nil || len(addrs) != 1 || addrs[0].IPNet.String() != f.subnet.Addr().String()+"/32" {
		t.Errorf("flannel would refuse the addresses of its device: %v, %v", addrs, err)
	}
	f.run(t, "ip link set flannel.1 up")
	return link.Attrs().HardwareAddr.String()
}

// rules are added where they are missing.
func (f *flannel) rules(t *testing.T) {
	t.Helper()
	if _, err := f.host.Run(t.Context(), "iptables", "-w", "-S", "FLANNEL-FWD"); err == nil {
		return
	}
	for _, line := range []string{
		"-N FLANNEL-FWD", "-A FLANNEL-FWD -s 10.5.0.0/16 -j ACCEPT", "-A FLANNEL-FWD -d 10.5.0.0/16 -j ACCEPT", "-A FORWARD -j FLANNEL-FWD",
		"-t nat -N FLANNEL-POSTRTG",
		fmt.Sprintf("-t nat -A FLANNEL-POSTRTG -s %s -d 10.5.0.0/16 -j RETURN", f.subnet),
		fmt.Sprintf("-t nat -A FLANNEL-POSTRTG -s 10.5.0.0/16 -d %s -j RETURN", f.subnet),
		"-t nat -A FLANNEL-POSTRTG -s 10.5.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE",
		"-t nat -A POSTROUTING -j FLANNEL-POSTRTG",
	} {
		f.run(t, "iptables -w %s", line)
	}
}

// path is what flannel does for a peer that it reads in etcd.
func (f *flannel) path(t *testing.T, p *lab.Host) {
	t.Helper()
	s := standingOf(t, p).subnet
	k, found := readKey(t, f.lab, subnetKey(s))
	if !found {
		t.Fatalf("%s has no key", p.Name)
	}
	dst, public := s[subnet.IPv4], k.attrs.PublicIP[subnet.IPv4]
	if f.backend == "host-gw" {
		f.run(t, "ip route replace %s via %s dev eth0", dst, public)
		return
	}
	_, mac, _ := strings.Cut(string(k.attrs.BackendData[subnet.IPv4]), `"VtepMAC":"`)
	mac, _, _ = strings.Cut(mac, `"`)
	f.run(t, "bridge fdb replace %s dev flannel.1 dst %s self permanent", mac, public)
	f.run(t, "ip neigh replace %s dev flannel.1 lladdr %s nud permanent", dst.Addr(), mac)
	f.run(t, "ip route replace %s via %s dev flannel.1 onlink", dst, dst.Addr())
}

// A host changes from flannel to ours and back, in place, under pings of 5 ms both
// ways. It keeps subnet, device and MAC, and no packet is lost.
func TestFromFlannelAndBack(t *testing.T) {
	for _, backend := range []string{"vxlan", "host-gw"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, lab.Options{Hosts: 2, DaemonArgs: []string{"--ip-masq"}})
			putConfig(t, l, configs[backend])
			h, peer := l.Hosts[0], l.Hosts[1]
			for _, x := range l.Hosts {
				dropByDefault(t, x)
			}
			if err := peer.StartDaemon(); err != nil {
				t.Fatal(err)
			}
			if _, err := peer.WaitReady(within(t, time.Minute), 0); err != nil {
				t.Fatal(err)
			}
			f := &flannel{lab: l, backend: backend, host: h, subnet: leasedByNobody(t, peer)[subnet.IPv4], mac: "72:55:3f:43:61:6b", peers: []*lab.Host{peer}}
			if backend == "vxlan" {
				// INPUT drops, and flannel opens no port: who runs it did.
				f.run(t, "iptables -w -A INPUT -p udp --dport 8472 -j ACCEPT")
			}
			f.start(t)
			for _, x := range l.Hosts {
				env, err := x.ReadSubnet()
				if err != nil {
					t.Fatal(err)
				}
				if err := x.StartContainer(env); err != nil {
					t.Fatal(err)
				}
			}
			if err := l.WaitMesh(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			before := f.state(t)
			pings := map[string]*lab.Pinging{"out": startPing(t, h.Container, peer.Container), "in": startPing(t, peer.Container, h.Container)}
			pause(t, 200*time.Millisecond)

			if err := h.StartDaemon(); err != nil {
				t.Fatal(err)
			}
			waitReady(t, l)
			if k, _ := readKey(t, l, f.key()); k.attrs.Owner != subnet.NodeID(h.NodeID()) {
				t.Errorf("the key of flannel's subnet is %q's, want it to be %s's", k.attrs.Owner, h.NodeID())
			}
			if after := f.state(t); after != before {
				t.Errorf("the host has %s now, it had %s", after, before)
			}

			pause(t, 500*time.Millisecond)
			if err := h.Daemon.Stop(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			f.start(t)
			if after := f.state(t); after != before {
				t.Errorf("flannel has %s after us, it had %s", after, before)
			}
			pause(t, 2*hold) // for what the peer would let go
			for way, p := range pings {
				if r := p.Stop(); r.Lost() > 0 || r.Received == 0 {
					t.Errorf("%s: %s", way, r)
				} else {
					t.Logf("%s: %s", way, r)
				}
			}
		})
	}
}

// state is what a change of daemons must not change.
func (f *flannel) state(t *testing.T) string {
	t.Helper()
	env, err := f.host.ReadSubnet()
	if err != nil {
		t.Fatal(err)
	}
	device := "no device"
	if link, err := f.host.Links().LinkByName("flannel.1"); err == nil {
		device = fmt.Sprintf("device %d with %s", link.Attrs().Index, link.Attrs().HardwareAddr)
	}
	return fmt.Sprintf("%+v, %s", env, device)
}
