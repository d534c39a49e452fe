package netns_test

import (
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/scale"
)

// A daemon beside five hundred peers has in its kernel what it should and nothing
// else, and after a hundred changes again. `make bench` says how long that takes.
func TestFiveHundredPeers(t *testing.T) {
	l := bareLab(t, lab.Options{Hosts: 1})
	if err := scale.Check(within(t, 2*time.Minute), l, 500, 100); err != nil {
		t.Fatal(err)
	}
}
