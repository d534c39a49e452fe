package etcdstore

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestPace(t *testing.T) {
	type call struct {
		took time.Duration
		code codes.Code
	}
	const ms, least = time.Millisecond, 5 * time.Second
	fast := call{5 * ms, codes.OK}
	for name, tt := range map[string]struct {
		calls       []call
		least, most time.Duration
	}{
		"nothing was asked":           {nil, least, least},
		"quick answers":               {[]call{fast, fast, fast}, least, least},
		"slow answers":                {[]call{fast, {2 * time.Second, codes.OK}}, 19 * time.Second, 21 * time.Second},
		"a refusal is an answer":      {[]call{{2 * time.Second, codes.FailedPrecondition}}, 19 * time.Second, 21 * time.Second},
		"one quick answer among them": {[]call{{2 * time.Second, codes.OK}, fast}, 12 * time.Second, 16 * time.Second},
		"quick again": {
			[]call{{2 * time.Second, codes.OK}, fast, fast, fast, fast, fast, fast, fast, fast, fast, fast}, least, least,
		},
		"no answer in time":                      {[]call{{5 * time.Second, codes.DeadlineExceeded}}, 10 * time.Second, 10 * time.Second},
		"nor in twice that":                      {[]call{{5 * time.Second, codes.DeadlineExceeded}, {10 * time.Second, codes.DeadlineExceeded}}, 20 * time.Second, 20 * time.Second},
		"slower before than the one that missed": {[]call{{2 * time.Second, codes.OK}, {5 * time.Second, codes.DeadlineExceeded}}, 20 * time.Second, 20 * time.Second},
		"nobody was there":                       {[]call{{20 * time.Second, codes.Unavailable}}, least, least},
		"we did not want to know":                {[]call{{20 * time.Second, codes.Canceled}}, least, least},
		"it is bounded":                          {[]call{{time.Hour, codes.OK}}, time.Minute, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			var p pace
			for _, c := range tt.calls {
				p.note(c.took, status.Error(c.code, "so it ended"))
			}
			if got := p.patience(least); got < tt.least || got > tt.most {
				t.Errorf("patience of %s, want %s to %s", got, tt.least, tt.most)
			}
		})
	}
}
