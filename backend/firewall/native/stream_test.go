package native

import (
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/backend/vxlan"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// A stream's segments arrive merged, many inner packets under one outer header.
func TestStream(t *testing.T) {
	t.Parallel()
	s := newScene(t, vxlan.New, configVXLAN)
	for _, f := range subnet.Families() {
		t.Run(f.String(), func(t *testing.T) {
			const size = 32 << 20
			got := stream(t, s.lab.Hosts[1].Container(), s.lab.Hosts[0].Container(), inside(f, 1, 2), size)
			if got != size {
				t.Errorf("%d bytes arrive, want %d", got, size)
			}
		})
	}
	if got := s.counters(t); slices.Max(slices.Collect(maps.Values(got))) != 0 {
		t.Errorf("counted: %v", got)
	}
}

// stream sends so many bytes by TCP and returns how many arrived.
func stream(t *testing.T, from, to *kerneltest.Namespace, addr netip.Addr, size int64) int64 {
	t.Helper()
	at := net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 7100))
	var (
		listener *net.TCPListener
		caller   *net.TCPConn
		err      error
	)
	to.Do(t, func() { listener, err = net.ListenTCP("tcp", at) })
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	from.Do(t, func() { caller, err = net.DialTCP("tcp", nil, at) })
	if err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	go func() {
		_, err := io.CopyN(caller, zeros{}, size)
		caller.Close()
		sent <- err
	}()
	callee, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer callee.Close()
	n, err := io.Copy(io.Discard, callee)
	if err != nil {
		t.Error(err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	return n
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
