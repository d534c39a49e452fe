package main

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
	"github.com/flanneld-go/flanneld-go/subnet"
)

func TestOptionErrors(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want string
	}{
		{"argument", []string{"start"}, `"start": flanneld-go takes flags only (see --help)`},
		{"kubernetes", []string{"--kube-subnet-mgr"}, "--kube-subnet-mgr: flanneld-go keeps leases in etcd and does not work with Kubernetes: use flannel there, or remove the flag"},
		{"kubernetes by a file", []string{"-kubeconfig-file=/etc/kube"}, "--kubeconfig-file: flanneld-go keeps leases in etcd and does not work with Kubernetes: use flannel there, or remove the flag"},
		{"regexp", []string{"--iface-regex=eth["}, "invalid option --iface-regex=eth[: error parsing regexp: missing closing ]: `[`"},
		{"reach", []string{"--iface-can-reach=host.example"}, `--iface-can-reach: "host.example": must be an IP address`},
		{"public ip of the other family", []string{"--public-ip=2001:db8::1"}, "invalid option --public-ip=2001:db8::1: must be an IPv4 address"},
		{"two docker channels", []string{"--docker-config=/etc/docker/daemon.json", "--docker-options=/run/flannel/docker"}, "--docker-config and --docker-options exclude each other: dockerd refuses an option that it is given twice"},
		{"docker restart", []string{"--docker-restart=always"}, `--docker-restart: "always": must be never or on-change`},
		{"relative path", []string{"--state-dir=state"}, `--state-dir: "state": must be an absolute path`},
		{"ttl", []string{"--subnet-lease-ttl=1s"}, "--subnet-lease-ttl: 1s: must be at least 2s; 24h is usual"},
		{"margin range", []string{"--subnet-lease-renew-margin=0"}, "--subnet-lease-renew-margin: 0: must be between 1 and 1439 minutes"},
		{"margin and ttl", []string{"--subnet-lease-renew-margin=60", "--subnet-lease-ttl=1h"}, "--subnet-lease-renew-margin: 60: must be shorter than the lease itself (--subnet-lease-ttl is 1h0m0s)"},
		{"conflict", []string{"--on-conflict=panic"}, `--on-conflict: "panic": must be renumber, fence or keep`},
		{"resync", []string{"--iptables-resync=0"}, "--iptables-resync: 0: must be at least 1 second"},
		{"port", []string{"--healthz-port=70000"}, "--healthz-port: 70000: must be between 0 and 65535"},
		{"healthz ip", []string{"--healthz-port=1", "--healthz-ip=all"}, `--healthz-ip: "all": must be an IP address`},
		{"metrics", []string{"--metrics-listen=9094"}, `--metrics-listen: "9094": must be host:port, such as 127.0.0.1:9094`},
		{"level", []string{"--log-level=loud"}, `--log-level: "loud": must be debug, info, warn or error`},
		{"format", []string{"--log-format=xml"}, `--log-format: "xml": must be text or json`},
		{"unknown", []string{"--etcd-endpoint=a"}, "unknown flag: --etcd-endpoint (see --help)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseOptions(tt.args, cli.EnvOf(nil), io.Discard)
			var usage *cli.UsageError
			if !errors.As(err, &usage) || err.Error() != tt.want {
				t.Errorf("error %v\nwant a UsageError: %s", err, tt.want)
			}
			if got := exitCode(err, io.Discard); got != exitUsage {
				t.Errorf("exit code %d, want %d", got, exitUsage)
			}
		})
	}
}

// A flag of Kubernetes that is switched off asks for nothing.
func TestKubernetesOffIsAccepted(t *testing.T) {
	if _, err := parseOptions([]string{"--kube-subnet-mgr=false"}, cli.EnvOf(nil), io.Discard); err != nil {
		t.Error(err)
	}
}

// The field's command lines, to the letter.
func TestFlannelCommandLine(t *testing.T) {
	o, err := parseOptions([]string{
		"-etcd-endpoints=http://192.168.100.12:2379", "-etcd-prefix=/atomic.io/network", "-iface=eth1", "-iface", "192.0.2.4",
		"-ip-masq", "-v=10", "-vmodule=a=1", "-subnet-lease-renew-margin=90", "-healthz-port=8090", "-public-ip=203.0.113.4",
	}, cli.EnvOf([]string{"FLANNELD_IPTABLES_RESYNC=7", "FLANNELD_SUBNET_FILE=/run/x.env", "FLANNELD_IP_MASQ=false"}), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(o.etcd.Endpoints, []string{"http://192.168.100.12:2379"}) || o.etcd.Prefix != "/atomic.io/network" {
		t.Errorf("etcd %v %s", o.etcd.Endpoints, o.etcd.Prefix)
	}
	if !slices.Equal(o.uplink.Ifaces, []string{"eth1", "192.0.2.4"}) || o.uplink.Public[subnet.IPv4].String() != "203.0.113.4" {
		t.Errorf("uplink %+v", o.uplink)
	}
	if !o.ipMasq || o.logLevel != slog.LevelDebug || o.iptablesResync != 7*time.Second || o.subnetFile != "/run/x.env" {
		t.Errorf("options %+v", o)
	}
	if o.renewMargin != 90*time.Minute || o.healthz != "0.0.0.0:8090" || !slices.Equal(o.ignored, []string{"vmodule"}) {
		t.Errorf("options %+v", o)
	}
}

// The default margin must not shorten what TTL/3 gives.
func TestDefaultMarginHasNoSay(t *testing.T) {
	o, err := parseOptions([]string{"--subnet-lease-ttl=30m"}, cli.EnvOf(nil), io.Discard)
	if err != nil || o.renewMargin != 0 {
		t.Errorf("margin %s, error %v; want 0, nil", o.renewMargin, err)
	}
}

// The README's table and the flags are the same set.
func TestREADMEListsEveryFlag(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(text), "## Flags")
	if !ok {
		t.Fatal(`README.md has no "## Flags"`)
	}
	table, _, _ = strings.Cut(table, "## Troubleshooting")
	var r rawOptions
	fs := cli.NewFlagSet("flanneld-go", "", io.Discard)
	r.register(fs)
	for line := range strings.Lines(table) {
		cell := strings.SplitN(line, "|", 3)
		if len(cell) < 3 {
			continue
		}
		for _, m := range regexp.MustCompile("`--([a-z0-9_-]+)`").FindAllStringSubmatch(cell[1], -1) {
			if m[1] != "help" && fs.Lookup(m[1]) == nil {
				t.Errorf("README.md lists --%s, which is no flag", m[1])
			}
		}
	}
	fs.VisitAll(func(f *pflag.Flag) {
		if !f.Hidden && !strings.Contains(table, "`--"+f.Name+"`") {
			t.Errorf("README.md does not list --%s", f.Name)
		}
	})
}
