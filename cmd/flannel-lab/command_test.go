package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/faults"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page"
	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
)

func TestParseDemo(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(self)
	with := func(change func(*demoOptions)) demoOptions {
		o := demoOptions{
			name: "demo", hosts: 3, backends: backends,
			daemon: filepath.Join(dir, "flanneld-go"), ctl: filepath.Join(dir, "flannelctl"),
		}
		change(&o)
		return o
	}
	for _, tc := range []struct {
		name string
		args []string
		want demoOptions
	}{
		{"nothing", nil, with(func(*demoOptions) {})},
		{"one backend", []string{"--backend", "host-gw"}, with(func(o *demoOptions) { o.backends = []string{"host-gw"} })},
		{"keep", []string{"--keep"}, with(func(o *demoOptions) { o.keep, o.backends = true, []string{"vxlan"} })},
		{"keep one", []string{"--keep", "--backend=udp"}, with(func(o *demoOptions) { o.keep, o.backends = true, []string{"udp"} })},
		{"everything", []string{"--hosts=9", "--daemon=/d", "--name=x", "--replace"}, with(func(o *demoOptions) {
			o.hosts, o.daemon, o.name, o.replace = 9, "/d", "x", true
		})},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseDemo(tc.args, &bytes.Buffer{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(demoOptions{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseFaults(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	with := func(change func(*faultsOptions)) faultsOptions {
		o := faultsOptions{
			measurement: measurement{name: "faults", output: "table", self: self, daemon: filepath.Join(filepath.Dir(self), "flanneld-go")},
			rounds:      3, outage: time.Minute, backends: faults.Backends(),
		}
		change(&o)
		return o
	}
	for _, tc := range []struct {
		name string
		args []string
		want faultsOptions
	}{
		{"nothing", nil, with(func(*faultsOptions) {})},
		{"some", []string{"--only=kill,restart", "--backend=udp"}, with(func(o *faultsOptions) {
			o.only, o.backends = []string{"kill", "restart"}, []string{"udp"}
		})},
		{
			"everything",
			[]string{
				"--only=kill", "--backend=vxlan", "--rounds=1", "--outage=5s", "--output=json", "--docs=/p", "--daemon=/d", "--previous=/q",
				"--name=x", "--replace",
			},
			faultsOptions{
				measurement: measurement{name: "x", replace: true, daemon: "/d", self: self, output: "json", docs: "/p"},
				previous:    "/q", only: []string{"kill"}, backends: []string{"vxlan"}, rounds: 1, outage: 5 * time.Second,
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseFaults(tc.args, &bytes.Buffer{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(faultsOptions{}, measurement{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// missed is a report of something that was not as wanted.
type missed struct{ told []string }

func (m *missed) Markdown(io.Writer) error { m.told = append(m.told, "table"); return nil }
func (m *missed) JSON(io.Writer) error     { m.told = append(m.told, "json"); return nil }
func (m *missed) WriteDocs(string) error   { m.told = append(m.told, "docs"); return nil }
func (m *missed) Err() error               { m.told = append(m.told, "verdict"); return faults.ErrMissed }

// What is not as wanted is told first, and fails the command then.
func TestFaultsThatMissFailTheCommand(t *testing.T) {
	for output, want := range map[string][]string{
		"table": {"docs", "table", "verdict"},
		"json":  {"docs", "json", "verdict"},
	} {
		m, o := &missed{}, faultsOptions{measurement: measurement{docs: "docs", output: output}}
		if err := o.conclude(m, io.Discard); !errors.Is(err, faults.ErrMissed) {
			t.Errorf("conclude = %v, want %v", err, faults.ErrMissed)
		}
		if diff := cmp.Diff(want, m.told); diff != "" {
			t.Errorf("%s (-want +got):\n%s", output, diff)
		}
	}
}

func TestParseBench(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	with := func(change func(*benchOptions)) benchOptions {
		o := benchOptions{
			measurement: measurement{name: "bench", output: "table", self: self, daemon: filepath.Join(filepath.Dir(self), "flanneld-go")},
			rounds:      5, seconds: 1,
		}
		change(&o)
		return o
	}
	for _, tc := range []struct {
		name     string
		args     []string
		want     benchOptions
		variants []string
	}{
		{"nothing", nil, with(func(*benchOptions) {}), variantNames()},
		{"some, in the order of tables", []string{"--only=udp,vxlan"}, with(func(o *benchOptions) { o.only = []string{"udp", "vxlan"} }), []string{"vxlan", "udp"}},
		{
			"everything",
			[]string{"--only=udp-off", "--rounds=1", "--seconds=0.05", "--output=json", "--docs=/p", "--daemon=/d", "--name=x", "--replace"},
			benchOptions{
				measurement: measurement{name: "x", replace: true, daemon: "/d", self: self, output: "json", docs: "/p"},
				only:        []string{"udp-off"}, rounds: 1, seconds: 0.05,
			},
			[]string{"udp-off"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseBench(tc.args, &bytes.Buffer{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(benchOptions{}, measurement{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			var variants []string
			for _, v := range got.variants() {
				variants = append(variants, v.Name)
			}
			if diff := cmp.Diff(tc.variants, variants); diff != "" {
				t.Errorf("variants (-want +got):\n%s", diff)
			}
		})
	}
}

func TestUsageErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		says string
	}{
		"no command":       {nil, "no command"},
		"unknown command":  {[]string{"dance"}, `"dance" is no command`},
		"unknown flag":     {[]string{"demo", "--colour"}, "--colour"},
		"an argument":      {[]string{"demo", "vxlan"}, `"vxlan": takes flags only`},
		"one host":         {[]string{"demo", "--hosts=1"}, "--hosts: 1: must be between 2 and 1000"},
		"too many hosts":   {[]string{"demo", "--hosts=1001"}, "--hosts: 1001: must be between 2 and 1000"},
		"unknown backend":  {[]string{"demo", "--backend=pigeon"}, `--backend: "pigeon": must be one of udp, vxlan, host-gw`},
		"etcd at nothing":  {[]string{"etcd"}, "--dir"},
		"bench: flag":      {[]string{"bench", "--colour"}, "--colour"},
		"bench: argument":  {[]string{"bench", "udp"}, `"udp": takes flags only`},
		"no rounds":        {[]string{"bench", "--rounds=0"}, "--rounds: 0: must be between 1 and 1000"},
		"no time":          {[]string{"bench", "--seconds=0"}, "--seconds: 0: must be between 0.01 and 600"},
		"no number":        {[]string{"bench", "--seconds=NaN"}, "--seconds: NaN: must be"},
		"unknown form":     {[]string{"bench", "--output=xml"}, `--output: "xml": must be one of table, json`},
		"unknown variant":  {[]string{"bench", "--only=udp,pigeon"}, `--only: "pigeon": must be of veth, vxlan, host-gw, udp, udp-off, forwarder, flannel-loop`},
		"scale: argument":  {[]string{"scale", "10"}, `"10": takes flags only`},
		"scale: backend":   {[]string{"scale", "--backend=vxlan,ipip"}, `--backend: "ipip": must be of [vxlan host-gw udp], each once`},
		"scale: twice":     {[]string{"scale", "--backend=udp,udp"}, `--backend: "udp": must be of`},
		"scale: none":      {[]string{"scale", "--backend="}, "--backend: must be of"},
		"no peers":         {[]string{"scale", "--peers=0"}, "--peers: [0]: must be between 1 and 64000"},
		"peers descend":    {[]string{"scale", "--peers=2,1"}, "--peers: [2 1]: must be"},
		"too many peers":   {[]string{"scale", "--peers=1,64001"}, "must be between 1 and 64000, ascending"},
		"too many rounds":  {[]string{"scale", "--rounds=200"}, "--rounds: 200: must be at least 1, and 1801 hosts"},
		"no rate":          {[]string{"scale", "--rate=0"}, "--rate: 0: must be at least 1"},
		"scale: no time":   {[]string{"scale", "--seconds=NaN"}, "--seconds: NaN: must be"},
		"scale: form":      {[]string{"scale", "--output=xml"}, `--output: "xml": must be one of table, json`},
		"faults: flag":     {[]string{"faults", "--colour"}, "--colour"},
		"faults: argument": {[]string{"faults", "udp"}, `"udp": takes flags only`},
		"faults: rounds":   {[]string{"faults", "--rounds=1001"}, "--rounds: 1001: must be between 1 and 1000"},
		"faults: outage":   {[]string{"faults", "--outage=2h"}, "--outage: 2h0m0s: must be between 0 and 1h0m0s"},
		"faults: form":     {[]string{"faults", "--output=xml"}, `--output: "xml": must be one of table, json`},
		"faults: none":     {[]string{"faults", "--backend="}, "--backend: must be of vxlan, host-gw, udp"},
		"faults: backend":  {[]string{"faults", "--backend=pigeon"}, `--backend: "pigeon": must be of vxlan, host-gw, udp`},
		"faults: unknown":  {[]string{"faults", "--only=rain"}, `--only: "rain": must be of restart, kill`},
		"storm: argument":  {[]string{"storm", "10"}, `"10": takes flags only`},
		"storm: one":       {[]string{"storm", "--daemons=1"}, "--daemons: 1: must be 0, or between 2 and 1000"},
		"storm: hosts":     {[]string{"storm", "--hosts=20001"}, "--hosts: 20001: must be between 0 and 20000"},
		"storm: rate":      {[]string{"storm", "--rate=NaN"}, "--rate: NaN: must be between 1 and 1000"},
		"storm: time":      {[]string{"storm", "--quiet=10ms"}, "--quiet: 10ms: must be 0, or between 1s and 1h"},
		"storm: form":      {[]string{"storm", "--output=xml"}, `--output: "xml": must be one of table, json`},
		"parts: argument":  {[]string{"parts", "10"}, `"10": takes flags only`},
		"calm: argument":   {[]string{"calm", "10"}, `"10": takes flags only`},
		"traffic nowhere":  {[]string{"traffic", "--addr=10.0.0.1"}, "--socket"},
		"traffic at IPv6":  {[]string{"traffic", "--socket=/s", "--addr=::1"}, "IPv4 --addr"},
		"forward nowhere":  {[]string{"forward", "--from=10.0.0.1", "--subnet=10.5.1.0/24"}, "--to"},
		"forward nothing":  {[]string{"forward", "--from=10.0.0.1", "--to=10.0.0.2"}, "--subnet"},
		"forward by three": {[]string{"forward", "--from=10.0.0.1", "--to=10.0.0.2", "--subnet=10.5.1.0/24", "--threads=3"}, "--threads: 3: must be 1 or 2"},
		"calm":             {[]string{"storm", "--calm=2h"}, "--calm: 2h0m0s: must be between 0 and 1h0m0s"},
		"forward: address": {[]string{"forward", "--from=here"}, "--from"},
		"forward what":     {[]string{"forward", "x"}, `forward: "x": takes flags only`},
	} {
		t.Run(name, func(t *testing.T) {
			err := run(t.Context(), tc.args, &bytes.Buffer{}, &bytes.Buffer{})
			var usage *cli.UsageError
			if !errors.As(err, &usage) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want a usage error with %q", err, tc.says)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{"help"}, {"--help"}, {"demo", "--help"}, {"bench", "--help"}, {"faults", "--help"}} {
		var out bytes.Buffer
		if err := run(t.Context(), args, &out, &out); err != nil && !errors.Is(err, cli.ErrHelp) {
			t.Errorf("%s: %v", args, err)
		}
		if !strings.HasPrefix(out.String(), "usage: flannel-lab") {
			t.Errorf("%s prints:\n%s", args, out.String())
		}
	}
}

func TestDemoSaysWhatIsMissing(t *testing.T) {
	err := demo(t.Context(), demoOptions{daemon: "/nonexistent/flanneld-go"}, &bytes.Buffer{})
	want, says := lab.ErrNoBinary, "make build"
	if os.Geteuid() != 0 {
		want, says = lab.ErrNotRoot, "sudo make demo"
	}
	if !errors.Is(err, want) || !strings.Contains(err.Error(), says) {
		t.Errorf("got %v, want %v with %q", err, want, says)
	}
}

func TestBenchSaysWhatIsMissing(t *testing.T) {
	daemon := filepath.Join(t.TempDir(), "flanneld-go")
	if err := os.WriteFile(daemon, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		o    benchOptions
		want error
		says string
	}{
		{"no daemon", benchOptions{measurement: measurement{daemon: "/nonexistent/flanneld-go"}}, lab.ErrNoBinary, "make build"},
		{"no page", benchOptions{measurement: measurement{daemon: daemon, docs: t.TempDir()}}, os.ErrNotExist, "--docs"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if os.Geteuid() != 0 {
				tc.want, tc.says = lab.ErrNotRoot, "sudo make bench"
			}
			err := runBench(t.Context(), tc.o, &bytes.Buffer{}, &bytes.Buffer{})
			if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want %v with %q", err, tc.want, tc.says)
			}
		})
	}
}

func TestFaultsSaysWhatIsMissing(t *testing.T) {
	daemon := filepath.Join(t.TempDir(), "flanneld-go")
	if err := os.WriteFile(daemon, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		o    faultsOptions
		want error
		says string
	}{
		{"no daemon", faultsOptions{measurement: measurement{daemon: "/nonexistent/flanneld-go"}}, lab.ErrNoBinary, "make build"},
		{"no previous one", faultsOptions{measurement: measurement{daemon: daemon}, previous: "/nonexistent/flanneld-go"}, lab.ErrNoBinary, "--previous"},
		{"no page", faultsOptions{measurement: measurement{daemon: daemon, docs: t.TempDir()}}, os.ErrNotExist, "--docs"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if os.Geteuid() != 0 {
				tc.want, tc.says = lab.ErrNotRoot, "sudo make faults"
			}
			err := runFaults(t.Context(), tc.o, &bytes.Buffer{}, &bytes.Buffer{})
			if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want %v with %q", err, tc.want, tc.says)
			}
		})
	}
}

// A claim that was missed ends a command with an error, behind all else; on a machine that
// was busy what is about time is said, and no error.
func TestJudge(t *testing.T) {
	claims := []page.Claim{{Title: "a start", Found: 2, Unit: "s", Bound: page.Under(1), Timed: true}}
	calm, busy := machine.Description{Cores: 2, Load: 1}, machine.Description{Cores: 2, Load: 1.1}
	const says = "a start: 2.00 s, wanted under 1 s"
	var out bytes.Buffer
	if err := judge(claims, calm, &out); !errors.Is(err, page.ErrMissed) || !strings.Contains(err.Error(), says) || out.Len() > 0 {
		t.Errorf("got %v and %q", err, out.String())
	}
	if err := judge(claims, busy, &out); err != nil || !strings.Contains(out.String(), "busy") || !strings.HasSuffix(out.String(), says+"\n") {
		t.Errorf("on a busy machine: got %v and %q", err, out.String())
	}
}
