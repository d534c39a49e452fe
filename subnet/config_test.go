package subnet

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func compareNetip() cmp.Option {
	return cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})
}

func rangeOf(network string, length int, low, high string) Range {
	return Range{netip.MustParsePrefix(network), length, netip.MustParseAddr(low), netip.MustParseAddr(high)}
}

func TestParseConfig(t *testing.T) {
	sixteen := rangeOf("10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0")
	for _, tt := range []struct {
		name, text string
		want       Config
	}{
		{
			"as little as can be", `{"Network":"10.5.0.0/16"}`,
			Config{Ranges: ByFamily[Range]{sixteen}, BackendType: "udp"},
		},
		{
			"everything", `{
				"EnableIPv4": true, "Network": "172.20.0.0/14", "SubnetLen": 26, "SubnetMin": "172.20.0.0", "SubnetMax": "172.21.7.192",
				"EnableIPv6": true, "IPv6Network": "fd05::/48", "IPv6SubnetLen": 80, "IPv6SubnetMin": "fd05:0:0:10::", "IPv6SubnetMax": "fd05:0:0:20::",
				"EnableNFTables": true, "Backend": {"Type": "VXLAN", "VNI": 7}}`,
			Config{
				Ranges: ByFamily[Range]{
					rangeOf("172.20.0.0/14", 26, "172.20.0.0", "172.21.7.192"),
					rangeOf("fd05::/48", 80, "fd05:0:0:10::", "fd05:0:0:20::"),
				},
				EnableNFTables: true, BackendType: "vxlan", Backend: `{"Type": "VXLAN", "VNI": 7}`,
			},
		},
		{
			"keys in any case", `{"network":"10.5.0.0/16","SUBNETLEN":24,"backend":{"type":"host-gw"}}`,
			Config{Ranges: ByFamily[Range]{sixteen}, BackendType: "host-gw", Backend: `{"type":"host-gw"}`},
		},
		{
			"zero values of flannel's structs are defaults", `{"Network":"10.5.0.0/16","SubnetLen":0,"SubnetMin":null,"Backend":null}`,
			Config{Ranges: ByFamily[Range]{sixteen}, BackendType: "udp"},
		},
		{
			"host bits are masked", `{"Network":"10.5.3.7/16"}`,
			Config{Ranges: ByFamily[Range]{sixteen}, BackendType: "udp"},
		},
		{
			"a /22 still has /24s", `{"Network":"10.5.0.0/22"}`,
			Config{Ranges: ByFamily[Range]{rangeOf("10.5.0.0/22", 24, "10.5.1.0", "10.5.3.0")}, BackendType: "udp"},
		},
		{
			"a /23 is cut in four", `{"Network":"10.5.0.0/23"}`,
			Config{Ranges: ByFamily[Range]{rangeOf("10.5.0.0/23", 25, "10.5.0.128", "10.5.1.128")}, BackendType: "udp"},
		},
		{
			"the smallest networks", `{"Network":"10.5.0.16/28","EnableIPv6":true,"IPv6Network":"fd05::f0/124"}`,
			Config{Ranges: ByFamily[Range]{
				rangeOf("10.5.0.16/28", 30, "10.5.0.20", "10.5.0.28"),
				rangeOf("fd05::f0/124", 126, "fd05::f4", "fd05::fc"),
			}, BackendType: "udp"},
		},
		{
			"IPv6 around its default", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd05::/62"}`,
			Config{Ranges: ByFamily[Range]{IPv6: rangeOf("fd05::/62", 64, "fd05:0:0:1::", "fd05:0:0:3::")}, BackendType: "udp"},
		},
		{
			"IPv6 below it", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd05::/63"}`,
			Config{Ranges: ByFamily[Range]{IPv6: rangeOf("fd05::/63", 65, "fd05:0:0:0:8000::", "fd05:0:0:1:8000::")}, BackendType: "udp"},
		},
		{
			"keys of a family that is off are known", `{"Network":"10.5.0.0/16","IPv6Network":7,"IPv6SubnetLen":"x","EnableIPv6":false}`,
			Config{Ranges: ByFamily[Range]{sixteen}, BackendType: "udp"},
		},
		{
			"unknown keys are collected", `{"Network":"10.5.0.0/16","Zone":1,"Colour":{"a":1},"Backend":{"Type":"udp","Porf":1}}`,
			Config{Ranges: ByFamily[Range]{sixteen}, BackendType: "udp", Backend: `{"Type":"udp","Porf":1}`, Unknown: []string{"Colour", "Zone"}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseConfig(tt.text)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(&tt.want, got, compareNetip()); d != "" {
				t.Errorf("-want +got\n%s", d)
			}
		})
	}
}

