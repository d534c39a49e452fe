package main

import (
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// Docker is restarted only for what it does not have.
func TestWantRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.data.OverwriteConfig(networkConfig)
		h.start()
		h.ready()
		own := daemonconfig.HostAddr(netip.MustParsePrefix(h.board.Snapshot().Lease.Subnet))
		h.stop()
		l := h.loop
		ask := func() bool {
			l.docker.restart = false
			l.wantRestart(t.Context())
			return l.docker.restart
		}
		if ask() {
			t.Error("wanted for what the file said before")
		}
		h.kernel.Plug(kernel.Link{Name: "docker0", MTU: 1500}, own)
		if ask() {
			t.Error("wanted although docker0 has the subnet")
		}
		l.opts.ipMasq = true
		if !ask() {
			t.Error("not wanted for another ip-masq")
		}
		l.lease.own.Subnet = subnet.Subnet{netip.MustParsePrefix("10.5.99.0/24")}
		for range 2 { // by the file, then by docker0 alone
			if !ask() {
				t.Error("not wanted while docker0 has another subnet")
			}
		}
	})
}
