package daemonconfig_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/daemonconfig"
)

const bom = "\ufeff"

var (
	vxlan = daemonconfig.Docker{BIP: netip.MustParsePrefix("10.5.72.1/24"), MTU: 1450}
	udp   = daemonconfig.Docker{BIP: netip.MustParsePrefix("172.20.24.1/24"), MTU: 1472}
)

// withMasq returns d with ip-masq set.
func withMasq(d daemonconfig.Docker, on bool) daemonconfig.Docker {
	d.IPMasq = &on
	return d
}

func TestMerge(t *testing.T) {
	big := `"labels": [` + strings.Repeat("\n    \"a=b\",", 1<<17) + "\n    \"c=d\"]"
	tests := []struct {
		name, old, want string
		docker          daemonconfig.Docker
	}{
		{
			"empty", "",
			"{\n  \"bip\": \"10.5.72.1/24\",\n  \"mtu\": 1450\n}\n", vxlan,
		},
		{
			"blanks only", " \n\t\n",
			"{\n  \"bip\": \"10.5.72.1/24\",\n  \"mtu\": 1450\n}\n", vxlan,
		},
		{
			"empty object", "{}\n",
			"{\n  \"bip\": \"10.5.72.1/24\",\n  \"mtu\": 1450,\n  \"ip-masq\": false\n}\n", withMasq(vxlan, false),
		},
		{
			"empty object on two lines", "{\n}",
			"{\n  \"bip\": \"10.5.72.1/24\",\n  \"mtu\": 1450\n}", vxlan,
		},
		{
			"unknown keys keep order and indentation",
			"{\n\t\"zebra\": 1,\n\t\"apple\": [1,\n 2]\n}\n",
			"{\n\t\"zebra\": 1,\n\t\"apple\": [1,\n 2],\n\t\"bip\": \"10.5.72.1/24\",\n\t\"mtu\": 1450\n}\n", vxlan,
		},
		{
			"nested objects keep their bytes",
			"{\n    \"log-opts\": {\"max-size\":\"10m\" ,  \"mtu\": 7},\n    \"bip\": \"172.17.0.1/16\"\n}\n",
			"{\n    \"log-opts\": {\"max-size\":\"10m\" ,  \"mtu\": 7},\n    \"bip\": \"10.5.72.1/24\",\n    \"mtu\": 1450\n}\n", vxlan,
		},
		{
			"present keys are replaced where they stand",
			`{"mtu":1500,"debug":true,"ip-masq":true,"bip":"172.17.0.1/16"}`,
			`{"mtu":1450,"debug":true,"ip-masq":false,"bip":"10.5.72.1/24"}`, withMasq(vxlan, false),
		},
		{
			"wrong types",
			`{"mtu": "1450", "bip": ["10.5.72.1/24"], "ip-masq": null}`,
			`{"mtu": 1450, "bip": "10.5.72.1/24", "ip-masq": false}`, withMasq(vxlan, false),
		},
		{
			"right values keep their spelling",
			"{ \"mtu\" :1450, \"\\u0062ip\": \"10.5.72.1\\/24\" }",
			"{ \"mtu\" :1450, \"\\u0062ip\": \"10.5.72.1\\/24\" }", vxlan,
		},
		{
			"one line, one member", `{"debug": true}`,
			`{"debug": true, "bip": "10.5.72.1/24", "mtu": 1450}`, vxlan,
		},
		{
			"compact", `{"debug":true}`,
			`{"debug":true,"bip":"10.5.72.1/24","mtu":1450}`, vxlan,
		},
		{
			"blank lines between members are not copied", "{\n  \"debug\": true,\n\n  \"log-level\": \"warn\"\n\n}\n",
			"{\n  \"debug\": true,\n\n  \"log-level\": \"warn\",\n  \"bip\": \"10.5.72.1/24\",\n  \"mtu\": 1450\n\n}\n", vxlan,
		},
		{
			"colon on a line of its own", "{\n  \"debug\"\n:\ntrue\n}",
			"{\n  \"debug\"\n:\ntrue,\n  \"bip\": \"10.5.72.1/24\",\n  \"mtu\": 1450\n}", vxlan,
		},
		{
			"CRLF", "{\r\n  \"debug\": true\r\n}\r\n",
			"{\r\n  \"debug\": true,\r\n  \"bip\": \"10.5.72.1/24\",\r\n  \"mtu\": 1450\r\n}\r\n", vxlan,
		},
		{
			"CRLF without members", "{\r\n}\r\n",
			"{\r\n  \"bip\": \"10.5.72.1/24\",\r\n  \"mtu\": 1450\r\n}\r\n", vxlan,
		},
		{
			"byte order mark stays", bom + "{\"debug\": true}\n",
			bom + "{\"debug\": true, \"bip\": \"10.5.72.1/24\", \"mtu\": 1450}\n", vxlan,
		},
		{
			"byte order mark alone", bom,
			bom + "{\n  \"bip\": \"10.5.72.1/24\",\n  \"mtu\": 1450\n}\n", vxlan,
		},
		{
			"strings full of syntax", `{"a": "},{\"bip\":\"x\"", "b\"ip": "//"}`,
			`{"a": "},{\"bip\":\"x\"", "b\"ip": "//", "bip": "10.5.72.1/24", "mtu": 1450}`, vxlan,
		},
		{
			"bridge without a value", `{"bridge": "", "mtu": 1}`,
			`{"bridge": "", "mtu": 1450, "bip": "10.5.72.1/24"}`, vxlan,
		},
		{
			"one megabyte", "{\n  " + big + "\n}\n",
			"{\n  " + big + ",\n  \"bip\": \"10.5.72.1/24\",\n  \"mtu\": 1450\n}\n", vxlan,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := daemonconfig.Merge([]byte(tt.old), tt.docker, daemonconfig.Memory{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(got.Text)); diff != "" {
				t.Errorf("daemon.json (-want +got):\n%s", diff)
			}
			if changed := tt.old != tt.want; changed != (len(got.Changes) > 0) {
				t.Errorf("changed is %t, but Changes are %v", changed, got.Changes)
			}
			again, err := daemonconfig.Merge(got.Text, tt.docker, got.Memory)
			if err != nil {
				t.Fatal(err)
			}
			if len(again.Changes) > 0 || string(again.Text) != tt.want {
				t.Errorf("a second merge changed %v", again.Changes)
			}
		})
	}
}

