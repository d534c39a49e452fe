package machine

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Who waits does so until the machine is calm, and however busy it stays there is an end
// to it; who is interrupted does not wait. It is said once.
func TestCalm(t *testing.T) {
	errUnreadable := errors.New("no such file")
	for name, tc := range map[string]struct {
		busy          int // looks
		within, takes time.Duration
		interrupted   bool
		err           error
	}{
		"calm":            {within: time.Minute},
		"calm in a while": {busy: 3, within: time.Minute, takes: 3 * lookEvery},
		"never calm":      {busy: 100, within: time.Minute, takes: time.Minute},
		"no time to wait": {busy: 1},
		"interrupted":     {busy: 100, within: time.Minute, interrupted: true, err: context.Canceled},
		"unreadable":      {within: time.Minute, err: errUnreadable},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if tc.interrupted {
					cancel()
				}
				var out bytes.Buffer
				began, left := time.Now(), tc.busy
				err := calm(ctx, tc.within, &out, func() (Description, error) {
					d := Description{Cores: 2, Load: 1}
					if left > 0 {
						d.Load = 1.1
					}
					left--
					if errors.Is(tc.err, errUnreadable) {
						return d, errUnreadable
					}
					return d, nil
				})
				if took := time.Since(began); took != tc.takes || !errors.Is(err, tc.err) {
					t.Errorf("%v after %s, want %v after %s", err, took, tc.err, tc.takes)
				}
				said := 0
				if tc.busy > 0 && tc.within > 0 {
					said = 1
				}
				if got := strings.Count(out.String(), "waiting for at most"); got != said {
					t.Errorf("said %d times, want %d: %q", got, said, out.String())
				}
			})
		})
	}
}
