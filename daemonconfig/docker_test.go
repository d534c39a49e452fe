package daemonconfig_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
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
	if rapid.Bool().Draw(t, "network mtu") {
		d.NetworkMTU = rapid.IntRange(68, 9000).Draw(t, "network mtu value")
	}
	return d
}

// drawConfig draws a daemon.json in a random layout.
func drawConfig(t *rapid.T) string {
	names := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"debug", "bip", "mtu", "ip-masq", "log-opts", "é", "default-network-opts"}), 1, 7, rapid.ID).Draw(t, "keys")
	eol := rapid.SampledFrom([]string{"", " ", "\n", "\r\n", "\n\n\t"}).Draw(t, "eol")
	indent := rapid.SampledFrom([]string{"", "  ", "\t"}).Draw(t, "indent")
	colon := rapid.SampledFrom([]string{":", ": ", " : "}).Draw(t, "colon")
	networkOpts := rapid.SampledFrom([]string{
		`null`, `{}`, `{ "bridge" : { } }`, `{"bridge":null,"x":{}}`, "{\n\t\"bridge\": {\n\t\t\"a\": \"b\"\n\t}\n}",
		`{"bridge":{"com.docker.network.driver.mtu":"9000" , "a":"b"}}`, `{"macvlan":{"com.docker.network.driver.mtu":"9000"}}`,
	}).Draw(t, "network opts")
	values := map[string]string{"default-network-opts": networkOpts, "bip": `"172.17.0.1/16"`, "mtu": "1500", "ip-masq": "true", "log-opts": `{ "a":[1 ,2]}`}
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
				Opts   struct {
					Bridge map[string]string `json:"bridge"`
				} `json:"default-network-opts"`
			}
			if err := json.Unmarshal(m.Text, &got); err != nil {
				t.Fatalf("%s: %v", m.Text, err)
			}
			if want.BIP.IsValid() && got.BIP != want.BIP.String() || want.MTU != 0 && got.MTU != want.MTU ||
				want.IPMasq != nil && (got.IPMasq == nil || *got.IPMasq != *want.IPMasq) ||
				want.NetworkMTU != 0 && got.Opts.Bridge["com.docker.network.driver.mtu"] != strconv.Itoa(want.NetworkMTU) {
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

// others are the members of a file that we never write, and what stands beside
// ours in the nested ones.
func others(t *testing.T, text []byte) map[string]any {
	t.Helper()
	text = []byte(strings.TrimPrefix(string(text), bom))
	all := map[string]any{}
	if strings.TrimSpace(string(text)) == "" {
		return all
	}
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatalf("accepted what is not JSON: %q: %v", text, err)
	}
	for _, key := range []string{"bip", "mtu", "ip-masq"} {
		delete(all, key)
	}
	// Ours, and objects that may be there for it alone, are no one else's.
	if opts, ok := all["default-network-opts"].(map[string]any); ok {
		if bridge, ok := opts["bridge"].(map[string]any); ok {
			delete(bridge, "com.docker.network.driver.mtu")
		}
		for name, driver := range opts {
			if m, ok := driver.(map[string]any); name == "bridge" && (driver == nil || ok && len(m) == 0) {
				delete(opts, name)
			}
		}
		if len(opts) == 0 {
			delete(all, "default-network-opts")
		}
	} else if all["default-network-opts"] == nil {
		delete(all, "default-network-opts")
	}
	return all
}

