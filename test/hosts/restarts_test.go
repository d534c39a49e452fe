package hosts

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestRestarts restarts our daemon a hundred times. Docker and its containers
// notice nothing.
func TestRestarts(t *testing.T) {
	if !whole() {
		t.Skip("long matrix: run make hosts")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	o := newOverlay(ctx, t, setup{trixie(), walks()[1], variants()[0]})
	before, err := o.processes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	o.each(t, func(m *Machine) error {
		for range 100 {
			if err := m.Service(ctx, ourService, "restart"); err != nil {
				return err
			}
		}
		return nil
	})
	after, err := o.processes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("processes (-before +after):\n%s", diff)
	}
	if err := wantPing(ctx, o.apps[0], o.apps[1]); err != nil {
		t.Error(err)
	}
}
