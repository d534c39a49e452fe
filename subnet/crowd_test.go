package subnet_test

import (
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
)

func TestCrowdPause(t *testing.T) {
	const second = time.Second
	for name, tt := range map[string]struct {
		others      subnet.Revision
		took        time.Duration
		random      float64
		least, most time.Duration
	}{
		"alone":                        {1, 20 * second, 0.9, 0, 0},
		"its own lease, untouched":     {-5, second, 0.9, 0, 0},
		"few others":                   {15, second, 0.9, 0, 0},
		"a crowd, the first":           {16, second, 0, second, second},
		"a crowd, the last":            {2000, second, 0.999, 3 * second, 4 * second},
		"others write, etcd is fast":   {1000, 5 * time.Millisecond, 0.999, 5 * time.Millisecond, 20 * time.Millisecond},
		"a crowd that etcd is slow to": {2000, time.Minute, 0.999, 9 * second, 10 * second},
		"they are spread nevertheless": {2000, time.Minute, 0, 4 * second, 6 * second},
	} {
		t.Run(name, func(t *testing.T) {
			w := subnet.World{Revision: 100}
			got := subnet.CrowdPause(w, subnet.Lease{Modified: w.Revision + tt.others}, tt.took, tt.random)
			if got < tt.least || got > tt.most {
				t.Errorf("a pause of %s, want %s to %s", got, tt.least, tt.most)
			}
		})
	}
}