func TestParseConfigProblems(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"empty", "", "line 1, column 1: unexpected end of JSON input"},
		{"cut off", "{\n  \"Network\": \"10.5.0.0/16\"", "line 2, column 27: unexpected end of JSON input"},
		{"cut off in a string", `{"Network": "10.`, "line 1, column 17: unexpected end of JSON input"},
		{"trailing comma", "{\n  \"Network\": \"10.5.0.0/16\",\n}", `line 3, column 1: invalid character '}' looking for beginning of object key string`},
		{"column in characters", "{\"\u00e4\u00f6\": x}", `line 1, column 8: invalid character 'x' looking for beginning of value`},
		{"two documents", `{"Network":"10.5.0.0/16"} {}`, `line 1, column 27: invalid character '{' after top-level value`},
		{"a list", `["10.5.0.0/16"]`, `config: ["10.5.0.0/16"]: must be an object`},
		{"a number no float can hold", `1e999`, `config: 1e999: must be an object`},
		{"null", `null`, `config: null: must be an object`},
		{"no network", `{}`, `Network: missing: is required unless EnableIPv4 is false`},
		{"no IPv6 network", `{"EnableIPv4":false,"EnableIPv6":true}`, `IPv6Network: missing: is required when EnableIPv6 is true`},
		{"no family", `{"EnableIPv4":false}`, `EnableIPv4: false: leaves no address family: EnableIPv6 must be true then`},
		{"no prefix", `{"Network":"10.5.0.0"}`, `Network: 10.5.0.0: must be an IPv4 network such as "10.5.0.0/16"`},
		{"other family", `{"Network":"fd05::/48"}`, `Network: fd05::/48: must be an IPv4 network such as "10.5.0.0/16"`},
		{"mapped", `{"Network":"::ffff:10.5.0.0/112"}`, `Network: ::ffff:10.5.0.0/112: must be an IPv4 network such as "10.5.0.0/16"`},
		{"no string", `{"Network":10}`, `Network: 10: must be an IPv4 network such as "10.5.0.0/16"`},
		{"empty string", `{"Network":""}`, `Network: "": must be an IPv4 network such as "10.5.0.0/16"`},
		{"everything there is", `{"Network":"0.0.0.0/0"}`, `Network: 0.0.0.0/0: must not be every address there is`},
		{"too small", `{"Network":"10.5.0.0/29"}`, `Network: 10.5.0.0/29: is too small: must be a /28 or larger to hold four subnets of four addresses`},
		{"too small for IPv6", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd05::/125"}`, `IPv6Network: fd05::/125: is too small: must be a /124 or larger to hold four subnets of four addresses`},
		{"SubnetLen 31", `{"Network":"10.5.0.0/16","SubnetLen":31}`, `SubnetLen: 31: must be between 18 and 30, so that 10.5.0.0/16 holds at least four subnets of at least four addresses`},
		{"SubnetLen 17", `{"Network":"10.5.0.0/16","SubnetLen":17}`, `SubnetLen: 17: must be between 18 and 30, so that 10.5.0.0/16 holds at least four subnets of at least four addresses`},
		{"SubnetLen -1", `{"Network":"10.5.0.0/16","SubnetLen":-1}`, `SubnetLen: -1: must be between 18 and 30, so that 10.5.0.0/16 holds at least four subnets of at least four addresses`},
		{"SubnetLen a fraction", `{"Network":"10.5.0.0/16","SubnetLen":24.0}`, `SubnetLen: 24.0: must be an integer`},
		{"SubnetLen a string", `{"Network":"10.5.0.0/16","SubnetLen":"24"}`, `SubnetLen: 24: must be an integer without quotes`},
		{"IPv6SubnetLen 127", `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/48","IPv6SubnetLen":127}`, `IPv6SubnetLen: 127: must be between 50 and 126, so that fd05::/48 holds at least four subnets of at least four addresses`},
		{"SubnetMin outside", `{"Network":"10.5.0.0/16","SubnetMin":"10.6.0.0"}`, `SubnetMin: 10.6.0.0: must be inside Network 10.5.0.0/16`},
		{"SubnetMax off its boundary", `{"Network":"10.5.0.0/16","SubnetMax":"10.5.9.1"}`, `SubnetMax: 10.5.9.1: must be the first address of a /24, such as 10.5.9.0`},
		{"SubnetMin above SubnetMax", `{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","SubnetMax":"10.5.8.0"}`, `SubnetMin: 10.5.9.0: must not be above SubnetMax 10.5.8.0`},
		{"SubnetMax below the default SubnetMin", `{"Network":"10.5.0.0/16","SubnetMax":"10.5.0.0"}`, `SubnetMin: missing: is 10.5.1.0 then, and must not be above SubnetMax 10.5.0.0`},
		{"SubnetMin no address", `{"Network":"10.5.0.0/16","SubnetMin":"ten"}`, `SubnetMin: ten: must be an IPv4 address in quotes`},
		{"SubnetMin with a zone", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fe80::/48","IPv6SubnetMin":"fe80:0:0:1::%eth0"}`, `IPv6SubnetMin: fe80:0:0:1::%eth0: must be an IPv6 address in quotes`},
		{"no bool", `{"Network":"10.5.0.0/16","EnableNFTables":"yes"}`, `EnableNFTables: yes: must be true or false`},
		{"twice", `{"Network":"10.5.0.0/16","network":"10.6.0.0/16"}`, `network: 10.6.0.0/16: is given twice: before as Network with 10.5.0.0/16`},
		{"Backend a string", `{"Network":"10.5.0.0/16","Backend":"vxlan"}`, `Backend: vxlan: must be an object`},
		{"Backend without Type", `{"Network":"10.5.0.0/16","Backend":{"VNI":1}}`, `Backend.Type: missing: is required in Backend`},
		{"Backend.Type a number", `{"Network":"10.5.0.0/16","Backend":{"Type":1}}`, `Backend.Type: 1: must be a string`},
		{"unreadable text", `{"Network":"a\tb"}`, `Network: "a\tb": must be an IPv4 network such as "10.5.0.0/16"`},
		{
			"long values are cut", `{"Network":"` + strings.Repeat("9", 99) + `"}`,
			`Network: ` + strings.Repeat("9", 60) + `...: must be an IPv4 network such as "10.5.0.0/16"`,
		},
		{
			"several at once", `{"Network":"10.5.0.0/16","SubnetLen":31,"SubnetMin":"10.6.0.0","EnableIPv6":true,"IPv6Network":"fd05::/125","EnableNFTables":1,"Backend":{"type":"udp","Type":"vxlan"}}`,
			`SubnetLen: 31: must be between 18 and 30, so that 10.5.0.0/16 holds at least four subnets of at least four addresses
SubnetMin: 10.6.0.0: must be inside Network 10.5.0.0/16
IPv6Network: fd05::/125: is too small: must be a /124 or larger to hold four subnets of four addresses
EnableNFTables: 1: must be true or false
Backend.Type: vxlan: is given twice: before as Backend.type with udp`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := ParseConfig(tt.text)
			if err == nil {
				t.Fatalf("no problem, but %+v", cfg)
			}
			if d := cmp.Diff(tt.want, err.Error()); d != "" {
				t.Errorf("-want +got\n%s", d)
			}
		})
	}
}

