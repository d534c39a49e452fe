package robustness

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// poolOf are the subnets that a config allows.
func poolOf(t *testing.T, text string) []string {
	t.Helper()
	cfg, err := subnet.ParseConfig(text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	var all []string
	for i := range cfg.Pool().Len() {
		all = append(all, cfg.Pool().At(i).String())
	}
	return all
}

// The daemons read the configs as they are meant.
func TestNetwork(t *testing.T) {
	n := networkFor(10)
	want := make([]string, 0, len(n.pool))
	for _, p := range n.pool {
		want = append(want, p.String())
	}
	for name, text := range map[string]string{"config": n.config(), "harmless": n.variant(variantHarmless)} {
		if diff := cmp.Diff(want, poolOf(t, text)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if n.variant(variantHarmless) == n.config() {
		t.Error("the harmless config is no other")
	}
	shifted := poolOf(t, n.variant(variantRange))
	if len(shifted) != len(want) || slices.Contains(shifted, want[moved-1]) || !slices.Contains(shifted, want[moved]) {
		t.Errorf("the pool %s is moved to %s", want, shifted)
	}
	if cfg, err := subnet.ParseConfig(n.variant(variantInvalid)); err == nil {
		t.Errorf("the invalid config is valid: %v", cfg)
	}
	if got := subnetKey(n.pool[0]); got != "/coreos.com/network/subnets/10.5.16.0-24" {
		t.Errorf("the first subnet's key is %s", got)
	}
}

func TestNeighboursBeginAtOnePlace(t *testing.T) {
	n := networkFor(8)
	cfg, err := subnet.ParseConfig(n.config())
	if err != nil {
		t.Fatal(err)
	}
	ids := neighbours(n, 4)
	if slices.Sort(ids); len(slices.Compact(ids)) != 4 {
		t.Errorf("node ids %s, want 4", ids)
	}
	for _, id := range ids {
		if at := cfg.Pool().Start(subnet.NodeID(id)); at != 0 {
			t.Errorf("%s begins at %d", id, at)
		}
	}
}

// What the operator writes is told from what daemons write, though to a daemon
// there is no difference.
func TestGhosts(t *testing.T) {
	tr := new(trial)
	var attrs, other subnet.Attrs
	first, second := tr.ghost(), tr.ghost()
	if err := json.Unmarshal([]byte(first), &attrs); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(second), &other); err != nil {
		t.Fatal(err)
	}
	if attrs.Owner == other.Owner || attrs.PublicIP == other.PublicIP || attrs.BackendData == other.BackendData {
		t.Errorf("two ghosts are one: %s, %s", first, second)
	}
	real, err := subnet.Attrs{Owner: "lab-h1", Instance: "7", PublicIP: subnet.ByFamily[netip.Addr]{netip.MustParseAddr("198.18.0.1")}}.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	if !isGhost(first) || !isGhost(garbage+"1"+byHand) || isGhost(string(real)) || isGhost(string(real)+byHand) {
		t.Error("a ghost is not told from a host")
	}
	if json.Unmarshal([]byte(garbage+"1"+byHand), &attrs) == nil {
		t.Error("garbage can be read")
	}
	r := &Record{Epochs: []Epoch{{Events: []Event{
		{Key: "config", Deleted: true},
		{Key: "subnets/a", Value: first},
		{Key: "subnets/b", Value: string(real)},
		{Key: "subnets/c", Value: string(real) + byHand},
		{Key: "subnets/d", Deleted: true},
		{Key: "flanneld-go/store", Value: "x"},
		{Key: "subnets/e", Value: string(real), Lease: 7, At: 2 * time.Second},
		{Key: "subnets/e", Value: string(real), At: 3 * time.Second},
		{Key: "subnets/e", Value: string(real), At: 4 * time.Second},
		{Key: "subnets/f", Value: string(real), At: time.Minute},
	}}}}
	attribute(r, []reserved{{"subnets/e", time.Second}, {"subnets/f", time.Second}})
	var by []string
	for _, e := range r.Epochs[0].Events {
		if e.Operator {
			by = append(by, fmt.Sprintf("%s %s", e.Key, e.At))
		}
	}
	if diff := cmp.Diff([]string{"config 0s", "subnets/a 0s", "subnets/c 0s", "subnets/e 3s"}, by); diff != "" {
		t.Errorf("the operator's (-want +got):\n%s", diff)
	}
}

func TestBlips(t *testing.T) {
	at := func(ms ...time.Duration) []time.Duration {
		for i := range ms {
			ms[i] *= time.Millisecond
		}
		return ms
	}
	for name, tc := range map[string]struct{ lost, want []time.Duration }{
		"none":           {nil, nil},
		"one":            {at(5000), at(5000, 5000)},
		"close together": {at(5000, 5900, 6800), at(5000, 6800)},
		"far apart":      {at(5000, 6000, 9000), at(5000, 5000, 6000, 6000, 9000, 9000)},
	} {
		var got []time.Duration
		for _, f := range blips(tc.lost) {
			if got = append(got, f.From, f.Until); !f.Every {
				t.Errorf("%s: not every host is touched", name)
			}
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestSummary(t *testing.T) {
	r := &Record{
		Seed: 7, TTL: time.Second, Duration: 2 * time.Minute, Hosts: make([]Host, 3),
		Epochs: []Epoch{{Events: make([]Event, 4)}, {Events: make([]Event, 1)}},
		Faults: []Fault{{Kind: FaultKill}, {Kind: FaultWipe}, {Kind: FaultKill, Err: "no"}},
		Pairs:  []Pair{{Sent: 10, Lost: []time.Duration{1}}, {Sent: 5}},
		Load:   []Load{{Requests: 40, CPU: time.Second}, {Requests: 20, CPU: 4 * time.Second, LogLines: 6}},
		Final:  Final{Leased: map[string]time.Duration{"h1": time.Second, "h2": 2 * time.Second}, Ready: map[string]time.Duration{"h1": -1}, Mesh: 3 * time.Second},
	}
	var text bytes.Buffer
	summarize(&text, r, Verdicts{{Validator: NoLoss, Violations: []Violation{{Validator: NoLoss}, {Validator: NoLoss}}, Judged: 7, Excused: 3, Of: "packets"}, {Validator: Leased, Violations: []Violation{{Validator: Leased}}}})
	for _, want := range []string{
		"seed 7: 2m0s, 3 hosts, TTL 1s", "2 kill (1 refused), 1 wipe", "2 epochs, 5 changes", "15 sent, 1 lost",
		"20 requests to etcd, 2.0 s of CPU, 3 log lines", "no-loss    7 packets  3        2", "excused by the machine  ", "leased after 2s, ready never, mesh after 3s", "leased 1, no-loss 2",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
}

// What the machine lost excuses what was under way then, and nothing later.
func TestBlipsExcuseNothingLater(t *testing.T) {
	b := DefaultBounds(time.Second)
	at := 20 * time.Second
	for name, tc := range map[string]struct {
		lost time.Duration
		want int
	}{
		"sent long before": {at - b.Transit - time.Millisecond, 1},
		"sent before":      {at - b.Transit, 0},
		"with it":          {at, 0},
		"sent after":       {at + b.Transit, 0},
		"sent much later":  {at + b.Transit + time.Millisecond, 1},
	} {
		r := &Record{
			TTL: b.TTL, Duration: time.Minute, Hosts: []Host{{Name: "h1"}, {Name: "h2"}},
			Faults: blips([]time.Duration{at}), Pairs: []Pair{{From: "h1", To: "h2", Sent: 9, Lost: []time.Duration{tc.lost}}},
		}
		found := newEvidence(r, b).noLoss()
		if len(found) != tc.want {
			t.Errorf("%s: %d violations, want %d: %v", name, len(found), tc.want, found)
		}
	}
}
