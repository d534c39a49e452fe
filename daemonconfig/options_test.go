package daemonconfig_test

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/daemonconfig"
)

// capture is one run of flannel's mk-docker-opts.sh.
type capture struct {
	subnet, args string
	mtu          int
	masq         bool
	output       string
}

// captures reads testdata/mk-docker-opts.txt: a head per run, its exit status
// and the file that it wrote.
func captures(t *testing.T) []capture {
	t.Helper()
	text, err := os.ReadFile("testdata/mk-docker-opts.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all []capture
	for block := range strings.SplitSeq(string(text), "## ") {
		if block == "" {
			continue
		}
		head, rest, _ := strings.Cut(block, "\n")
		output, ok := strings.CutPrefix(rest, "exit=0\n")
		if !ok {
			t.Fatalf("%s: the script failed; no output to compare", head)
		}
		c := capture{output: output}
		head, args, _ := strings.Cut(head, " args=")
		c.args = strings.Trim(args, "'")
		if _, err := fmt.Sscanf(head, "subnet=%s mtu=%d masq=%t", &c.subnet, &c.mtu, &c.masq); err != nil {
			t.Fatalf("%s: %v", head, err)
		}
		all = append(all, c)
	}
	return all
}

// style reads the script's flags.
func style(t *testing.T, args string) daemonconfig.OptionsStyle {
	t.Helper()
	var s daemonconfig.OptionsStyle
	words := strings.Fields(args)
	for len(words) > 0 {
		switch words[0] {
		case "-i":
			s.Individual = true
		case "-c":
			s.Combined = true
		case "-m":
			s.OmitIPMasq = true
		case "-k":
			s.Key, words = words[1], words[1:]
		default:
			t.Fatalf("unknown flag %q", words[0])
		}
		words = words[1:]
	}
	return s
}

func TestOptionsEqualTheScript(t *testing.T) {
	all := captures(t)
	if len(all) != 72 {
		t.Fatalf("testdata has %d runs, want 72", len(all))
	}
	for _, c := range all {
		t.Run(fmt.Sprintf("%s_%d_%t_%s", c.subnet, c.mtu, c.masq, c.args), func(t *testing.T) {
			env := daemonconfig.Env{
				Subnets: [2]netip.Prefix{netip.MustParsePrefix(c.subnet).Masked()},
				MTU:     c.mtu,
				IPMasq:  c.masq,
			}
			got := string(daemonconfig.Options(env, style(t, c.args)))
			if diff := cmp.Diff(c.output, got); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOptionsWithoutIPv4(t *testing.T) {
	env := daemonconfig.Env{Subnets: [2]netip.Prefix{1: netip.MustParsePrefix("fd05::/64")}}
	got := string(daemonconfig.Options(env, daemonconfig.OptionsStyle{OmitIPMasq: true}))
	if diff := cmp.Diff("DOCKER_OPTS=\"\"\n", got); diff != "" {
		t.Errorf("options (-want +got):\n%s", diff)
	}
}

func TestOptionsFile(t *testing.T) {
	env := daemonconfig.Env{
		Subnets: [2]netip.Prefix{netip.MustParsePrefix("172.20.24.0/24")},
		MTU:     1472,
	}
	want := `DOCKER_OPT_BIP="--bip=172.20.24.1/24"
DOCKER_OPT_IPMASQ="--ip-masq=true"
DOCKER_OPT_MTU="--mtu=1472"
DOCKER_OPTS=" --bip=172.20.24.1/24 --ip-masq=true --mtu=1472"
DOCKER_NETWORK_OPTIONS=" --bip=172.20.24.1/24 --ip-masq=true --mtu=1472"
`
	if diff := cmp.Diff(want, string(daemonconfig.OptionsFile(env))); diff != "" {
		t.Errorf("options file (-want +got):\n%s", diff)
	}
}