// Callers tell problems apart by type and path, not by text.
func TestProblemsAreTyped(t *testing.T) {
	_, err := ParseConfig(`{"SubnetLen":{},"EnableNFTables":1}`)
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("%T is no joined error", err)
	}
	var paths []string
	for _, e := range joined.Unwrap() {
		var problem *ConfigError
		if !errors.As(e, &problem) {
			t.Fatalf("%T is no *ConfigError", e)
		}
		paths = append(paths, problem.Path)
	}
	if d := cmp.Diff([]string{"Network", "SubnetLen", "EnableNFTables"}, paths); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	var syntax *SyntaxError
	if _, err := ParseConfig("{\n\n 1}"); !errors.As(err, &syntax) || syntax.Line != 3 || syntax.Column != 2 {
		t.Errorf("%v: want a *SyntaxError at 3, 2", err)
	}
}

func TestObject(t *testing.T) {
	o, err := ParseObject("Backend", `{"Type":"vxlan","port":70000,"VNI":"1","MTU":99999999999999999999,"Learning":"no","Mode":"both","PSK":5,"a":1,"B":2}`)
	if err != nil {
		t.Fatal(err)
	}
	values := []any{
		o.Int("Port", 8472, 1, 65535), o.Int("VNI", 1, 0, 1<<24-1), o.Int("MTU", 9, 0, 65535), o.Int("Absent", 5, 0, 9),
		o.Bool("Learning", true), o.String("Mode", "separate", "separate", "auto"), o.String("PSK", "-"), o.String("Type", ""),
	}
	if d := cmp.Diff([]any{8472, 1, 9, 5, true, "separate", "-", "vxlan"}, values); d != "" {
		t.Errorf("values: -want +got\n%s", d)
	}
	want := `Backend.Port: 70000: must be between 1 and 65535
Backend.VNI: 1: must be an integer without quotes
Backend.MTU: 99999999999999999999: must be between 0 and 65535
Backend.Learning: no: must be true or false
Backend.Mode: both: must be one of separate, auto
Backend.PSK: 5: must be a string`
	if d := cmp.Diff(want, o.Err().Error()); d != "" {
		t.Errorf("problems: -want +got\n%s", d)
	}
	if d := cmp.Diff([]string{"Backend.B", "Backend.a"}, o.Unknown()); d != "" {
		t.Errorf("unknown: -want +got\n%s", d)
	}
	none, err := (&Config{}).BackendOptions()
	if err != nil || none.Err() != nil || none.Has("Type") {
		t.Errorf("no Backend: %v, %v", none, err)
	}
	some, err := (&Config{Backend: `{"type":"udp","Porf":1}`}).BackendOptions()
	if err != nil || !cmp.Equal(some.Unknown(), []string{"Backend.Porf"}) {
		t.Errorf("Backend: %v, %v", some.Unknown(), err)
	}
}

