package traffic

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"
)

// Client asks one agent.
type Client struct {
	http *http.Client
}

// NewClient makes a client of the agent that listens on a unix socket.
func NewClient(socket string) *Client {
	return &Client{http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}}
}

// Streams asks for TCP connections that are written to as fast as they take it.
type Streams struct {
	To    netip.Addr
	Count int
	For   time.Duration
}

// Datagrams asks for UDP datagrams of a size, in bytes of payload.
type Datagrams struct {
	To   netip.Addr
	Size int
	// Rate is in datagrams per second; 0: one after the other, without a pause.
	Rate float64
	For  time.Duration
}

// Pings asks for ICMP echo requests, each sent a while after the last one's answer.
type Pings struct {
	To    netip.Addr
	Every time.Duration
	For   time.Duration
}

// Connects asks for TCP connections, one after the other: opened, one byte sent
// and one received, closed.
type Connects struct {
	To  netip.Addr
	For time.Duration
}

// Arrived is what an agent's sinks received since its start, and when. Times are
// of the machine's monotonic clock, which all agents share.
type Arrived struct {
	At time.Duration
	// Bytes came over TCP, Datagrams over UDP, the last of them at Last.
	Bytes, Datagrams uint64
	Last             time.Duration
}

// Done is how many of something a sender got through, since when and how long.
type Done struct {
	Count uint64
	Began time.Duration
	Took  time.Duration
}

// Rate is per second.
func (d Done) Rate() float64 { return float64(d.Count) / d.Took.Seconds() }

// Echoes are the round-trip times of a series of pings, in the order sent.
type Echoes struct {
	RTT  []time.Duration
	Lost int
}

// Arrived reads the sinks' counters.
func (c *Client) Arrived(ctx context.Context) (Arrived, error) {
	return ask[Arrived](ctx, c, "arrived", nothing{})
}

// Streams sends over TCP until the time is over.
func (c *Client) Streams(ctx context.Context, r Streams) error {
	_, err := ask[nothing](ctx, c, "streams", r)
	return err
}

// Datagrams sends over UDP until the time is over. A datagram that our own kernel
// had no room for counts as sent.
func (c *Client) Datagrams(ctx context.Context, r Datagrams) (Done, error) {
	return ask[Done](ctx, c, "datagrams", r)
}

// Ping sends echo requests until the time is over.
func (c *Client) Ping(ctx context.Context, r Pings) (Echoes, error) {
	return ask[Echoes](ctx, c, "ping", r)
}

// Connect opens connections until the time is over.
func (c *Client) Connect(ctx context.Context, r Connects) (Done, error) {
	return ask[Done](ctx, c, "connect", r)
}

// nothing is a question or an answer without content.
type nothing struct{}

// ask posts a question to an agent and decodes its answer.
func ask[Answer, Question any](ctx context.Context, c *Client, what string, q Question) (a Answer, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("ask agent for %s: %w", what, err)
		}
	}()
	body, err := json.Marshal(q)
	if err != nil {
		return a, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent/"+what, bytes.NewReader(body))
	if err != nil {
		return a, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
		if err != nil {
			return a, err
		}
		return a, fmt.Errorf("%w: %s", ErrAgent, bytes.TrimSpace(text))
	}
	return a, json.NewDecoder(resp.Body).Decode(&a)
}
