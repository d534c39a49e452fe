package hosts

import (
	"context"
	"time"
)

// cell is one question to a setup. What it answers with success may carry a
// note for the table. Cells run in their order on the same machines, and leave
// them as they found them.
type cell struct {
	name string
	run  func(context.Context, *overlay) (note string, err error)
}

func cells() []cell {
	return []cell{
		{"ping", pingCell},
	}
}

// answerWithin bounds the wait for anything that should come at once.
const answerWithin = 15 * time.Second

func pingCell(ctx context.Context, o *overlay) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	return "", o.bothWays(func(from, to *app) error { return wantPing(ctx, from, to) })
}
