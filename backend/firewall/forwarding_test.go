package firewall

import (
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/subnet"
)

const (
	forward4 = "net/ipv4/ip_forward"
	forward6 = "net/ipv6/conf/all/forwarding"
	acceptRA = "net/ipv6/conf/eth0.7/accept_ra"
	tunnel4  = "net/ipv4/conf/flannel.1/forwarding"
	other4   = "net/ipv4/conf/eth9/forwarding"
)

// sysctlHost has the parameters it was given and no others.
type sysctlHost struct {
	*kerneltest.Fake
	has map[string]string
}

func newSysctlHost(has map[string]string) *sysctlHost {
	h := &sysctlHost{kerneltest.New(), has}
	for name, value := range has {
		h.DefineSysctl(name, value)
	}
	return h
}

func (h *sysctlHost) Sysctl(name string) (string, error) {
	if _, ok := h.has[name]; !ok {
		return "", kernel.ErrNotFound
	}
	return h.Fake.Sysctl(name)
}

func TestForwarding(t *testing.T) {
	both := []subnet.Family{subnet.IPv4, subnet.IPv6}
	cases := []struct {
		name     string
		families []subnet.Family
		before   map[string]string
		ours     bool
		want     []SysctlChange
		err      error
	}{
		{name: "off", families: both[:1], before: map[string]string{forward4: "0"}, want: []SysctlChange{{Name: forward4, From: "0", To: "1"}}},
		{name: "on", families: both[:1], before: map[string]string{forward4: "1"}},
		{name: "IPv6 is not asked for", families: both[:1], before: map[string]string{forward4: "1", forward6: "0"}},
		{
			name: "both, the uplink lives on advertisements", families: both,
			before: map[string]string{forward4: "0", forward6: "0", acceptRA: "1"},
			want:   []SysctlChange{{Name: forward4, From: "0", To: "1"}, {Name: acceptRA, From: "1", To: "2"}, {Name: forward6, From: "0", To: "1"}},
		},
		{name: "IPv6 forwards already", families: both, before: map[string]string{forward4: "1", forward6: "1", acceptRA: "1"}},
		{
			name: "IPv6 forwards for our sake, and the uplink was told to take none", families: both, ours: true,
			before: map[string]string{forward4: "1", forward6: "1", acceptRA: "1"}, want: []SysctlChange{{Name: acceptRA, From: "1", To: "2"}},
		},
		{
			name: "the uplink takes none", families: both, before: map[string]string{forward4: "1", forward6: "0", acceptRA: "0"},
			want: []SysctlChange{{Name: forward6, From: "0", To: "1"}},
		},
		{
			name: "single interfaces do not", families: both[:1], before: map[string]string{forward4: "1", tunnel4: "0", other4: "0"},
			want: []SysctlChange{{Name: tunnel4, From: "0", To: "1"}},
		},
		{
			name: "no IPv6 in the kernel", families: both, before: map[string]string{forward4: "0"},
			want: []SysctlChange{{Name: forward4, From: "0", To: "1"}}, err: kernel.ErrNotFound,
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			host := newSysctlHost(c.before)
			f := Forwarding{Families: c.families, Uplink: "eth0.7", Ours: c.ours, Entries: []string{"flannel.1", "docker0"}}
			got, err := f.Ensure(t.Context(), host)
			if !errors.Is(err, c.err) {
				t.Errorf("error %v, want %v", err, c.err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("changes (-want +got):\n%s", diff)
			}
			if again, _ := f.Ensure(t.Context(), host); len(again) > 0 {
				t.Errorf("the second time it changes %v", again)
			}
			if err := RestoreForwarding(host, got); err != nil {
				t.Errorf("restore: %v", err)
			}
			for name, want := range c.before {
				if value, _ := host.Sysctl(name); value != want {
					t.Errorf("%s is %s after restore, want %s", name, value, want)
				}
			}
		})
	}
}

// What somebody else has set since stays.
func TestRestoreForwardingKeepsOthers(t *testing.T) {
	host := newSysctlHost(map[string]string{acceptRA: "0"})
	err := RestoreForwarding(host, []SysctlChange{{Name: acceptRA, From: "1", To: "2"}, {Name: forward4, From: "0", To: "1"}})
	if err != nil {
		t.Errorf("restore: %v", err)
	}
	if value, _ := host.Sysctl(acceptRA); value != "0" {
		t.Errorf("accept_ra is %s, want 0", value)
	}
}

// On the real kernel, forwarding takes others with it, each way.
func TestForwardingTakesOthersAlong(t *testing.T) {
	enterNamespace(t)
	host, err := kernel.Open(kernel.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	before := map[string]string{
		forward4: "0", forward6: "0",
		"net/ipv4/conf/all/accept_redirects": "0",
		"net/ipv4/conf/default/forwarding":   "1",
		"net/ipv4/conf/lo/forwarding":        "1",
		"net/ipv6/conf/default/forwarding":   "0",
		"net/ipv6/conf/lo/forwarding":        "1",
	}
	// In this order "all" is first, which changes the others, even from 0 to 0.
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if err := host.SetSysctl(name, before[name]); err != nil {
			t.Fatal(err)
		}
	}
	changed, err := Forwarding{Families: []subnet.Family{subnet.IPv4, subnet.IPv6}}.Ensure(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	for name := range before {
		want := "1"
		if name == "net/ipv4/conf/all/accept_redirects" {
			want = "0"
		}
		if value, err := host.Sysctl(name); err != nil || value != want {
			t.Errorf("%s is %s (%v) while hosts forward, want %s", name, value, err, want)
		}
	}
	if err := RestoreForwarding(host, changed); err != nil {
		t.Error(err)
	}
	for name, want := range before {
		if value, err := host.Sysctl(name); err != nil || value != want {
			t.Errorf("%s is %s (%v) after restore, want %s", name, value, err, want)
		}
	}

	// Who turns forwarding off means all of it.
	if changed, err = (Forwarding{Families: []subnet.Family{subnet.IPv4}}).Ensure(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(host.SetSysctl(forward4, "0"), RestoreForwarding(host, changed)); err != nil {
		t.Error(err)
	}
	if value, err := host.Sysctl("net/ipv4/conf/lo/forwarding"); err != nil || value != "0" {
		t.Errorf("forwarding of lo is %s (%v) after somebody turned all off, want 0", value, err)
	}
}
