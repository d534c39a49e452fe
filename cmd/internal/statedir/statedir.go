// Package statedir keeps what a host must remember over restarts, in
// --state-dir:
//
//	cache.json  config, own lease and peers as last seen in etcd
//	host.json   what the daemon changed on this host, for the cleanup; other instances
//	            here look into it: at networks, and at what they need as well
//	docker-change.json  the way back from a change of Docker's file, until
//	            Docker has started with it
//
// # Contract
//
// Files are replaced whole and atomically; one that cannot be read is an error
// that names it, never a guess. A missing file is the zero value. What is decided by the
// files of several instances is decided with their lock.
package statedir

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/flanneld-go/flanneld-go/backend/firewall"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// Dir is the state directory.
type Dir string

// Cache is what etcd last said.
type Cache struct {
	Identity string          `json:"identity"`
	Revision subnet.Revision `json:"revision"`
	Config   subnet.Document `json:"config"`
	Own      subnet.Lease    `json:"own"`
	// Former says why Own is no longer ours, and only what we would like to
	// have again: it was released, or another holds it. Empty: it is ours.
	Former string `json:"former,omitempty"`
	// Heard is when etcd was heard last, and Held until when deleted leases are held,
	// both as well as need be: see [subnet.ViewOptions].
	Heard time.Time       `json:"heard,omitzero"`
	Held  time.Time       `json:"held,omitzero"`
	Peers []*subnet.Lease `json:"peers"`
}

// World returns the cache in the form of a load.
func (c Cache) World() subnet.World {
	leases := slices.Clone(c.Peers)
	if !c.Own.Subnet.IsZero() && c.Former == "" {
		leases = append(leases, &c.Own)
	}
	return subnet.World{Identity: c.Identity, Revision: c.Revision, Config: c.Config, Leases: subnet.ByKey(leases)}
}

// Same reports whether c and other differ at most in their revisions and times.
func (c Cache) Same(other Cache) bool {
	return c.Identity == other.Identity && c.Config == other.Config && c.Own == other.Own && c.Former == other.Former && subnet.SameLeases(c.Peers, other.Peers)
}

// Host is what was changed on this host.
type Host struct {
	// Backend is the Backend object last applied, and its type: another one
	// means that the old one's state must be removed first.
	BackendType string         `json:"backend_type"`
	Backend     subnet.RawJSON `json:"backend,omitempty"`
	// Ranges are the networks and the lengths of their subnets, as text: what
	// was applied for others lies elsewhere. While a daemon starts, also those that it
	// is about to use.
	Ranges []string `json:"ranges,omitempty"`
	// Sysctls are those that we set, in the order in which we did, each once:
	// with the value that it had before.
	Sysctls []firewall.SysctlChange `json:"sysctls,omitempty"`
	// SubnetFile and DockerOptions are the files written for others.
	SubnetFile    string `json:"subnet_file,omitempty"`
	DockerOptions string `json:"docker_options,omitempty"`
	// DockerNetwork is the network that was kept in Docker.
	DockerNetwork string `json:"docker_network,omitempty"`
	// DockerAttempt is the last restart of Docker, unless Docker was as it
	// should be after it.
	DockerAttempt *DockerAttempt `json:"docker_attempt,omitempty"`
}

// Neighbour is another instance that has been on this host and was not cleaned up, or
// that left something to restore.
type Neighbour struct {
	Instance kernel.Instance
	Dir      Dir
	Host     Host
	// Err says that it cannot be read.
	Err error
}

// Lives reports whether the instance needs what it changed on this host, as far as can be
// told.
func (n Neighbour) Lives() bool {
	return n.Err != nil || n.Host.BackendType != "" || len(n.Host.Ranges) > 0
}

// Neighbours are the other instances, if d is that of own: their directories differ in
// the number at the end.
func (d Dir) Neighbours(own kernel.Instance) []Neighbour {
	first, ok := strings.CutSuffix(filepath.Clean(string(d)), own.Suffix())
	if !ok {
		return nil
	}
	var list []Neighbour
	for _, i := range kernel.Instances() {
		n := Neighbour{Instance: i, Dir: Dir(first + i.Suffix())}
		if n.Host, n.Err = n.Dir.LoadHost(); i != own && (n.Lives() || len(n.Host.Sysctls) > 0) {
			list = append(list, n)
		}
	}
	return list
}

// DockerAttempt is a restart of Docker that is not to be made a second time for
// the same reason.
type DockerAttempt struct {
	Reason string `json:"reason"`
	// Refused stands for a change of Docker's file that was taken back.
	Refused string `json:"refused,omitempty"`
	// Problem is why Docker is not as it should be since, and Hint what to
	// type.
	Problem string `json:"problem,omitempty"`
	Hint    string `json:"hint,omitempty"`
}

