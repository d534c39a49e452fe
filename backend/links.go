package backend

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/reconcile"
)

// IsTunnel reports whether l is a tunnel of ours or of another instance's, by its
// alias, or of flannel's, by its name. An uplink is never one.
func IsTunnel(l kernel.Link) bool {
	switch l.Type {
	case "vxlan", "tun", "ipip", "ip6tnl", "wireguard":
		return kernel.IsAlias(l.Alias) || strings.HasPrefix(l.Name, "flannel")
	}
	return false
}

// ApplyAndSweep is reconcile.Apply and then, if all of that worked and nothing
// leads there any more, SweepLinks.
func (p Params) ApplyAndSweep(ctx context.Context, keep []string, steps ...reconcile.Step) (reconcile.Result, error) {
	r, err := reconcile.Apply(ctx, steps...)
	if err != nil {
		return r, err
	}
	swept, err := p.SweepLinks(ctx, keep...)
	r.Deleted, r.Failed = r.Deleted+swept.Deleted, r.Failed+swept.Failed
	return r, err
}

// SweepLinks deletes the tunnels that carry our alias and are not to be kept:
// what a backend of an earlier config left.
func (p Params) SweepLinks(ctx context.Context, keep ...string) (reconcile.Result, error) {
	return p.DeleteLinks(ctx, func(l kernel.Link) bool {
		return IsTunnel(l) && l.Alias == p.Instance.Alias() && !slices.Contains(keep, l.Name)
	})
}

// DeleteLinks deletes the links that match, goes past failures and joins them.
func (p Params) DeleteLinks(ctx context.Context, match func(kernel.Link) bool) (reconcile.Result, error) {
	links, err := p.Kernel.Links(ctx)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list links: %w", err)
	}
	var (
		r    reconcile.Result
		errs []error
	)
	for _, l := range links {
		if !match(l) {
			continue
		}
		if err := p.Kernel.DeleteLink(ctx, l.Index); err != nil {
			r.Failed++
			errs = append(errs, fmt.Errorf("delete device %s: %w", l.Name, err))
			continue
		}
		r.Deleted++
		p.Logger().Info("device deleted", "device", l.Name)
	}
	return r, errors.Join(errs...)
}
