// Package catalog names the backends. It stands apart from the daemon because
// flannelctl checks configs and cleans up with the same list.
package catalog

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/alloc"
	"github.com/flanneld-go/flanneld-go/backend/hostgw"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/udp"
	"github.com/flanneld-go/flanneld-go/backend/vxlan"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// ErrUnknown: there is no backend of that name.
var ErrUnknown = errors.New("unknown backend")

// constructors returns every backend by its name in the network config.
func constructors() map[string]backend.Constructor {
	return map[string]backend.Constructor{
		"alloc":   alloc.New,
		"host-gw": hostgw.New,
		"udp":     udp.New,
		"vxlan":   vxlan.New,
	}
}

// New makes the backend that p.Config names.
func New(p backend.Params) (backend.Backend, error) {
	all := constructors()
	construct, ok := all[p.Config.BackendType]
	if !ok {
		return nil, fmt.Errorf("Backend.Type: %q: must be one of %s: %w", p.Config.BackendType,
			strings.Join(slices.Sorted(maps.Keys(all)), ", "), ErrUnknown)
	}
	return construct(p)
}

// Check checks the Backend object of cfg on no particular host, and returns the
// paths of keys that nobody knows, in all of the config.
func Check(cfg *subnet.Config) (unknown []string, err error) {
	unknown = slices.Clone(cfg.Unknown)
	p := detached(cfg)
	p.Unknown = func(keys []string) { unknown = append(unknown, keys...) }
	_, err = New(p)
	slices.Sort(unknown)
	return slices.Compact(unknown), err
}

// Parse reads a network config and checks it with its backend. The error joins
// every problem of both; Unknown has the keys of both.
func Parse(text string) (*subnet.Config, error) {
	cfg, err := subnet.ParseConfig(text)
	if err != nil {
		return nil, errors.Join(err, checkBackendAlone(text))
	}
	if cfg.Unknown, err = Check(cfg); err != nil {
		return nil, err
	}
	return cfg, nil
}

// checkBackendAlone checks the Backend object of a config that is wrong
// elsewhere, as if that were right. What is wrong with text or with the type of
// the backend is not said again.
func checkBackendAlone(text string) error {
	o, err := subnet.ParseObject("", subnet.RawJSON(text))
	if err != nil {
		return nil //nolint:nilerr // said by ParseConfig
	}
	raw := o.Raw("Backend")
	if raw == "" {
		return nil
	}
	cfg, err := subnet.ParseConfig(`{"Network":"10.0.0.0/8","Backend":` + string(raw) + `}`)
	if err != nil {
		return nil //nolint:nilerr // said by ParseConfig
	}
	_, err = Check(cfg)
	return err
}

// Detached makes the backend of cfg to clean up, or to look at what is left: for
// whoever is no host of the network at the moment.
func Detached(cfg *subnet.Config, instance kernel.Instance, host kernel.Host, log *slog.Logger) (backend.Backend, error) {
	p := detached(cfg)
	p.Instance, p.Kernel, p.Log = instance, host, log
	return New(p)
}

func detached(cfg *subnet.Config) backend.Params {
	return backend.Params{Config: cfg, Node: "detached"}
}
