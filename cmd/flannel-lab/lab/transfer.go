package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"
)

// TransferResult is what came of a TCP transfer.
type TransferResult struct {
	Bytes int
	// Took is from the first byte sent to the last received.
	Took time.Duration
	// Source is the sender's address as the receiver saw it.
	Source netip.Addr
}

// BitsPerSecond is the rate of payload.
func (r TransferResult) BitsPerSecond() float64 {
	return float64(r.Bytes) * 8 / r.Took.Seconds()
}

// ErrCorrupt: a transfer's bytes did not arrive as they were sent.
var ErrCorrupt = errors.New("received bytes differ from those sent")

// Transfer sends random bytes over TCP from one node to an address of another,
// and compares SHA-256 sums. Both sums are taken outside the measured time.
func Transfer(ctx context.Context, from, to *Node, addr netip.Addr, size int) (TransferResult, error) {
	r, err := transfer(ctx, from, to, addr, size)
	if err != nil {
		return r, fmt.Errorf("transfer from %s to %s at %s: %w", from.Name, to.Name, addr, err)
	}
	return r, nil
}

func transfer(ctx context.Context, from, to *Node, addr netip.Addr, size int) (_ TransferResult, err error) {
	out, in, err := connect(ctx, from, to, addr)
	if err != nil {
		return TransferResult{}, err
	}
	defer func() { err = errors.Join(err, out.Close(), in.Close()) }()
	// A path that swallows large packets must not hold us for ever.
	stop := context.AfterFunc(ctx, func() {
		_ = out.SetDeadline(time.Unix(1, 0))
		_ = in.SetDeadline(time.Unix(1, 0))
	})
	defer stop()

	payload := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32.32s", addr)))).Read(payload)
	received := make([]byte, size)
	// Fresh pages would be faulted in within the measured time.
	clear(received)
	begin := time.Now()
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(out, bytes.NewReader(payload))
		sent <- errors.Join(err, out.CloseWrite())
	}()
	_, err = io.ReadFull(in, received)
	took := time.Since(begin)
	if err := errors.Join(err, <-sent, ctx.Err()); err != nil {
		return TransferResult{}, err
	}
	if sha256.Sum256(payload) != sha256.Sum256(received) {
		return TransferResult{}, ErrCorrupt
	}
	source := in.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	return TransferResult{Bytes: size, Took: took, Source: source}, nil
}

// connect opens a TCP connection from one node to an address of another, and
// returns both ends.
func connect(ctx context.Context, from, to *Node, addr netip.Addr) (out, in *net.TCPConn, err error) {
	ln, err := to.Listen(netip.AddrPortFrom(addr, 0))
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, ln.Close()) }()
	if out, err = from.Dial(ctx, ln.Addr().(*net.TCPAddr).AddrPort()); err != nil {
		return nil, nil, err
	}
	if in, err = ln.AcceptTCP(); err != nil {
		return nil, nil, errors.Join(err, out.Close())
	}
	return out, in, nil
}
