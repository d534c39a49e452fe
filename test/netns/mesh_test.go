package netns_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// what is expected of each backend, as flannel has it.
var backends = []struct {
	name, device, tunnel string
	mtu                  int
}{
	{name: "udp", device: "flannel0", mtu: 1472},
	{name: "vxlan", device: "flannel.1", mtu: 1450, tunnel: "vxlan"},
	{name: "host-gw", device: "eth0", mtu: 1500, tunnel: "host-gw"},
}

// From empty hosts to containers that talk, with nothing done by hand although
// every policy of the firewall is DROP.
func TestContainersTalk(t *testing.T) {
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			l := newLab(t, lab.Options{Hosts: 3, DaemonArgs: []string{"--ip-masq"}})
			for _, h := range l.Hosts {
				dropByDefault(t, h)
			}
			putConfig(t, l, configs[b.name])
			startDaemons(t, l)
			startContainers(t, l)

			mesh, err := l.Mesh(t.Context(), lab.PingOptions{Count: 20})
			if err != nil {
				t.Fatal(err)
			}
			for i, from := range l.Hosts {
				for j, to := range l.Hosts {
					if r := mesh[i][j]; r.Lost() > 0 {
						t.Errorf("%s pings %s: %s", from.Container.Name, to.Container.Name, r)
					}
				}
			}
			from, to := l.Hosts[0].Container, l.Hosts[1].Container
			moved, err := lab.Transfer(within(t, time.Minute), from.Node, to.Node, to.Addr(), 16<<20)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("round trip %s, TCP %.2f Gb/s", mesh[0][1].Median, moved.BitsPerSecond()/1e9)
			if moved.Source != from.Addr() {
				t.Errorf("the receiver sees %s in place of the container %s", moved.Source, from.Addr())
			}
			for i, h := range l.Hosts {
				peer := l.Hosts[(i+1)%len(l.Hosts)]
				device, err := h.DeviceTo(peer.Container.Addr())
				if err != nil || device != b.device {
					t.Errorf("%s sends to containers by %q (%v), want %s", h.Name, device, err, b.device)
				}
				checkSubnetFile(t, h, b.mtu)
				checkLease(t, l, h, b.tunnel)
			}
		})
	}
}

// dropByDefault is a firewall as strict as people make them: nothing comes in
// or through but answers.
func dropByDefault(t *testing.T, h *lab.Host) {
	t.Helper()
	for _, rule := range []string{
		"-A INPUT -i lo -j ACCEPT",
		"-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
		"-P INPUT DROP",
		"-P FORWARD DROP",
	} {
		if _, err := h.Run(t.Context(), "iptables", strings.Fields("-w "+rule)...); err != nil {
			t.Fatal(err)
		}
	}
}

// checkSubnetFile compares subnet.env with flannel's form, to the letter.
func checkSubnetFile(t *testing.T, h *lab.Host, mtu int) {
	t.Helper()
	text, err := os.ReadFile(h.SubnetFile())
	if err != nil {
		t.Fatal(err)
	}
	env, err := h.ReadSubnet()
	if err != nil {
		t.Fatal(err)
	}
	// What is not the lease's is known.
	env.Networks = configNetworks
	env.MTU, env.IPMasq = mtu, true
	if diff := cmp.Diff(string(env.Format()), string(text)); diff != "" {
		t.Errorf("%s: subnet.env (-want +got):\n%s", h.Name, diff)
	}
	if got := daemonconfig.HostAddr(env.Subnets[0]).Addr().Next(); got != h.Container.Addr() {
		t.Errorf("%s: subnet.env means container %s, which is %s", h.Name, got, h.Container.Addr())
	}
}

// checkLease compares the key in etcd with what flannel's hosts read.
func checkLease(t *testing.T, l *lab.Lab, h *lab.Host, backendType string) {
	t.Helper()
	env, err := h.ReadSubnet()
	if err != nil {
		t.Fatal(err)
	}
	key := lab.Prefix + "/subnets/" + subnet.Subnet(env.Subnets).Key()
	resp, err := l.Client().Get(within(t, time.Minute), key)
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) != 1 {
		t.Fatalf("%s: key %s: %d found", h.Name, key, len(resp.Kvs))
	}
	var attrs subnet.Attrs
	if err := attrs.UnmarshalJSON(resp.Kvs[0].Value); err != nil {
		t.Fatal(err)
	}
	want := subnet.Attrs{BackendType: backendType, Owner: subnet.NodeID(h.NodeID()), Instance: attrs.Instance, BackendData: attrs.BackendData}
	want.PublicIP[subnet.IPv4] = h.Addrs[0].Addr()
	if diff := cmp.Diff(want, attrs, cmpAddr); diff != "" {
		t.Errorf("%s: lease (-want +got):\n%s", h.Name, diff)
	}
	ttl, err := l.Client().TimeToLive(within(t, time.Minute), clientv3.LeaseID(resp.Kvs[0].Lease))
	if err != nil || ttl.GrantedTTL != 24*60*60 {
		t.Errorf("%s: the key hangs on a lease of %d s (%v), want 24 h", h.Name, ttl.GrantedTTL, err)
	}
}
