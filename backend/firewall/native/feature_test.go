package native

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/backend/vxlan"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// lesser is a kernel that refuses what it lacks.
type lesser struct {
	door
	lacks lacks
	// raced is how many transactions somebody else makes fail.
	raced  int
	probes *int
}

func (l *lesser) probe(ctx context.Context, f subnet.Family, x Feature) error {
	*l.probes++
	if l.lacks.has(f, x) {
		return fmt.Errorf("try %s: %w", x, syscall.ENOENT)
	}
	return l.door.probe(ctx, f, x)
}

func (l *lesser) write(ctx context.Context, changes subnet.ByFamily[change]) error {
	if l.raced > 0 {
		l.raced--
		return fmt.Errorf("commit: %w", syscall.ENOENT)
	}
	for _, f := range subnet.Families() {
		for _, c := range changes[f].rewrite {
			nat := c.hook.kind == "nat"
			fib := slices.ContainsFunc(c.rules, func(r rule) bool { return strings.Contains(r.text, "fib\x00") })
			if l.lacks.has(f, FeatureTables) || nat && l.lacks[f][FeatureNAT] || fib && l.lacks[f][FeatureFIB] {
				return fmt.Errorf("commit: %w", syscall.ENOENT)
			}
		}
	}
	return l.door.write(ctx, changes)
}

func TestLesserKernels(t *testing.T) {
	const v6 = subnet.IPv6
	both := func(x Feature) (l lacks) {
		l[0][x], l[1][x] = true, true
		return l
	}
	withoutMasquerade, withoutNAT := dual(), dual()
	withoutMasquerade.Masquerade, withoutNAT.NAT = false, false
	for name, c := range map[string]struct {
		lacks   lacks
		release string
		d       Desired
		raced   int
		want    []Feature // per family
		gone    []string  // what no rule says
		probes  bool
	}{
		"all there":             {d: dual()},
		"a race":                {d: dual(), raced: 2, probes: true},
		"no fib":                {lacks: both(FeatureFIB), d: dual(), want: []Feature{FeatureFIB, FeatureFIB}, gone: []string{"fib"}, probes: true},
		"no fib, no masquerade": {lacks: both(FeatureFIB), d: withoutMasquerade, want: []Feature{FeatureFIB, FeatureFIB}, gone: []string{"fib", "enter the network"}, probes: true},
		"no NAT":                {lacks: both(FeatureNAT), d: dual(), want: []Feature{FeatureNAT, FeatureNAT}, gone: []string{"snat", "masq"}, probes: true},
		"no NAT, not wanted":    {lacks: both(FeatureNAT), d: withoutNAT, want: []Feature{FeatureNAT, FeatureNAT}, gone: []string{"snat", "masq"}, probes: true},
		"an old kernel":         {release: "4.14.9-generic", d: dual(), want: []Feature{FeatureNAT, FeatureNAT}, gone: []string{"snat", "masq"}},
		"a current kernel":      {release: "4.18.0-553.el8", d: dual()},
		"no IPv6":               {lacks: lacks{v6: {FeatureTables: true}}, d: dual(), want: []Feature{FeatureTables}, gone: []string{"ip6"}, probes: true},
		"no IPv6, not wanted":   {lacks: lacks{v6: {FeatureTables: true}}, d: v4(), gone: []string{"ip6"}, probes: true},
		"nothing":               {lacks: both(FeatureTables), d: dual(), want: []Feature{FeatureTables, FeatureTables}, gone: []string{"table"}, probes: true},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, kerneltest.NetNS(t, kernel.Options{}))
			probes := 0
			h.t.door = &lesser{h.t.door, c.lacks, c.raced, &probes}
			h.t.release = c.release
			var got []Feature
			for asked := 0; asked < 2; asked++ {
				before := probes
				err := h.tryApply(t, c.d)
				got = unsupported(err)
				if len(got) == 0 && err != nil {
					t.Fatalf("Apply: %v", err)
				}
				if asked > 0 && probes != before {
					t.Errorf("the second Apply probes again: %d, then %d", before, probes)
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("unsupported (-want +got)\n%s", diff)
			}
			if (probes > 0) != c.probes {
				t.Errorf("%d probes", probes)
			}
			list := h.list(t)
			for _, text := range c.gone {
				if strings.Contains(list, text) {
					t.Errorf("there is %q in\n%s", text, list)
				}
			}
			if !slices.Contains(c.gone, "table") && !strings.Contains(list, PeerSource+`" drop`) {
				t.Errorf("the drops are missing in\n%s", list)
			}
			if *h.written > 1 {
				t.Errorf("%d transactions, want one", *h.written)
			}
		})
	}
}

// unsupported takes joined errors apart.
func unsupported(err error) []Feature {
	var one *ErrUnsupported
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		var out []Feature
		for _, e := range many.Unwrap() {
			out = append(out, unsupported(e)...)
		}
		return out
	}
	if errors.As(err, &one) {
		return []Feature{one.Feature}
	}
	return nil
}

// The running kernel has everything, and a probe leaves nothing.
func TestProbe(t *testing.T) {
	h := newHost(t, kerneltest.NetNS(t, kernel.Options{}))
	for _, f := range subnet.Families() {
		for _, x := range features() {
			h.Do(t, func() {
				if err := h.t.door.probe(t.Context(), f, x); err != nil {
					t.Errorf("%s %s: %v", f, x, err)
				}
			})
		}
	}
	if list := h.list(t); list != "" {
		t.Errorf("left behind:\n%s", list)
	}
}

func TestReleaseBefore(t *testing.T) {
	for release, want := range map[string]bool{
		"4.17.0": true, "3.10.0-1160.el7": true, "4.18.0": false, "6.18.44-fc": false, "5.4": false, "": false, "x": false,
	} {
		if got := releaseBefore(release, "4.18"); got != want {
			t.Errorf("releaseBefore(%q) = %v, want %v", release, got, want)
		}
	}
}

// A subnet that moves from one host to another by standing there twice, and
// whatever else changes, loses nothing.
func TestMovesLoseNothing(t *testing.T) {
	t.Parallel()
	s := newScene(t, vxlan.New, configVXLAN)
	stop := s.lab.Flood(1, 0)
	for i := range 50 {
		d := s.d
		d.Peers = slices.Clone(s.d.Peers)
		moved := d.Peers[0]
		moved.PublicIP[subnet.IPv4] = address(fmt.Sprintf("198.18.0.%d", 100+i))
		d.Peers = append(d.Peers, moved)
		d.NAT = i%2 == 0
		s.apply(t, d)
	}
	stop()
	if got := s.counters(t); slices.Max(slices.Collect(maps.Values(got))) != 0 {
		t.Errorf("counted: %v", got)
	}
}
