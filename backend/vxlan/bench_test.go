package vxlan_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/flanneld-go/flanneld-go/backend/backendtest"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// many makes n peers of one network.
func many(n int) []subnet.Lease {
	peers := make([]subnet.Lease, 0, n)
	for i := range n {
		peers = append(peers, lease(fmt.Sprintf("10.%d.%d.0-24", 16+i>>8, i&0xff), fmt.Sprintf("203.0.%d.%d", i>>8, i&0xff),
			fmt.Sprintf("5e:00:00:00:%02x:%02x", i>>8, i&0xff), "", ""))
	}
	return peers
}

// BenchmarkApply is one change among 10,000 peers on the running kernel.
func BenchmarkApply(b *testing.B) {
	const peers = 10000
	ns := backendtest.FlannelHost(b)
	be, d, _ := onKernel(b, ns, `{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}`)
	d.Own = lease("10.5.54.0-24", "198.18.0.1", ownMAC, "", "")
	d.Peers = slices.Collect(subnet.Each(many(peers)))
	if err := be.Apply(b.Context(), d); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		moved := lease(d.Peers[i%peers].Subnet.Key(), "192.0.2.1", fmt.Sprintf("5e:00:00:01:%02x:%02x", i>>8&0xff, i&0xff), "", "")
		d.Peers[i%peers] = &moved
		if err := be.Apply(b.Context(), d); err != nil {
			b.Fatal(err)
		}
	}
}
