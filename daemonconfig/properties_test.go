package daemonconfig_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/daemonconfig"
)

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
