package machine

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"
)

// However busy the machine is, there is an end to waiting, and who is interrupted does
// not wait.
func TestCalmEnds(t *testing.T) {
	var out bytes.Buffer
	if err := Calm(t.Context(), 0, &out); err != nil || out.Len() > 0 {
		t.Errorf("without time to wait: %v, %q", err, out.String())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	now, err := Describe()
	if err != nil {
		t.Fatal(err)
	}
	err = Calm(ctx, time.Hour, &out)
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if err == nil && now.Load > 2*now.calmBelow() {
		t.Error("a busy machine was not waited for")
	}
}
