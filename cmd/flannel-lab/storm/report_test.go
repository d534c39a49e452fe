package storm

import (
	"bytes"
	"errors"
	"flag"
	"strings"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page/pagetest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// known is a report in which all is as wanted.
func known() Report {
	counts := Counts{Requests: map[string]float64{"Txn": 600, "LeaseGrant": 200, "Watch": 210}, Received: 2e5, Sent: 9e6, Events: 4e4, Streams: 200}
	return Report{
		Machine: machine.Description{CPU: "Z80", Cores: 1, Kernel: "6.1", Arch: "z80", Go: "go1", Day: "2026-01-02", Load: 0.25},
		Daemons: &Daemons{
			Hosts: 200, Leased: 9 * time.Second, Connected: 12 * time.Second, Counts: counts, Start: 5.05,
			Subnets: 200, Pairs: 39800, Pings: 20, Memory: 5e9, Largest: 3e7, Etcd: 7e7,
		},
		Phases: []Phase{
			{Title: "all boot at once", Hosts: 200, Took: 3 * time.Second, Counts: counts, Start: 5.01, Subnets: 200, Peak: 400},
			{Title: "nothing happens", Hosts: 200, Took: 6 * time.Second, Counts: counts, Steady: true},
		},
	}
}

func TestMarkdown(t *testing.T) {
	var out bytes.Buffer
	if err := known().Markdown(&out); err != nil {
		t.Fatal(err)
	}
	pagetest.Golden(t, *update, "all.md", out.Bytes())
	// Each row of a table has as many cells as its head.
	for _, table := range strings.Split(out.String(), "\n\n") {
		head := strings.Count(strings.SplitN(table, "\n", 2)[0], "|")
		for line := range strings.Lines(table) {
			if strings.HasPrefix(line, "|") && strings.Count(line, "|") != head {
				t.Errorf("%d bars below a head of %d: %s", strings.Count(line, "|"), head, line)
			}
		}
	}
}

func TestClaims(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(r *Report)
		says  string
	}{
		"all is well":          {func(*Report) {}, ""},
		"six requests":         {func(r *Report) { r.Phases[0].Start, r.Daemons.Start = 6, 6 }, ""},
		"two have one subnet":  {func(r *Report) { r.Daemons.Subnets-- }, "200 daemons at once, different subnets: 199, wanted just 200"},
		"no path":              {func(r *Report) { r.Daemons.Pairs-- }, "paths between them: 39799, wanted just 39800"},
		"daemons ask too much": {func(r *Report) { r.Daemons.Start = 6.01 }, "200 daemons at once, requests of each until it knew all others: 6.01, wanted at most 6"},
		"hosts ask too much":   {func(r *Report) { r.Phases[0].Start = 6.01 }, "200 hosts in one process at once, requests of each"},
		"one is without":       {func(r *Report) { r.Phases[0].Subnets-- }, "200 hosts in one process at once, different subnets: 199"},
		"no daemons":           {func(r *Report) { r.Daemons = nil }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := known()
			tc.spoil(&r)
			excused, missed := page.Missed(r.Claims(), true)
			switch {
			case len(excused) > 0:
				t.Errorf("a busy machine excuses %v", excused)
			case tc.says == "" && missed != nil:
				t.Errorf("got %v", missed)
			case tc.says != "" && (!errors.Is(missed, page.ErrMissed) || !strings.Contains(missed.Error(), tc.says)):
				t.Errorf("got %v, want an error with %q", missed, tc.says)
			}
		})
	}
}

// The page of this project has the place that make bench writes to.
func TestOwnPage(t *testing.T) {
	if err := CheckDocs("../../../docs"); err != nil {
		t.Error(err)
	}
}