func FuzzParseConfig(f *testing.F) {
	for _, seed := range []string{
		"", "{}", `{"Network":"10.5.0.0/16"}`, `{"Network":"10.5.0.0/16","SubnetLen":31,"network":1}`, `{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.9.0"}`,
		`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd05::/48","IPv6SubnetLen":126}`, `{"Network":"10.5.0.0/16","Backend":{"Type":"x"}}`, "[\xff", `{"\u0000":1}`, "1e999", `{"Network":1e999}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		cfg, err := ParseConfig(text)
		if err != nil {
			var syntax *SyntaxError
			var problem *ConfigError
			if !errors.As(err, &syntax) && !errors.As(err, &problem) {
				t.Fatalf("untyped: %v", err)
			}
			return
		}
		pool := cfg.Pool()
		if pool.Len() < 1 {
			t.Fatalf("%s: empty pool", text)
		}
		for _, i := range []uint64{0, pool.Len() - 1} {
			s := pool.At(i)
			if j, ok := pool.Index(s); !ok || j != i {
				t.Fatalf("%s: subnet %d is %s, whose number is %d, %v", text, i, s, j, ok)
			}
			for fam, r := range cfg.Ranges {
				if s[fam].IsValid() && (!covers(r.Network, s[fam]) || s[fam].Bits() != r.SubnetLen || s[fam] != s[fam].Masked()) {
					t.Fatalf("%s: subnet %d is %s", text, i, s)
				}
			}
		}
	})
}
