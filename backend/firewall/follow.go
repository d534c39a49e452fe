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
	step, err := f.native.Follow(ctx, gone, fresh)
	if err != nil {
		if !errors.Is(err, native.ErrNotFollowed) {
			err = fmt.Errorf("nftables: %w", err)
		}
		return err
	}
	// What the programs told at the one generation holds at the other.
	for v, r := range f.known {
		if v.NFT && step != (native.Step{}) && r.stamp == stampOf(step.From) {
			r.stamp = stampOf(step.To)
			f.known[v] = r
		}
	}
	return nil
}

// Undisturbed reports whether the kernel says, of everything of ours, that nothing has
// changed since it was found to be in place. It runs no program.
func (f *Firewall) Undisturbed(ctx context.Context) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.native.Undisturbed() {
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

func stampOf(g native.Generation) Stamp { return Stamp(fmt.Sprint(g)) }
