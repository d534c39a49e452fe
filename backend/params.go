package backend

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// Logger returns Log, or one that discards.
func (p Params) Logger() *slog.Logger {
	if p.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return p.Log
}

// Router returns the policy for our routes.
func (p Params) Router() Router {
	return Router{Kernel: p.Kernel, Instance: p.Instance, Log: p.Logger()}
}

// Families are those that the config has, in order.
func (p Params) Families() []subnet.Family {
	var fs []subnet.Family
	for _, f := range subnet.Families() {
		if p.Config.Ranges[f].Network.IsValid() {
			fs = append(fs, f)
		}
	}
	return fs
}

// NoOptions is the option check of backends that have none: it returns the
// syntax errors of the Backend object, and warns of its keys.
func (p Params) NoOptions() error {
	o, err := p.Config.BackendOptions()
	if err != nil {
		return err
	}
	p.WarnUnknown(o.Unknown())
	return o.Err()
}

// WarnUnknown tells Unknown of config keys that nobody knows, or logs them: a
// newer host's key must not stop an older host.
func (p Params) WarnUnknown(keys []string) {
	if p.Unknown != nil {
		p.Unknown(keys)
		return
	}
	for _, key := range keys {
		p.Logger().Warn("unknown config key is ignored", "key", key)
	}
}

// CheckUplink returns an error unless the uplink has an address of each family
// that the config has.
func (p Params) CheckUplink(u Uplink) error {
	var errs []error
	for _, f := range p.Families() {
		if !u.Addr[f].IsValid() {
			errs = append(errs, fmt.Errorf("uplink %s has no %s address, which the %s network needs", u.Link.Name, f, f))
		}
	}
	return errors.Join(errs...)
}

// Attrs returns attributes with the public addresses of the config's families.
func (p Params) Attrs(backendType string, u Uplink) subnet.Attrs {
	attrs := subnet.Attrs{BackendType: backendType}
	for _, f := range p.Families() {
		attrs.PublicIP[f] = u.Public[f]
	}
	return attrs
}

// ErrOtherBackend: a peer joins its hosts in another way than we do. It is so
// for a while when the config's Backend is changed.
var ErrOtherBackend = errors.New("its backend is another")

// CheckPeer says why a peer cannot be sent to by the uplink in a family, whatever
// the backend of that type makes of it.
func (u Uplink) CheckPeer(backendType string, f subnet.Family, peer subnet.Attrs) error {
	public := peer.PublicIP[f]
	switch {
	case peer.BackendType != backendType:
		return fmt.Errorf("%w: %q, not %q", ErrOtherBackend, peer.BackendType, backendType)
	case !public.IsValid():
		return fmt.Errorf("it has no public %s address", f)
	case public.IsUnspecified() || public.IsLoopback() || public.IsMulticast():
		return fmt.Errorf("its public address %s is no host's", public)
	case public == u.Addr[f] || public == u.Public[f]:
		return fmt.Errorf("its public address %s is this host's own", public)
	}
	return nil
}
