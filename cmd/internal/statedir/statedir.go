// Package statedir keeps what a host must remember over restarts, in
// --state-dir:
//
//	cache.json  config, own lease and peers as last seen in etcd
//	host.json   what the daemon changed on this host, for the cleanup
//
// # Contract
//
// Files are replaced whole and atomically; one that cannot be read is an error
// that names it, never a guess. A missing file is the zero value.
package statedir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

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
	Peers    []subnet.Lease  `json:"peers"`
}

// Host is what was changed on this host.
type Host struct {
	// Backend is the Backend object last applied, and its type: another one
	// means that the old one's state must be removed first.
	BackendType string         `json:"backend_type"`
	Backend     subnet.RawJSON `json:"backend,omitempty"`
	// Sysctls are the values that sysctls had before we set them.
	Sysctls map[string]string `json:"sysctls,omitempty"`
	// Docker are the values that keys of the container daemon's config file
	// had before we set them; null: the key was absent.
	DockerPath string                     `json:"docker_path,omitempty"`
	Docker     map[string]json.RawMessage `json:"docker,omitempty"`
	SubnetFile string                     `json:"subnet_file,omitempty"`
}

// LoadCache reads cache.json.
func (d Dir) LoadCache() (Cache, error) { return load[Cache](d, "cache.json") }

// SaveCache replaces cache.json.
func (d Dir) SaveCache(c Cache) error { return save(d, "cache.json", c) }

// LoadHost reads host.json.
func (d Dir) LoadHost() (Host, error) { return load[Host](d, "host.json") }

// SaveHost replaces host.json.
func (d Dir) SaveHost(h Host) error { return save(d, "host.json", h) }

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
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return fmt.Errorf("create state directory: %w", err)
	}
	path := filepath.Join(string(d), name)
	if err := renameio.WriteFile(path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write state %s: %w", path, err)
	}
	return nil
}
