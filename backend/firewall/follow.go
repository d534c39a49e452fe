package firewall

import (
	"context"
	"errors"
	"fmt"

	"github.com/flanneld-go/flanneld-go/backend/firewall/native"
)

// Follow lets packets of changed peers through our own table, at the cost of those
// peers alone: there they would be dropped as forged. What accepts them elsewhere,
// where a policy drops, is Apply's, which must follow soon. [native.ErrNotFollowed]:
// nothing was done.
func (f *Firewall) Follow(ctx context.Context, gone, fresh []native.Peer) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.native.Follow(ctx, gone, fresh)
	if err != nil && !errors.Is(err, native.ErrNotFollowed) {
		err = fmt.Errorf("nftables: %w", err)
	}
	f.passed(f.native.Wrote())
	return err
}

// generation is that of nf_tables, if anything is known of what iptables has there.
func (f *Firewall) generation(ctx context.Context) native.Generation {
	for v := range f.known {
		if v.NFT {
			stamp, _ := f.tools.Stamp(ctx, v) // zero is as good as the error
			return stamp.Generation
		}
	}
	return native.Generation{}
}

// passed says what is known of iptables' rules in nf_tables holds behind a step of ours
// that left them as they were, too. A step that was told before says nothing new.
func (f *Firewall) passed(s native.Step) {
	for v, r := range f.known {
		if v.NFT && s.Alone() && r.stamp.Generation == s.From {
			r.stamp.Generation = s.To
			f.known[v] = r
		}
	}
}

// Undisturbed reports whether the kernel says, of everything of ours, that nothing has
// changed since it was found to be in place. It runs no program.
func (f *Firewall) Undisturbed(ctx context.Context) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.native.Undisturbed(ctx) {
		return false
	}
	for v, r := range f.known {
		if f.clean[v.Family] {
			continue // Nothing of ours is there, nor wanted.
		}
		if stamp, err := f.tools.Stamp(ctx, v); err != nil || stamp != r.stamp {
			return false
		}
	}
	return true
}
