package daemonconfig_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/daemonconfig"
)

var comparePrefixes = cmpopts.EquateComparable(netip.Prefix{})

// prefixes parses up to two prefixes, "" for none.
func prefixes(texts ...string) [2]netip.Prefix {
	var ps [2]netip.Prefix
	for i, text := range texts {
		if text != "" {
			ps[i] = netip.MustParsePrefix(text)
		}
	}
	return ps
}

// The dual-stack text is the one that flannel left on a host (issue #2).
const dualStack = `FLANNEL_NETWORK=10.5.0.0/16
FLANNEL_SUBNET=10.5.6.1/24
FLANNEL_IPV6_NETWORK=fd05::/48
FLANNEL_IPV6_SUBNET=fd05:0:0:30::1/64
FLANNEL_MTU=1450
FLANNEL_IPMASQ=true
`

func TestEnvFormat(t *testing.T) {
	tests := []struct {
		name string
		env  daemonconfig.Env
		want string
	}{
		{
			"dual stack",
			daemonconfig.Env{
				Networks: prefixes("10.5.0.0/16", "fd05::/48"),
				Subnets:  prefixes("10.5.6.0/24", "fd05:0:0:30::/64"),
				MTU:      1450, IPMasq: true,
			},
			dualStack,
		},
		{
			"walk-through",
			daemonconfig.Env{Networks: prefixes("172.20.0.0/16"), Subnets: prefixes("172.20.24.0/24"), MTU: 1472},
			"FLANNEL_NETWORK=172.20.0.0/16\nFLANNEL_SUBNET=172.20.24.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n",
		},
		{
			"subnet that begins inside a byte",
			daemonconfig.Env{Networks: prefixes("10.5.0.0/16"), Subnets: prefixes("10.5.20.128/26"), MTU: 1450},
			"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.20.129/26\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n",
		},
		{
			"IPv6 alone",
			daemonconfig.Env{Networks: prefixes("", "fd05::/48"), Subnets: prefixes("", "fd05:0:0:30::/64"), MTU: 1430},
			"FLANNEL_IPV6_NETWORK=fd05::/48\nFLANNEL_IPV6_SUBNET=fd05:0:0:30::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, string(tt.env.Format())); diff != "" {
				t.Errorf("subnet.env (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseEnv(t *testing.T) {
	full := daemonconfig.Env{
		Networks: prefixes("10.5.0.0/16", "fd05::/48"),
		Subnets:  prefixes("10.5.6.0/24", "fd05:0:0:30::/64"),
		MTU:      1450, IPMasq: true,
	}
	subnet := daemonconfig.Env{Subnets: prefixes("10.5.6.0/24")}
	tests := []struct {
		name, text string
		want       daemonconfig.Env
	}{
		{"flannel's", dualStack, full},
		{"CRLF and byte order mark", "\ufeff" + strings.ReplaceAll(dualStack, "\n", "\r\n"), full},
		{"no newline at the end", strings.TrimSuffix(dualStack, "\n"), full},
		{"empty", "", daemonconfig.Env{}},
		{"quotes", "FLANNEL_SUBNET=\"10.5.6.1/24\"\nFLANNEL_MTU='1450'", daemonconfig.Env{Subnets: subnet.Subnets, MTU: 1450}},
		{"export", "export FLANNEL_SUBNET=10.5.6.1/24\n  export\tFLANNEL_MTU=9000", daemonconfig.Env{Subnets: subnet.Subnets, MTU: 9000}},
		{"comments", "# by hand\n\nFLANNEL_SUBNET=10.5.6.1/24 # ours\nFLANNEL_MTU=\"1\" # and this", daemonconfig.Env{Subnets: subnet.Subnets, MTU: 1}},
		{"unknown variables", "exportFLANNEL_MTU=1\nFLANNEL_COLOUR=blue\nFLANNEL_SUBNET=10.5.6.1/24", subnet},
		{"the last one wins", "FLANNEL_SUBNET=10.5.9.1/24\nFLANNEL_SUBNET=10.5.6.1/24", subnet},
		{"network address as subnet", "FLANNEL_SUBNET=10.5.6.0/24", subnet},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := daemonconfig.ParseEnv([]byte(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, comparePrefixes); diff != "" {
				t.Errorf("env (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseEnvProblems(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"prefix", "\nFLANNEL_SUBNET=10.5.6.1", `line 2: FLANNEL_SUBNET: "10.5.6.1": want an IPv4 prefix`},
		{"other family", "FLANNEL_IPV6_SUBNET=10.5.6.1/24", `line 1: FLANNEL_IPV6_SUBNET: "10.5.6.1/24": want an IPv6 prefix`},
		{"empty value", "FLANNEL_NETWORK=", `line 1: FLANNEL_NETWORK: "": want an IPv4 prefix`},
		{"no room for a host", "FLANNEL_SUBNET=255.255.255.255/32", `line 1: FLANNEL_SUBNET: "255.255.255.255/32": want a length of at most 30`},
		{"mtu", "FLANNEL_MTU=-1", `line 1: FLANNEL_MTU: "-1": want 0 to 65535`},
		{"masq", "FLANNEL_IPMASQ=yes", `line 1: FLANNEL_IPMASQ: "yes": want true or false`},
		{"no assignment", "garbage", `line 1: "garbage": want NAME=value`},
		{"no name", "=1", `line 1: "=1": want NAME=value`},
		{"blank in the name", "FLANNEL_MTU =1450", `line 1: "FLANNEL_MTU =1450": want NAME=value`},
		{"open quote", "FLANNEL_MTU=\"1450\n", `line 1: FLANNEL_MTU: "1450: quote is not closed`},
		{"two words", "FLANNEL_MTU=1450 1500", `line 1: FLANNEL_MTU: 1450 1500: want one value`},
		{"text behind a quote", `FLANNEL_MTU="14"50`, `line 1: FLANNEL_MTU: "14"50: want one value`},
		{
			"all at once", "FLANNEL_SUBNET=x\nFLANNEL_MTU=y\n",
			"line 1: FLANNEL_SUBNET: \"x\": want an IPv4 prefix\nline 2: FLANNEL_MTU: \"y\": want 0 to 65535",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := daemonconfig.ParseEnv([]byte(tt.text))
			if err == nil {
				t.Fatalf("no error, but %+v", got)
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(daemonconfig.Env{}, got, comparePrefixes); diff != "" {
				t.Errorf("env beside an error (-want +got):\n%s", diff)
			}
		})
	}
}

// drawPrefix draws a masked prefix of a family with room for a host address.
func drawPrefix(t *rapid.T, family int) netip.Prefix {
	size, longest := 4, 30
	if family == 1 {
		size, longest = 16, 126
	}
	bytes := rapid.SliceOfN(rapid.Byte(), size, size).Draw(t, "address")
	addr, _ := netip.AddrFromSlice(bytes)
	if addr.Is4In6() {
		addr = netip.IPv6Unspecified()
	}
	return netip.PrefixFrom(addr, rapid.IntRange(1, longest).Draw(t, "bits")).Masked()
}

func TestEnvRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := daemonconfig.Env{MTU: rapid.IntRange(0, 65535).Draw(t, "mtu"), IPMasq: rapid.Bool().Draw(t, "masq")}
		for family := range want.Subnets {
			if rapid.Bool().Draw(t, "on") {
				want.Networks[family], want.Subnets[family] = drawPrefix(t, family), drawPrefix(t, family)
			}
		}
		got, err := daemonconfig.ParseEnv(want.Format())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, comparePrefixes); diff != "" {
			t.Errorf("parsed what was formatted (-want +got):\n%s", diff)
		}
	})
}

// FuzzParseEnv: whatever is accepted can be written and read again unchanged.
func FuzzParseEnv(f *testing.F) {
	f.Add([]byte(dualStack))
	f.Add([]byte("export FLANNEL_SUBNET='10.5.6.1/24' # x\r\nFLANNEL_MTU=0001450"))
	f.Add([]byte("\xef\xbb\xbfFLANNEL_IPV6_SUBNET=::ffff:1.2.3.4/120\nA=\"b"))
	f.Fuzz(func(t *testing.T, text []byte) {
		env, err := daemonconfig.ParseEnv(text)
		if err != nil {
			return
		}
		for family := range env.Subnets { // Format writes a family as a whole
			if !env.Subnets[family].IsValid() || !env.Networks[family].IsValid() {
				env.Subnets[family], env.Networks[family] = netip.Prefix{}, netip.Prefix{}
			}
		}
		again, err := daemonconfig.ParseEnv(env.Format())
		if err != nil {
			t.Fatalf("cannot read what was written for %+v: %v", env, err)
		}
		if diff := cmp.Diff(env, again, comparePrefixes); diff != "" {
			t.Errorf("read again (-want +got):\n%s", diff)
		}
	})
}
