package native

import (
	"context"
	"flag"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/subnet"
)

var update = flag.Bool("update", false, "write golden files")

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// host is a network namespace with a Table.
type host struct {
	*kerneltest.Namespace
	t *Table
	// written counts the transactions.
	written *int
}

// counting is a door that counts.
type counting struct {
	door
	n *int
}

func (c counting) write(ctx context.Context, changes subnet.ByFamily[change]) error {
	*c.n++
	return c.door.write(ctx, changes)
}

func newHost(t testing.TB, ns *kerneltest.Namespace) *host {
	h := &host{ns, New(Options{Log: quiet()}), new(int)}
	h.t.door = counting{h.t.door, h.written}
	return h
}

func (h *host) apply(t testing.TB, d Desired) {
	t.Helper()
	if err := h.tryApply(t, d); err != nil {
		t.Fatalf("Apply: %v", err)
	}
}

func (h *host) tryApply(t testing.TB, d Desired) (err error) {
	t.Helper()
	h.Do(t, func() { err = h.t.Apply(context.Background(), d) })
	return err
}

func (h *host) list(t testing.TB) string {
	t.Helper()
	return h.Run(t, "nft", "list", "ruleset")
}

func (h *host) counters(t testing.TB) map[string]uint64 {
	t.Helper()
	var (
		out map[string]uint64
		err error
	)
	h.Do(t, func() { out, err = h.t.Counters(t.Context()) })
	if err != nil {
		t.Fatalf("Counters: %v", err)
	}
	return out
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func address(s string) netip.Addr  { return netip.MustParseAddr(s) }

func dual() Desired {
	return Desired{
		Networks: subnet.ByFamily[netip.Prefix]{prefix("10.5.0.0/16"), prefix("fd05::/48")},
		Own:      subnet.Subnet{prefix("10.5.3.0/24"), prefix("fd05:0:0:3::/64")},
		Tunnel: backend.Tunnel{
			Devices: []string{"flannel.1", "flannel-v6.1"}, Port: 8472, Encapsulation: backend.VXLANFrame, VNI: 1,
		},
		Uplink:   "eth0",
		Segments: []netip.Prefix{prefix("198.18.0.0/24"), prefix("fd00:198:18::/64")},
		Peers: []Peer{
			{
				Subnet:   subnet.Subnet{prefix("10.5.1.0/24"), prefix("fd05:0:0:1::/64")},
				PublicIP: subnet.ByFamily[netip.Addr]{address("198.18.0.1"), address("fd00:198:18::1")},
				MAC:      subnet.ByFamily[kernel.MAC]{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 1}},
			},
			{
				Subnet:   subnet.Subnet{prefix("10.5.2.0/25"), prefix("fd05:0:0:2::/64")},
				PublicIP: subnet.ByFamily[netip.Addr]{address("198.18.0.2"), address("fd00:198:18::2")},
				MAC:      subnet.ByFamily[kernel.MAC]{{2, 0, 0, 0, 0, 2}, {2, 0, 0, 0, 0, 2}},
			},
		},
		NAT: true, Masquerade: true, RandomFully: true,
	}
}

func v4() Desired {
	d := dual()
	d.Networks[subnet.IPv6], d.Own[subnet.IPv6] = netip.Prefix{}, netip.Prefix{}
	return d
}

// kinds are all shapes that a table has.
func kinds() map[string]Desired {
	vxlan := dual()
	direct := v4()
	direct.Tunnel.Direct, direct.Masquerade = true, false
	hostgw := dual()
	hostgw.Tunnel = backend.Tunnel{Direct: true}
	hostgw.RandomFully = false
	udp := dual()
	udp.Tunnel = backend.Tunnel{Devices: []string{"flannel0"}, Port: 8285, Encapsulation: backend.PlainPacket}
	udp.NAT = false
	inside := v4()
	inside.Segments = append(inside.Segments, prefix("10.5.200.0/24"))
	inside.NAT = false
	marked := v4()
	marked.AcceptMark, marked.Tunnel.Direct, marked.Masquerade = true, true, false
	alone := v4()
	alone.Peers, alone.NAT = nil, false
	return map[string]Desired{
		"vxlan": vxlan, "vxlan-direct": direct, "host-gw": hostgw, "udp": udp,
		"uplink-inside": inside, "no-peers": alone, "marked": marked,
	}
}

func TestGolden(t *testing.T) {
	for name, d := range kinds() {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, kerneltest.NetNS(t, kernel.Options{}))
			before := h.list(t)
			h.apply(t, d)
			got := h.list(t)
			golden(t, name+".nft", got)

			h.apply(t, d)
			if *h.written != 1 {
				t.Errorf("the same again: %d transactions, want 1", *h.written)
			}
			if diff := cmp.Diff(got, h.list(t)); diff != "" {
				t.Errorf("ruleset after the same again (-want +got)\n%s", diff)
			}

			// Whoever saves the whole ruleset to load it at boot loads ours, too.
			elsewhere := kerneltest.NetNS(t, kernel.Options{})
			saved := filepath.Join(t.TempDir(), "saved.nft")
			if err := os.WriteFile(saved, []byte(got), 0o600); err != nil {
				t.Fatal(err)
			}
			elsewhere.Run(t, "nft", "-f", saved)
			if diff := cmp.Diff(got, elsewhere.Run(t, "nft", "list", "ruleset")); diff != "" {
				t.Errorf("ruleset loaded again (-want +got)\n%s", diff)
			}
			newHost(t, elsewhere).apply(t, d)
			if diff := cmp.Diff(got, elsewhere.Run(t, "nft", "list", "ruleset")); diff != "" {
				t.Errorf("ruleset loaded again, after Apply (-want +got)\n%s", diff)
			}

			h.Do(t, func() {
				if err := h.t.Cleanup(context.Background()); err != nil {
					t.Fatalf("Cleanup: %v", err)
				}
			})
			if diff := cmp.Diff(before, h.list(t)); diff != "" {
				t.Errorf("ruleset after Cleanup (-before +after)\n%s", diff)
			}
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got)\n%s", path, diff)
	}
}