// FuzzMerge: an accepted file stays valid, keeps what is others', and is
// settled by one merge; a withdrawal takes back all of ours, byte by byte where
// dockerd would have taken the file before us.
func FuzzMerge(f *testing.F) {
	for _, text := range fixtures(f) {
		f.Add(text)
	}
	f.Add([]byte(`{"bip":1}}`))
	f.Fuzz(func(t *testing.T, old []byte) {
		want := everything()
		m, err := daemonconfig.Merge(old, want, daemonconfig.Memory{})
		if err != nil {
			return
		}
		if diff := cmp.Diff(others(t, old), others(t, m.Text)); diff != "" {
			t.Errorf("%q (-before +after):\n%s", old, diff)
		}
		again, err := daemonconfig.Merge(m.Text, want, m.Memory)
		if err != nil || len(again.Changes) > 0 {
			t.Errorf("not settled: %v, %v", again.Changes, err)
		}
		want.MTU, want.NetworkMTU = 1400, 1400
		moved, err := daemonconfig.Merge(m.Text, want, m.Memory)
		if err != nil {
			t.Fatalf("another MTU in %q: %v", m.Text, err)
		}
		back, err := daemonconfig.Merge(moved.Text, daemonconfig.Docker{}, moved.Memory)
		if err != nil {
			t.Fatalf("withdrawal: %v", err)
		}
		if diff := cmp.Diff(others(t, old), others(t, back.Text)); diff != "" {
			t.Errorf("withdrawn from %q (-before +after):\n%s", moved.Text, diff)
		}
		direct, err := daemonconfig.Merge(m.Text, daemonconfig.Docker{}, m.Memory)
		if err != nil || string(direct.Text) != string(back.Text) {
			t.Errorf("a withdrawal by a detour gives %q, a direct one %q (%v)", back.Text, direct.Text, err)
		}
	})
}

// What the administrator writes beside our value is kept, and ours still goes.
func TestNestedEdits(t *testing.T) {
	const opts = `"default-network-opts": `
	tests := []struct{ name, old, edit, want string }{
		{
			"another option beside ours", `{}`,
			`{` + opts + `{"bridge": {"com.docker.network.driver.mtu": "1450", "a": "b"}}}`, `{` + opts + `{"bridge": {"a": "b"}}}`,
		},
		{
			"another driver beside ours", `{}`,
			`{` + opts + `{"ipvlan": {}, "bridge": {"com.docker.network.driver.mtu": "1450"}}}`, `{` + opts + `{"ipvlan": {}}}`,
		},
		{
			"his empty object stays, ours goes", `{` + opts + `{"ipvlan": {}}}`,
			`{` + opts + `{"bridge": {"com.docker.network.driver.mtu": "1450"}}}`, `{` + opts + `{}}`,
		},
		{
			"his former value comes back into what he changed", `{` + opts + `{"bridge": {"com.docker.network.driver.mtu": "9000"}}}`,
			`{` + opts + `{"bridge": {"a": "b", "com.docker.network.driver.mtu": "1450"}}}`,
			`{` + opts + `{"bridge": {"a": "b", "com.docker.network.driver.mtu": "9000"}}}`,
		},
		{
			"his other value is his", `{}`,
			`{` + opts + `{"bridge": {"com.docker.network.driver.mtu": "1300"}}}`, `{` + opts + `{"bridge": {"com.docker.network.driver.mtu": "1300"}}}`,
		},
		{"all of it gone", `{}`, `{"debug": true}`, `{"debug": true}`},
		{"no object any more", `{}`, `{` + opts + `7}`, `{` + opts + `7}`},
	}
	want := daemonconfig.Docker{NetworkMTU: 1450}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := daemonconfig.Merge([]byte(tt.old), want, daemonconfig.Memory{})
			if err != nil {
				t.Fatal(err)
			}
			back, err := daemonconfig.Merge([]byte(tt.edit), daemonconfig.Docker{}, m.Memory)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(back.Text)); diff != "" {
				t.Errorf("withdrawn at once (-want +got):\n%s", diff)
			}
			next, err := daemonconfig.Merge([]byte(tt.edit), daemonconfig.Docker{NetworkMTU: 1300}, m.Memory)
			if err != nil {
				if tt.name != "no object any more" {
					t.Fatal(err)
				}
				return
			}
			back, err = daemonconfig.Merge(next.Text, daemonconfig.Docker{}, next.Memory)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(back.Text)); diff != "" {
				t.Errorf("withdrawn after another value (-want +got):\n%s", diff)
			}
		})
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
