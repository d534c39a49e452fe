// Package dockerdtest is a Docker engine in memory, behind a real unix socket:
// as much of its API as package dockerd uses, with the refusals of the real one.
package dockerdtest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Network is one as the API shows it.
type Network struct {
	ID         string `json:"Id"`
	Name       string
	Driver     string
	EnableIPv6 bool
	IPAM       struct {
		Driver string
		Config []IPAM
	}
	Options map[string]string
	Labels  map[string]string
}

// IPAM is a network's range.
type IPAM struct{ Subnet, Gateway string }

// Engine is one engine. Its fields are for use before the first request.
type Engine struct {
	// Version is dockerd's, API and MinAPI its first and last of the API.
	Version, API, MinAPI string
	// Info is what it says of itself, as JSON.
	Info string

	socket string

	mu       sync.Mutex
	networks map[string]Network
	// members are the containers of each network.
	members  map[string][]string
	requests []string
	last     int
}

// New starts an engine that ends with the test. It has docker0 and nothing
// else.
func New(t testing.TB) *Engine {
	t.Helper()
	e := &Engine{
		Version: "28.5.2", API: "1.51", MinAPI: "1.24", Info: `{}`,
		socket: filepath.Join(t.TempDir(), "docker.sock"), networks: map[string]Network{}, members: map[string][]string{},
	}
	l, err := net.Listen("unix", e.socket)
	if err != nil {
		t.Fatal(err)
	}
	e.SetBridge("172.17.0.1/16", 1500, true)
	server := &http.Server{Handler: e}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l) // until it is closed
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return e
}

// Socket is where it listens.
func (e *Engine) Socket() string { return e.socket }

// SetBridge gives docker0 an address, an MTU, and a masquerade.
func (e *Engine) SetBridge(addr string, mtu int, masquerade bool) {
	p := netip.MustParsePrefix(addr)
	n := Network{Name: "bridge", Driver: "bridge", Options: map[string]string{
		"com.docker.network.bridge.default_bridge":       "true",
		"com.docker.network.bridge.enable_ip_masquerade": fmt.Sprint(masquerade),
		"com.docker.network.bridge.name":                 "docker0",
		"com.docker.network.driver.mtu":                  fmt.Sprint(mtu),
	}}
	n.IPAM.Config = []IPAM{{p.Masked().String(), p.Addr().String()}}
	e.Put(n)
}

// Put adds or replaces a network by its name, with another id.
func (e *Engine) Put(n Network) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.put(n)
}

func (e *Engine) put(n Network) string {
	e.last++
	n.ID = fmt.Sprintf("%064d", e.last)
	e.networks[n.Name] = n
	return n.ID
}

// Attach makes containers belong to a network.
func (e *Engine) Attach(network string, containers ...string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.members[network] = containers
}

// Get returns a network; the zero one: there is none.
func (e *Engine) Get(name string) Network {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.networks[name]
}

// Requests are those so far that change something.
func (e *Engine) Requests() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.requests)
}

// ServeHTTP answers as dockerd does.
func (e *Engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	path := r.URL.Path
	if path == "/version" {
		answer(w, http.StatusOK, map[string]string{"Version": e.Version, "ApiVersion": e.API, "MinAPIVersion": e.MinAPI})
		return
	}
	version, path, ok := strings.Cut(strings.TrimPrefix(path, "/v"), "/")
	if !ok || minor(version) < minor(e.MinAPI) || minor(version) > minor(e.API) {
		refuse(w, http.StatusBadRequest, fmt.Sprintf("client version %s is not between %s and %s", version, e.MinAPI, e.API))
		return
	}
	if r.Method != http.MethodGet {
		e.requests = append(e.requests, r.Method+" /"+path)
	}
	name, isNetwork := strings.CutPrefix(path, "networks/")
	switch {
	case path == "info":
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(e.Info)) // a client that went away is nobody to tell
	case path == "networks":
		answer(w, http.StatusOK, slices.Collect(maps.Values(e.networks)))
	case path == "containers/json":
		e.listMembers(w, r)
	case path == "networks/create":
		e.create(w, r)
	case isNetwork:
		e.network(w, r, name)
	default:
		refuse(w, http.StatusNotFound, "page not found")
	}
}

// network answers for one network.
func (e *Engine) network(w http.ResponseWriter, r *http.Request, name string) {
	for _, n := range e.networks {
		if n.Name != name && !strings.HasPrefix(n.ID, name) {
			continue
		}
		switch {
		case r.Method == http.MethodGet:
			answer(w, http.StatusOK, n)
		case len(e.members[n.Name]) > 0:
			refuse(w, http.StatusForbidden, fmt.Sprintf("error while removing network: network %s has active endpoints", n.Name))
		default:
			delete(e.networks, n.Name)
			w.WriteHeader(http.StatusNoContent)
		}
		return
	}
	refuse(w, http.StatusNotFound, "network "+name+" not found")
}

func (e *Engine) create(w http.ResponseWriter, r *http.Request) {
	var n Network
	if err := json.NewDecoder(r.Body).Decode(&n); err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	if _, taken := e.networks[n.Name]; taken {
		refuse(w, http.StatusConflict, "network with name "+n.Name+" already exists")
		return
	}
	for _, other := range e.networks {
		for _, theirs := range other.IPAM.Config {
			for _, ours := range n.IPAM.Config {
				if netip.MustParsePrefix(theirs.Subnet).Overlaps(netip.MustParsePrefix(ours.Subnet)) {
					refuse(w, http.StatusForbidden, "Pool overlaps with other one on this address space")
					return
				}
			}
		}
	}
	answer(w, http.StatusCreated, map[string]string{"Id": e.put(n), "Warning": ""})
}

// listMembers answers for the containers of one network, stopped ones too.
func (e *Engine) listMembers(w http.ResponseWriter, r *http.Request) {
	var filters struct {
		Network []string `json:"network"`
	}
	if err := json.Unmarshal([]byte(r.URL.Query().Get("filters")), &filters); err != nil || r.URL.Query().Get("all") != "1" {
		refuse(w, http.StatusBadRequest, "invalid filter")
		return
	}
	list := []map[string]any{}
	for name, members := range e.members {
		if !slices.Contains(filters.Network, e.networks[name].ID) {
			continue
		}
		for _, m := range members {
			list = append(list, map[string]any{"Id": "id-" + m, "Names": []string{"/" + m}})
		}
	}
	answer(w, http.StatusOK, list)
}

func minor(version string) (n int) {
	_, _ = fmt.Sscanf(version, "1.%d", &n) // 0 is refused as too old
	return n
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a client that went away is nobody to tell
}

func refuse(w http.ResponseWriter, status int, message string) {
	answer(w, status, map[string]string{"message": message})
}
