package netns_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// What the daemon may cost, in bytes.
const (
	maxBinary   = 25_000_000
	maxResident = 40 << 20
)

func TestBinarySize(t *testing.T) {
	info, err := os.Stat(command(t, "flanneld-go"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.1f MB", float64(info.Size())/1e6)
	if info.Size() >= maxBinary {
		t.Errorf("the stripped daemon has %d bytes, want less than %d", info.Size(), maxBinary)
	}
}

func TestMemoryWithAHundredPeers(t *testing.T) {
	const peers = 100
	l := newLab(t, lab.Options{Hosts: 1})
	putConfig(t, l, configs["vxlan"])
	for i := range peers {
		g := ghost{
			public: netip.AddrFrom4([4]byte{198, 18, 0, byte(100 + i)}),
			mac:    net.HardwareAddr{2, 0, 0, 0, 0, byte(100 + i)},
		}
		key := subnet.Subnet{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(100 + i), 0}), 24)}.Key()
		if _, err := l.Client().Put(within(t, time.Minute), lab.Prefix+"/subnets/"+key, g.value(t, "vxlan")); err != nil {
			t.Fatal(err)
		}
	}
	startDaemons(t, l)
	h := l.Hosts[0]
	if _, err := h.WaitReady(within(t, time.Minute), peers); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.Daemon.PID()))
	if err != nil {
		t.Fatal(err)
	}
	// The peak, which is what a limit of the unit would meet.
	_, rest, found := strings.Cut(string(text), "VmHWM:")
	var kB int
	if _, err := fmt.Sscanf(rest, "%d kB", &kB); err != nil || !found {
		t.Fatalf("no peak memory in:\n%s", text)
	}
	t.Logf("%.1f MB at most", float64(kB)/1024)
	if kB<<10 >= maxResident {
		t.Errorf("the daemon needed %d kB with %d peers, want less than %d", kB, peers, maxResident>>10)
	}
}
