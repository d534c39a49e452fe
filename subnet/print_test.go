package subnet

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// usualLease is one as a host of two families has it.
func usualLease() Lease {
	l := Lease{ID: 7587848, TTL: 1, Created: 12, Modified: 21}
	l.Subnet = Subnet{IPv4: netip.MustParsePrefix("10.5.1.0/24"), IPv6: netip.MustParsePrefix("fd05:0:0:1::/64")}
	l.Attrs = Attrs{BackendType: "vxlan", Owner: "n", Instance: "i"}
	l.Attrs.PublicIP = ByFamily[netip.Addr]{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	l.Attrs.BackendData = ByFamily[RawJSON]{`{"VNI":1,"VtepMAC":"5e:ca:ce:aa:6f:af"}`, `{"VNI":1,"VtepMAC":"5e:ca:ce:aa:6f:b0"}`}
	return l
}

// However odd a lease is, it is written as encoding/json writes it, or refused as there.
func TestAppendJSON(t *testing.T) {
	texts := rapid.SampledFrom([]string{"", "a", "vxlan", `"`, `\`, "<", "&", "é", "\u2028", "\n", "\x7f", "\xff", "null"})
	values := rapid.SampledFrom([]RawJSON{
		"", "null", "{}", `{"a":1}`, `{"a":"b c"}`, `{"a":"<"}`, `{"a":"\u0041"}`, `{"a":"é"}`, `{"a":[1]}`, ` {"a": 1}`, `{"a":1} `,
		"7", `"x"`, "{", `{"a":1},"Owner":"evil","x":{"b":1}`, "nul",
	})
	addrs := rapid.SampledFrom([]netip.Addr{{}, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("::"), netip.MustParseAddr("fe80::1%<"), netip.MustParseAddr("::ffff:192.0.2.1")})
	prefixes := rapid.SampledFrom([]netip.Prefix{{}, netip.MustParsePrefix("10.5.1.0/24"), netip.MustParsePrefix("fd05:0:0:1::/64"), netip.PrefixFrom(netip.IPv6Unspecified(), -1), netip.MustParsePrefix("::ffff:1.2.3.0/120")})
	rapid.Check(t, func(t *rapid.T) {
		l := Lease{
			ID: LeaseID(rapid.Int64().Draw(t, "id")), Created: Revision(rapid.Int64().Draw(t, "created")), Modified: Revision(rapid.Int64().Draw(t, "modified")),
			Attrs: Attrs{BackendType: texts.Draw(t, "type"), Owner: NodeID(texts.Draw(t, "owner")), Instance: texts.Draw(t, "instance")},
		}
		for _, f := range Families() {
			l.Subnet[f], l.Attrs.PublicIP[f], l.Attrs.BackendData[f] = prefixes.Draw(t, "prefix"), addrs.Draw(t, "address"), values.Draw(t, "data")
		}
		l.Attrs.Challenge.Instance = rapid.SampledFrom([]string{"", "", "i"}).Draw(t, "challenger")
		want, wantErr := json.Marshal(l)
		got, err := l.AppendJSON([]byte("before"))
		if wantErr != nil {
			if err == nil {
				t.Fatalf("%+v: no error, %s", l, got)
			}
			return
		}
		if diff := cmp.Diff("before"+string(want), string(got)); diff != "" || err != nil {
			t.Fatalf("%+v: %v (-want +got):\n%s", l, err, diff)
		}
	})
}

// One thing that is odd is enough for encoding/json to write a lease: each of them, and no
// other beside it.
func TestAppendJSONOfOneOddity(t *testing.T) {
	odd := map[string]func(l *Lease){}
	for _, text := range []string{`"`, `\`, "<", ">", "&", "\x1f", "~", "\x7f", "\xff", "é", "\u2028", "null"} {
		odd[fmt.Sprintf("type %q", text)] = func(l *Lease) { l.Attrs.BackendType = text }
		odd[fmt.Sprintf("owner %q", text)] = func(l *Lease) { l.Attrs.Owner = NodeID(text) }
		odd[fmt.Sprintf("instance %q", text)] = func(l *Lease) { l.Attrs.Instance = "a" + text + "b" }
		odd[fmt.Sprintf("a string %q", text)] = func(l *Lease) { l.Attrs.BackendData[IPv6] = RawJSON(`{"a":"` + text + `"}`) }
	}
	for _, value := range []RawJSON{
		"", "null", "{}", "7", `"x"`, ` {"a":1}`, `{"a":1} `, `{"a": 1}`, `{"a":1}}`, `{"a":1},"Owner":"evil","x":{"b":1}`, `{"a":1}null`, `{"a":[1]}`,
	} {
		odd[fmt.Sprintf("data %q", value)] = func(l *Lease) { l.Attrs.BackendData[IPv4] = value }
	}
	for _, a := range []netip.Addr{{}, netip.MustParseAddr("fe80::1%<"), netip.MustParseAddr(`fe80::1%"`), netip.MustParseAddr("fe80::1%eth0"), netip.MustParseAddr("::ffff:192.0.2.1")} {
		for _, f := range Families() {
			odd[fmt.Sprintf("%s address %s", f, a)] = func(l *Lease) { l.Attrs.PublicIP[f] = a }
		}
	}
	for _, p := range []netip.Prefix{{}, netip.PrefixFrom(netip.IPv6Unspecified(), -1), netip.MustParsePrefix("::ffff:1.2.3.0/120")} {
		for _, f := range Families() {
			odd[fmt.Sprintf("%s subnet %s", f, p)] = func(l *Lease) { l.Subnet[f] = p }
		}
	}
	odd["challenge"] = func(l *Lease) { l.Attrs.Challenge.Instance = "i" }
	odd["negative numbers"] = func(l *Lease) { l.ID, l.TTL, l.Created, l.Modified = -1, -2, -3, -4 }
	for name, spoil := range odd {
		l := usualLease()
		spoil(&l)
		want, wantErr := json.Marshal(l)
		got, err := l.AppendJSON([]byte("before"))
		if (err != nil) != (wantErr != nil) {
			t.Errorf("%s: %v, want %v", name, err, wantErr)
			continue
		}
		if diff := cmp.Diff("before"+string(want), string(got)); wantErr == nil && diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// What flannel and we write must not go the slow way.
func TestAppendJSONIsFast(t *testing.T) {
	l := usualLease()
	one := l
	one.Subnet[IPv6], one.Attrs.PublicIP[IPv6], one.Attrs.BackendData[IPv6] = netip.Prefix{}, netip.Addr{}, ""
	for name, l := range map[string]Lease{"two families": l, "one": one} {
		b := make([]byte, 0, 1024)
		if _, usual := l.print(b); !usual {
			t.Errorf("%s: not usual", name)
		}
		if n := testing.AllocsPerRun(100, func() { _, _ = l.AppendJSON(b) }); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkAppendJSON(b *testing.B) {
	l, text := usualLease(), make([]byte, 0, 1024)
	for name, encode := range map[string]func(){
		"print": func() { _, _ = l.AppendJSON(text) },
		"json":  func() { _, _ = json.Marshal(&l) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				encode()
			}
		})
	}
}
