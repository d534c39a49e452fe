package kernel_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
)

// Names and numbers of any two instances differ, and no name followed by what its
// instance puts behind it begins as another's does.
func TestInstancesDiffer(t *testing.T) {
	for _, a := range kernel.Instances() {
		if !kernel.IsAlias(a.Alias()) || kernel.IsAlias(a.Alias()+"0") {
			t.Errorf("IsAlias does not know %s alone", a.Alias())
		}
		if p := a.Protocol(); p >= 186 {
			t.Errorf("instance %d has the protocol %d, which is assigned", a, p)
		}
		for _, b := range kernel.Instances() {
			if a == b {
				continue
			}
			if a.Alias() == b.Alias() || a.Protocol() == b.Protocol() || strings.HasPrefix(a.Alias()+"-", b.Alias()+"-") {
				t.Errorf("instances %d and %d: %s and %s, protocols %d and %d", a, b, a.Alias(), b.Alias(), a.Protocol(), b.Protocol())
			}
		}
	}
	if got, want := fmt.Sprint(kernel.Instance(0).Alias(), " ", kernel.Instance(0).Protocol()), "flanneld-go 158"; got != want {
		t.Errorf("the first instance has %q, want %q", got, want)
	}
}

// Two instances with routes by one gateway do not share its object: what the one
// deletes leaves the other's routes in place, whatever the one knew of them.
func TestInstancesShareNoNexthop(t *testing.T) {
	ns := kerneltest.NetNS(t, kernel.Options{})
	l := vxlan(t, ns)
	if err := ns.NexthopObjects(t.Context()); err != nil {
		t.Skipf("needs nexthop objects: %v", err)
	}
	second := open(t, ns, kernel.Options{Instance: 1})
	theirs := via(l.Index, net4, gw3)
	theirs.Protocol = kernel.Instance(1).Protocol()

	put(t, ns.Routes(), via(l.Index, net3, gw3))
	put(t, second.Routes(), theirs)
	want := ns.Run(t, "ip", "route", "show", "proto", fmt.Sprint(theirs.Protocol))
	objects := nexthops(t, ns)
	if len(objects) != 2 {
		t.Fatalf("two instances have %d objects, want one each:\n%s", len(objects), strings.Join(objects, "\n"))
	}
	remove(t, ns.Routes(), via(l.Index, net3, gw3))
	if left := nexthops(t, ns); len(left) != 1 {
		t.Errorf("after the first has deleted its route:\n%s\nof\n%s", strings.Join(left, "\n"), strings.Join(objects, "\n"))
	}
	// One that knows nothing of the objects yet takes none for an orphan of its own.
	fresh := open(t, ns, kernel.Options{})
	put(t, fresh.Routes(), via(l.Index, net3, gw4))
	remove(t, fresh.Routes(), via(l.Index, net3, gw4))
	if d := cmp.Diff(want, ns.Run(t, "ip", "route", "show", "proto", fmt.Sprint(theirs.Protocol))); d != "" {
		t.Errorf("routes of the second instance (-want +got):\n%s", d)
	}
	remove(t, second.Routes(), theirs)
	if left := nexthops(t, ns); len(left) != 0 {
		t.Errorf("after the second has deleted its route:\n%s", strings.Join(left, "\n"))
	}
}