func TestMergeAbsent(t *testing.T) {
	got, err := daemonconfig.Merge(nil, udp, daemonconfig.Memory{Path: "/etc/docker/daemon.json"})
	if err != nil {
		t.Fatal(err)
	}
	want := daemonconfig.Merged{
		Text: []byte("{\n  \"bip\": \"172.20.24.1/24\",\n  \"mtu\": 1472\n}\n"),
		Changes: []daemonconfig.Change{
			{Key: "bip", New: `"172.20.24.1/24"`},
			{Key: "mtu", New: `1472`},
		},
		Memory: daemonconfig.Memory{
			Path: "/etc/docker/daemon.json", Created: true,
			Keys: map[string]daemonconfig.Remembered{
				"bip": {Wrote: []string{`"172.20.24.1/24"`}},
				"mtu": {Wrote: []string{`1472`}},
			},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("merged (-want +got):\n%s", diff)
	}
	if s := got.Changes[1].String(); s != `"mtu": absent -> 1472` {
		t.Errorf("change reads %s", s)
	}
}

func TestMergeRefuses(t *testing.T) {
	tests := []struct {
		name, old, want string
		docker          daemonconfig.Docker
	}{
		{"not JSON", "bip = 10.5.72.1/24\n", "line 1, column 1: is not JSON: invalid character 'b' looking for beginning of value", vxlan},
		{"comment", "{\n  // ours\n  \"mtu\": 1\n}", "line 2, column 3: is not JSON: invalid character '/' looking for beginning of object key string (JSON has no comments)", vxlan},
		{"hash comment", "# ours\n{}", "line 1, column 1: is not JSON: invalid character '#' looking for beginning of value (JSON has no comments)", vxlan},
		{"comma at the end", "{\n  \"mtu\": 1,\n}\n", "line 3, column 1: is not JSON: invalid character '}' looking for beginning of object key string (no comma after the last one)", vxlan},
		{"comma at the end of an array", "{\"a\": [1, ]}", "line 1, column 11: is not JSON: invalid character ']' looking for beginning of value (no comma after the last one)", vxlan},
		{"comma missing", "{\r\n  \"é\": 1 \"b\": 2}", "line 2, column 10: is not JSON: invalid character '\"' after object key:value pair", vxlan},
		{"cut off", "{\"mtu\": 1,\n\"bip\"", "line 2, column 6: is not JSON: unexpected end of JSON input", vxlan},
		{"something behind it", "{}\n{}", "line 2, column 1: is not JSON: invalid character '{' after top-level value", vxlan},
		{"array", "\n [1]", "line 2, column 2: is not a JSON object: want {...}", vxlan},
		{"null", "null", "line 1, column 1: is not a JSON object: want {...}", vxlan},
		{"UTF-16", "\xff\xfe{\x00}\x00", "line 1, column 1: is UTF-16: want UTF-8", vxlan},
		{"key twice", "{\"mtu\": 1,\n  \"debug\": true,\n  \"debug\": false}", "line 3, column 3: key \"debug\" stands twice: remove one", vxlan},
		{"key twice in two spellings", `{"bip": "", "\u0062ip": ""}`, "line 1, column 13: key \"bip\" stands twice: remove one", vxlan},
		{"key in capitals", bom + `{"MTU": 1500}`, "line 1, column 2: key \"MTU\": dockerd refuses it, the name is \"mtu\"", vxlan},
		{"bridge", "{\n  \"bridge\": \"br0\"}", "line 2, column 3: key \"bridge\" is set: dockerd takes no \"bip\" beside it; remove it, or run with --docker-config=none", vxlan},
		{"bip is the subnet", "{}", "bip: 10.5.72.0/24: want an IPv4 host address with the length of its subnet", daemonconfig.Docker{BIP: netip.MustParsePrefix("10.5.72.0/24")}},
		{"bip and mtu", "{}", "bip: fd05::1/64: want an IPv4 host address with the length of its subnet\nmtu: 67: want 68 to 65535", daemonconfig.Docker{BIP: netip.MustParsePrefix("fd05::1/64"), MTU: 67}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := daemonconfig.Merge([]byte(tt.old), tt.docker, daemonconfig.Memory{})
			if err == nil {
				t.Fatalf("no error, but %s", got.Text)
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
	if _, err := daemonconfig.Merge([]byte(`{"bridge": "none"}`), vxlan, daemonconfig.Memory{}); !errors.Is(err, daemonconfig.ErrBridge) {
		t.Errorf("bridge: got %v, want ErrBridge", err)
	}
}

// A firewall mark has a meaning in rules of the administrator's: his stays.
func TestAcceptMark(t *testing.T) {
	mark := daemonconfig.Docker{AcceptMark: daemonconfig.Mark{Value: 0x4000, Mask: 0x4000}}
	tests := []struct{ name, old, want, warning string }{
		{"absent", `{"debug": true}`, `{"debug": true, "bridge-accept-fwmark": "0x4000/0x4000"}`, ""},
		{"null", `{"bridge-accept-fwmark": null}`, `{"bridge-accept-fwmark": "0x4000/0x4000"}`, ""},
		{"ours", `{"bridge-accept-fwmark": "0x4000/0x4000"}`, `{"bridge-accept-fwmark": "0x4000/0x4000"}`, ""},
		{
			"his", `{"bridge-accept-fwmark": "2/3"}`, `{"bridge-accept-fwmark": "2/3"}`,
			`"bridge-accept-fwmark" is "2/3" and stays so: packets of the overlay have the mark 0x4000/0x4000, and Docker does not accept them for it`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := daemonconfig.Merge([]byte(tt.old), mark, daemonconfig.Memory{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(m.Text)); diff != "" {
				t.Errorf("daemon.json (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.warning, strings.Join(m.Warnings, "\n")); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
			other := mark
			other.AcceptMark = daemonconfig.Mark{Value: 1, Mask: 1}
			next, err := daemonconfig.Merge(m.Text, other, m.Memory)
			if err != nil || (len(next.Changes) == 1) != (len(m.Changes) == 1) {
				t.Errorf("another mark of ours: %v, %v", next.Changes, err)
			}
			back, err := daemonconfig.Merge(next.Text, daemonconfig.Docker{}, next.Memory)
			if err != nil || string(back.Text) != tt.old {
				t.Errorf("withdrawn: %s (%v), want %s", back.Text, err, tt.old)
			}
		})
	}
	bad := daemonconfig.Docker{AcceptMark: daemonconfig.Mark{Value: 2, Mask: 1}, NetworkMTU: 5}
	if _, err := daemonconfig.Merge(nil, bad, daemonconfig.Memory{}); err == nil ||
		err.Error() != "mtu of later networks: 5: want 68 to 65535\naccept mark: 0x2/0x1: want no bit outside of its mask" {
		t.Errorf("error %v", err)
	}
}

func TestParseMark(t *testing.T) {
	for text, want := range map[string]daemonconfig.Mark{
		"0x1000/0x1000": {Value: 0x1000, Mask: 0x1000},
		"2/3":           {Value: 2, Mask: 3},
		"4096":          {Value: 4096, Mask: 0xffffffff},
		"010/0xff":      {Value: 8, Mask: 255},
	} {
		if got, err := daemonconfig.ParseMark(text); err != nil || got != want {
			t.Errorf("%s: %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "/", "1/", "/1", "1/2/3", "-1", "x", "0x100000000", "1/0x100000000"} {
		if got, err := daemonconfig.ParseMark(text); err == nil || got != (daemonconfig.Mark{}) {
			t.Errorf("%q: %v, %v, want an error", text, got, err)
		}
	}
}

func FuzzParseMark(f *testing.F) {
	f.Add("0x1000/0x1000")
	f.Add("2")
	f.Fuzz(func(t *testing.T, text string) {
		m, err := daemonconfig.ParseMark(text)
		if err != nil {
			return
		}
		if again, err := daemonconfig.ParseMark(m.String()); err != nil || again != m {
			t.Errorf("%q is %v, which reads as %v, %v", text, m, again, err)
		}
	})
}
