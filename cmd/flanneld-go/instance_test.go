package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/cmd/internal/catalog"
	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
	"github.com/flanneld-go/flanneld-go/cmd/internal/statedir"
)

// A config is refused that has addresses of another instance's network, whichever of the
// families, and no other.
func TestNetworkOfAnotherInstance(t *testing.T) {
	root := t.TempDir()
	first := statedir.Dir(filepath.Join(root, "state"))
	if err := first.SaveHost(statedir.Host{BackendType: "udp", Ranges: []string{"10.5.0.0/16 by /24", "fd05::/48 by /64"}}); err != nil {
		t.Fatal(err)
	}
	second := statedir.Dir(filepath.Join(root, "state1"))
	if err := second.SaveHost(statedir.Host{BackendType: "udp", Ranges: []string{"10.6.0.0/16 by /24"}}); err != nil {
		t.Fatal(err)
	}
	says := func(ours, theirs string) string {
		return "network " + ours + " overlaps " + theirs + " of instance 0 on this host (state in " + string(first) + "): each instance needs a network of its own"
	}
	for _, tt := range []struct{ name, config, want string }{
		{"its own, from before", `{"Network":"10.6.0.0/16"}`, ""},
		{"another", `{"Network":"10.7.0.0/16"}`, ""},
		{"the same", `{"Network":"10.5.0.0/16"}`, says("10.5.0.0/16", "10.5.0.0/16")},
		{"a part", `{"Network":"10.5.128.0/17"}`, says("10.5.128.0/17", "10.5.0.0/16")},
		{"more", `{"Network":"10.4.0.0/15"}`, says("10.4.0.0/15", "10.5.0.0/16")},
		{"of the other family", `{"Network":"10.7.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/32"}`, says("fd05::/32", "fd05::/48")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			opts, err := parseOptions([]string{"--instance=1", "--state-dir=" + string(second)}, cli.EnvOf(nil), io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			cfg, err := catalog.Parse(tt.config)
			if err != nil {
				t.Fatal(err)
			}
			l := &loop{daemon: &daemon{opts: opts, dir: statedir.Dir(opts.stateDir), log: slog.New(slog.DiscardHandler)}}
			got := ""
			if err := l.rival(cfg); err != nil {
				got = err.Error()
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("refusal (-want +got):\n%s", diff)
			}
		})
	}
}

// Of two that start at the same moment, where no instance has ever been, one has the
// network.
func TestInstancesStartTogether(t *testing.T) {
	cfg, err := catalog.Parse(networkConfig)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		root := filepath.Join(t.TempDir(), "not", "there")
		var took, refused atomic.Int32
		var both sync.WaitGroup
		for i := range 2 {
			opts, err := parseOptions([]string{fmt.Sprintf("--instance=%d", i), "--state-dir=" + filepath.Join(root, "state") + []string{"", "1"}[i]}, cli.EnvOf(nil), io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			l := &loop{daemon: &daemon{opts: opts, dir: statedir.Dir(opts.stateDir), log: slog.New(slog.DiscardHandler)}}
			l.config.current = cfg
			both.Go(func() {
				if err := l.takeNetwork(t.Context()); err != nil {
					refused.Add(1)
					return
				}
				took.Add(1)
			})
		}
		both.Wait()
		if took.Load() != 1 || refused.Load() != 1 {
			t.Fatalf("%d of two instances have the network, and %d have not, want one each", took.Load(), refused.Load())
		}
	}
}

// Only the first instance takes docker0 without being told.
func TestInstanceLeavesDocker0(t *testing.T) {
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "dockerd"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	for _, tt := range []struct {
		args []string
		want string
	}{
		{nil, defaultDockerConfig},
		{[]string{"--instance=1"}, ""},
		{[]string{"--instance=1", "--docker-network=second"}, ""},
		{[]string{"--instance=1", "--docker-config=" + defaultDockerConfig}, defaultDockerConfig},
	} {
		opts, err := parseOptions(tt.args, cli.EnvOf(nil), io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if opts.dockerConfig != tt.want {
			t.Errorf("%q: keeps %q, want %q", tt.args, opts.dockerConfig, tt.want)
		}
	}
}