// DockerChange is a change of Docker's file with which Docker has not started yet.
type DockerChange struct {
	Undo daemonconfig.Undo `json:"undo"`
	// Changes are what of it is new, in words.
	Changes string `json:"changes"`
	// Start is the last start of Docker before the change, as
	// [systemd.Service] names it.
	Start string `json:"start,omitempty"`
	// Asked: a restart is being asked for, on account of the change.
	Asked bool `json:"asked,omitempty"`
	// Failed is why the change is being taken back; empty: it is not.
	Failed string `json:"failed,omitempty"`
}

// Remember adds sysctls to h. One that is known keeps its first value.
func (h *Host) Remember(changed []firewall.SysctlChange) {
	for _, c := range changed {
		if !slices.ContainsFunc(h.Sysctls, func(k firewall.SysctlChange) bool { return k.Name == c.Name }) {
			h.Sysctls = append(h.Sysctls, c)
		}
	}
}

// LoadCache reads cache.json.
func (d Dir) LoadCache() (Cache, error) {
	c, err := load[Cache](d, cacheName)
	if err == nil && slices.Contains(c.Peers, nil) {
		return Cache{}, fmt.Errorf("read state %s: %w", filepath.Join(string(d), cacheName), errNoPeer)
	}
	return c, err
}

// errNoPeer is for a list of peers in which one is null.
var errNoPeer = errors.New("a peer is missing")

// cacheName is the file that is as long as the peers are many.
const cacheName = "cache.json"

// SaveCache replaces cache.json.
func (d Dir) SaveCache(c Cache) error {
	data, err := c.encode()
	if err != nil {
		return fmt.Errorf("encode state %s: %w", cacheName, err)
	}
	return write(d, cacheName, data)
}

// encode returns the file's text, with a line for each peer. It is encoded peer by
// peer into one buffer: encoding/json would hold the text of 10,000 three times over,
// at the moment when a starting host needs most memory anyway.
func (c Cache) encode() ([]byte, error) {
	peers := c.Peers
	if len(peers) > 0 {
		c.Peers = []*subnet.Lease{}
	}
	head, err := json.Marshal(c)
	if err != nil || len(peers) == 0 {
		return append(head, '\n'), err
	}
	const end, perPeer = "]}", 320 // as long as a peer of two families is
	b := make([]byte, 0, len(head)+len(peers)*perPeer)
	b = append(b, bytes.TrimSuffix(head, []byte(end))...)
	for i, p := range peers {
		if i > 0 {
			b = append(b, ',')
		}
		if b, err = p.AppendJSON(b); err != nil {
			return nil, err
		}
		b = append(b, '\n')
	}
	return append(b, end+"\n"...), nil
}

const hostName = "host.json"

// HostFile is the path of host.json.
func (d Dir) HostFile() string { return filepath.Join(string(d), hostName) }

// LoadHost reads host.json.
func (d Dir) LoadHost() (Host, error) { return load[Host](d, hostName) }

// SaveHost replaces host.json.
func (d Dir) SaveHost(h Host) error { return save(d, hostName, h) }

// dockerChange is the name of the file that is there for a moment only.
const dockerChange = "docker-change.json"

// LoadDockerChange reads docker-change.json; nil: there is none.
func (d Dir) LoadDockerChange() (*DockerChange, error) { return load[*DockerChange](d, dockerChange) }

// SaveDockerChange replaces docker-change.json.
func (d Dir) SaveDockerChange(c DockerChange) error { return save(d, dockerChange, c) }

// DropDockerChange removes docker-change.json, if it is there.
func (d Dir) DropDockerChange() error {
	_, err := daemonconfig.Remove(filepath.Join(string(d), dockerChange))
	return err
}

func load[T any](d Dir, name string) (T, error) {
	var v T
	path := filepath.Join(string(d), name)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return v, nil
	}
	if err != nil {
		return v, fmt.Errorf("read state: %w", err)
	}
	if err := json.Unmarshal(data, &v); err != nil {
		var zero T
		return zero, fmt.Errorf("read state %s: %w", path, err)
	}
	return v, nil
}

func save(d Dir, name string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode state %s: %w", name, err)
	}
	return write(d, name, append(data, '\n'))
}

func write(d Dir, name string, data []byte) error {
	path := filepath.Join(string(d), name)
	if _, err := daemonconfig.Write(path, data, daemonconfig.WriteOptions{Perm: 0o600, DirPerm: 0o700}); err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	return nil
}
