package robustness

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReport(t *testing.T) {
	s := narrate(t, 2)
	s.fault(0, Fault{Kind: FaultOverwrite, Hosts: []string{"h1"}, Detail: "foreign"})
	s.byOperator(func() { s.putBare(home(1), `{"Owner":"n99","PublicIP":"198.18.0.99"}`) })
	s.then(sec)
	s.put(home(1), `{"Owner":"n1","Instance":"h1#1","PublicIP":"198.18.0.1"}`)
	s.Load = []Load{{Host: "h2", LogLines: 1000}}
	r := s.record()
	const want = `2 violations in a run of 21s (seed 1, TTL 10s, 2 hosts, 1 faults)

1. lost-write at 21s: h1: revision 5: subnets/10.5.1.0-24: node n1 wrote over the key of node n99, held since revision 4
   rule: A daemon writes only keys that are free or its own: never over another owner's, never for a process that was superseded, and another address's only after a challenge.
   fault: overwrite, at 20s, h1, foreign
   subnets/10.5.1.0-24:
     0s: revision 2 created, lease 1: {"PublicIP":"198.18.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"aa:00:00:00:00:01"},"Owner":"n1","Instance":"h1#1"}
     20s: revision 4 put by the operator, no lease: {"Owner":"n99","PublicIP":"198.18.0.99"}
     21s: revision 5 put, no lease: {"Owner":"n1","Instance":"h1#1","PublicIP":"198.18.0.1"}

2. bounded-load at 21s: h2: 1000.0 log lines in the 21s since 0s, with 1 fault and 1 start: at most 87.0
   rule: Requests to etcd, CPU and log lines of each host stay within their budgets.
   fault: overwrite, at 20s, h1, foreign

by validator: bounded-load 1, lost-write 1
`
	found := []Violation{}
	for _, v := range Validate(r, Validators(DefaultBounds(r.TTL))).Violations() {
		if v.Validator != LastingReservation { // The operator's key was bare.
			found = append(found, v)
		}
	}
	if diff := cmp.Diff(want, Report(r, found)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got, want := Report(r, nil), "0 violations in a run of 21s (seed 1, TTL 10s, 2 hosts, 1 faults)\n"; got != want {
		t.Errorf("without violations: %q, want %q", got, want)
	}
}

// The tables of test/README.md have a row for every validator and every fault.
func TestTables(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if name, rest, ok := strings.Cut(strings.TrimPrefix(line, "| `"), "` |"); ok && strings.HasPrefix(line, "| `") {
			rows[name] = rest
		}
	}
	known := map[string]bool{}
	for _, v := range Validators(DefaultBounds(storyTTL)) {
		known[v.Name] = true
		if _, ok := rows[v.Name]; !ok {
			t.Errorf("no row for the validator %s", v.Name)
		}
	}
	for _, s := range specs() {
		name := string(s.kind)
		if _, ok := rows[name]; !ok && !known[name] {
			t.Errorf("no row for the fault %s", name)
		}
		if s.variant != "" && !strings.Contains(rows[name], s.variant) {
			t.Errorf("the row of the fault %s does not name its variant %s", name, s.variant)
		}
		known[name] = true
	}
	for name := range rows {
		if !known[name] {
			t.Errorf("row %q is about nothing", name)
		}
	}
	for _, m := range mutants() {
		if !strings.Contains(string(text), fmt.Sprintf("`%s`", m.name)) {
			t.Errorf("the tables do not name the broken daemon %s", m.name)
		}
	}
}

// The page states what a daemon may cost, and for how long a wrong route may hide.
func TestBoundsAreStated(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	b := DefaultBounds(leaseTTL)
	for name, budget := range map[string]Budget{
		"requests to etcd, messages of streams included": b.Requests, "seconds of CPU": b.CPU, "log lines": b.LogLines,
	} {
		row := fmt.Sprintf("| %s | %.4g | %g | %g | %g |\n", name, budget.PerMinute, budget.Burst, budget.PerFault, budget.PerStart)
		if !strings.Contains(string(text), row) {
			t.Errorf("no row %q", row)
		}
	}
	for _, want := range []string{
		fmt.Sprintf("the first %.0f s of a process", b.afterSilence().Seconds()),
		fmt.Sprintf("hide there for %.0f s more", (b.TTL - b.Hold).Seconds()),
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}
