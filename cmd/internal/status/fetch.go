package status

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
)

// Path is where the daemon serves its Status on its unix socket.
const Path = "/v1/status"

// Fetch asks the daemon that listens on a unix socket. A socket is a file: it
// is reached from any network namespace.
func Fetch(ctx context.Context, socket string) (Status, error) {
	var s Status
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://flanneld-go"+Path, http.NoBody)
	if err != nil {
		return s, fmt.Errorf("ask daemon: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return s, fmt.Errorf("ask daemon: %w", err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return s, fmt.Errorf("read the daemon's answer: %w", err)
	}
	return s, nil
}
