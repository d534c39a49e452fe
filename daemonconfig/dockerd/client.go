package dockerd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
)

// DefaultSocket is where dockerd listens unless it is told otherwise.
const DefaultSocket = "/run/docker.sock"

// ErrDown: nobody answers on Docker's socket.
var ErrDown = errors.New("docker is not running")

// APIError is the engine's refusal.
type APIError struct {
	// Status is that of HTTP.
	Status  int
	Message string
}

// Error is the engine's own text.
func (e *APIError) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("docker answers %d %s", e.Status, http.StatusText(e.Status))
	}
	return "docker says: " + e.Message
}

// Engine is what an engine says of itself.
type Engine struct {
	// Name is its version as it spells it; Version is zero where that is none.
	Name    string
	Version Version
	// API is the version that we talk to it in.
	API  string
	Info Info
}

// Info is the part of the engine's info that matters here.
type Info struct {
	LiveRestore       bool     `json:"LiveRestoreEnabled"`
	ContainersRunning int      `json:"ContainersRunning"`
	SecurityOptions   []string `json:"SecurityOptions"`
	FirewallBackend   struct {
		Driver string `json:"Driver"`
	} `json:"FirewallBackend"`
	// AddressPools are those that somebody set; empty: Docker's own default.
	AddressPools []Pool `json:"DefaultAddressPools"`
}

// Pool is a range from which Docker makes networks by itself.
type Pool struct {
	Base netip.Prefix `json:"Base"`
	Size int          `json:"Size"`
}

// Client talks to one engine. Its methods are safe for concurrent use and keep
// no connection: dockerd restarts, and is asked once in a while.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client of the engine on a unix socket; it does not
// connect.
func NewClient(socket string) *Client {
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}}
}

// newestAPI is the latest version of the API that this package was written
// for: that of Docker 28.2, by which info names the firewall. Docker 29 takes
// 1.44 and later, 20.10 up to 1.41.
const newestAPI = "1.50"

// Ask returns what the engine says of itself. [ErrDown]: there is none.
func (c *Client) Ask(ctx context.Context) (Engine, error) {
	api, name, err := c.negotiate(ctx)
	if err != nil {
		return Engine{}, err
	}
	e := Engine{Name: name, API: api}
	if v, err := ParseVersion(name); err == nil {
		e.Version = v // a build without a version is unknown, and no error
	}
	if err := c.call(ctx, http.MethodGet, "/v"+api+"/info", nil, &e.Info); err != nil {
		return Engine{}, fmt.Errorf("ask docker for its info: %w", err)
	}
	return e, nil
}

// negotiate finds the version of the API that both sides know, and the name of
// the engine's own.
func (c *Client) negotiate(ctx context.Context) (api, engine string, err error) {
	var v struct {
		Version       string `json:"Version"`
		APIVersion    string `json:"ApiVersion"`
		MinAPIVersion string `json:"MinAPIVersion"`
	}
	// The one request that needs no version.
	if err := c.call(ctx, http.MethodGet, "/version", nil, &v); err != nil {
		return "", "", fmt.Errorf("ask docker for its version: %w", err)
	}
	high, ok := parseAPI(v.APIVersion)
	if !ok {
		return "", "", fmt.Errorf("ask docker for its version: it has no API version but %.40q", v.APIVersion)
	}
	ours, _ := parseAPI(newestAPI)
	chosen := min(high, ours)
	if low, ok := parseAPI(v.MinAPIVersion); ok {
		chosen = max(chosen, low)
	}
	return fmt.Sprintf("1.%d", chosen), v.Version, nil
}

// parseAPI returns the number behind "1.", which has always been 1.
func parseAPI(text string) (minor uint64, ok bool) {
	rest, ok := strings.CutPrefix(text, "1.")
	minor, err := strconv.ParseUint(rest, 10, 16)
	return minor, ok && err == nil
}

// maxAnswer bounds what is read: a list of all networks of a large host.
const maxAnswer = 16 << 20

// call sends one request and decodes its answer, unless into is nil.
func (c *Client) call(ctx context.Context, method, path string, body, into any) error {
	var reader io.Reader = http.NoBody
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		reader = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, reader)
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.explain(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read docker's answer: %w", err)
	}
	if resp.StatusCode >= 300 {
		var refusal struct {
			Message string `json:"message"`
		}
		_ = json.Unmarshal(text, &refusal) // without a message the status speaks
		return &APIError{Status: resp.StatusCode, Message: strings.TrimSpace(refusal.Message)}
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("read docker's answer: %w", err)
	}
	return nil
}

// explain tells an engine that is not there from other failures, and leaves out
// the address that no person knows.
func (c *Client) explain(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w: nobody answers on %s", ErrDown, c.socket)
	}
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	return err
}
