package daemonconfig_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

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

// step is one Merge in a story, or an edit by the administrator.
type step struct {
	want daemonconfig.Docker
	edit string
}

// TestMergeThenWithdraw tells what comes back after the steps and a Merge of
// the zero Docker.
func TestMergeThenWithdraw(t *testing.T) {
	const absent = "(absent)"
	tests := []struct {
		name, old string
		steps     []step
		want      string
	}{
		{"file was absent", absent, []step{{want: vxlan}}, absent},
		{"file was absent, and got a key of the administrator's", absent, []step{{want: vxlan}, {edit: `{"debug": true, "bip": "10.5.72.1/24", "mtu": 1450}`}}, `{"debug": true}`},
		{"file was absent, and is gone", absent, []step{{want: vxlan}, {edit: absent}}, absent},
		{"file was empty", "", []step{{want: vxlan}}, "{}\n"},
		{"keys were absent", "{\n  \"debug\": true\n}\n", []step{{want: withMasq(vxlan, false)}}, "{\n  \"debug\": true\n}\n"},
		{"keys were first", `{"bip": "10.5.72.1/24", "debug": true}`, []step{{want: vxlan}}, `{"bip": "10.5.72.1/24", "debug": true}`},
		{"values were others", `{"mtu" :9000, "bip": "172.17.0.1/16"}`, []step{{want: vxlan}}, `{"mtu" :9000, "bip": "172.17.0.1/16"}`},
		{"two leases", `{"bip": "172.17.0.1/16"}`, []step{{want: vxlan}, {want: udp}}, `{"bip": "172.17.0.1/16"}`},
		{"ip-masq no longer wanted", `{"ip-masq": true}`, []step{{want: withMasq(vxlan, false)}, {want: vxlan}, {edit: `{"ip-masq": false}`}}, `{"ip-masq": false}`},
		{"edited after us", `{"mtu": 9000}`, []step{{want: vxlan}, {edit: `{"mtu": 1400, "bip": "10.5.72.1/24"}`}}, `{"mtu": 1400}`},
		{"edited and overwritten", `{"mtu": 9000}`, []step{{want: vxlan}, {edit: `{"mtu": 1400, "bip": "10.5.72.1/24"}`}, {want: vxlan}}, `{"mtu": 1400}`},
		{"key removed after us", `{"debug": true}`, []step{{want: vxlan}, {edit: `{"debug": true, "mtu": 1450}`}}, `{"debug": true}`},
		{"a value that dockerd refuses", `{"mtu": "9000", "debug": true}`, []step{{want: vxlan}}, `{"debug": true}`},
		{"never merged", `{"bridge": "br0", "bip": "10.5.72.1/24"}`, nil, `{"bridge": "br0", "bip": "10.5.72.1/24"}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text := func(s string) []byte {
				if s == absent {
					return nil
				}
				return []byte(s)
			}
			now, memory := text(tt.old), daemonconfig.Memory{Path: "x"}
			merge := func(want daemonconfig.Docker) {
				t.Helper()
				m, err := daemonconfig.Merge(now, want, memory)
				if err != nil {
					t.Fatal(err)
				}
				now, memory = m.Text, m.Memory
			}
			for _, s := range tt.steps {
				if s.edit != "" {
					now = text(s.edit)
				} else {
					merge(s.want)
				}
			}
			merge(daemonconfig.Docker{})
			got := absent
			if now != nil {
				got = string(now)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("after withdrawal (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(daemonconfig.Memory{}, memory); diff != "" {
				t.Errorf("memory after withdrawal (-want +got):\n%s", diff)
			}
		})
	}
}

// drawDocker draws what a daemon may want.
func drawDocker(t *rapid.T) daemonconfig.Docker {
	var d daemonconfig.Docker
	if rapid.Bool().Draw(t, "bip") {
		subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, rapid.Byte().Draw(t, "subnet"), 0}), 24)
		d.BIP = daemonconfig.HostAddr(subnet)
	}
	if rapid.Bool().Draw(t, "mtu") {
		d.MTU = rapid.IntRange(68, 9000).Draw(t, "mtu value")
	}
	if rapid.Bool().Draw(t, "masq") {
		d = withMasq(d, rapid.Bool().Draw(t, "masq value"))
	}
	return d
}

// drawConfig draws a daemon.json in a random layout.
func drawConfig(t *rapid.T) string {
	names := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"debug", "bip", "mtu", "ip-masq", "log-opts", "é"}), 1, 6, rapid.ID).Draw(t, "keys")
	eol := rapid.SampledFrom([]string{"", " ", "\n", "\r\n", "\n\n\t"}).Draw(t, "eol")
	indent := rapid.SampledFrom([]string{"", "  ", "\t"}).Draw(t, "indent")
	colon := rapid.SampledFrom([]string{":", ": ", " : "}).Draw(t, "colon")
	values := map[string]string{"bip": `"172.17.0.1/16"`, "mtu": "1500", "ip-masq": "true", "log-opts": `{ "a":[1 ,2]}`}
	var members []string
	for _, name := range names {
		value := values[name]
		if value == "" {
			value = "null"
		}
		members = append(members, fmt.Sprintf("%s%s%q%s%s", eol, indent, name, colon, value))
	}
	return "{" + strings.Join(members, ",") + eol + "}" + rapid.SampledFrom([]string{"", "\n"}).Draw(t, "end")
}

// TestMergeProperties: whatever happened, the file says what was wanted last
// and withdrawal gives the first text back, byte for byte.
func TestMergeProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old := drawConfig(t)
		now, memory := []byte(old), daemonconfig.Memory{}
		for range rapid.IntRange(1, 4).Draw(t, "merges") {
			want := drawDocker(t)
			m, err := daemonconfig.Merge(now, want, memory)
			if err != nil {
				t.Fatal(err)
			}
			var got struct {
				BIP    string `json:"bip"`
				MTU    int    `json:"mtu"`
				IPMasq *bool  `json:"ip-masq"`
			}
			if err := json.Unmarshal(m.Text, &got); err != nil {
				t.Fatalf("%s: %v", m.Text, err)
			}
			if want.BIP.IsValid() && got.BIP != want.BIP.String() || want.MTU != 0 && got.MTU != want.MTU ||
				want.IPMasq != nil && (got.IPMasq == nil || *got.IPMasq != *want.IPMasq) {
				t.Fatalf("wanted %+v, got %s", want, m.Text)
			}
			now, memory = m.Text, m.Memory
		}
		m, err := daemonconfig.Merge(now, daemonconfig.Docker{}, memory)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(old, string(m.Text)); diff != "" {
			t.Errorf("after withdrawal (-want +got):\n%s", diff)
		}
	})
}

// FuzzMerge: an accepted file stays valid, keeps its foreign keys, and is
// settled by one merge.
func FuzzMerge(f *testing.F) {
	for _, seed := range []string{"", "{}", `{"bip":"x","a":{"b":[1]}}`, bom + "{\r\n\t\"mtu\" : 1 ,\r\n\t\"x\":null\r\n}", `{"bip":1}}`, `{"a":1,"a":2}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, old []byte) {
		m, err := daemonconfig.Merge(old, vxlan, daemonconfig.Memory{})
		if err != nil {
			return
		}
		var before, after map[string]json.RawMessage
		body := func(text []byte) []byte { return []byte(strings.TrimPrefix(string(text), bom)) }
		if strings.TrimSpace(string(body(old))) != "" {
			if err := json.Unmarshal(body(old), &before); err != nil {
				t.Fatalf("accepted what is not JSON: %v", err)
			}
		}
		if err := json.Unmarshal(body(m.Text), &after); err != nil {
			t.Fatalf("%q became %q: %v", old, m.Text, err)
		}
		for key, value := range before {
			if key != "bip" && key != "mtu" && string(after[key]) != string(value) {
				t.Errorf("%q: %s became %s", key, value, after[key])
			}
		}
		again, err := daemonconfig.Merge(m.Text, vxlan, m.Memory)
		if err != nil || len(again.Changes) > 0 {
			t.Errorf("not settled: %v, %v", again.Changes, err)
		}
		back, err := daemonconfig.Merge(m.Text, daemonconfig.Docker{}, m.Memory)
		if err != nil {
			t.Fatalf("withdrawal: %v", err)
		}
		var restored map[string]json.RawMessage
		if err := json.Unmarshal(body(back.Text), &restored); err != nil {
			t.Fatalf("withdrawn from %q: %q: %v", m.Text, back.Text, err)
		}
		for key, value := range restored {
			if string(before[key]) != string(value) {
				t.Errorf("withdrawal: %q: %s became %s", key, before[key], value)
			}
		}
		for key := range before {
			if _, ok := restored[key]; !ok && key != "bip" && key != "mtu" { // those only if dockerd took the value
				t.Errorf("withdrawal lost %q", key)
			}
		}
	})
}
