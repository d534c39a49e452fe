package subnet

import (
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// captures are keys and values as flannel left them in etcd.
var captures = map[string]string{
	"10.5.33.0-24":                  `{"PublicIP":"198.18.0.2","PublicIPv6":null,"BackendType":"host-gw"}`,
	"10.5.32.0-24":                  `{"PublicIP":"198.18.0.1","PublicIPv6":null}`,
	"10.5.20.128-26":                `{"PublicIP":"198.18.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"ba:e4:bf:06:d4:a9"}}`,
	"10.5.35.0-24&fd05:0:0:52::-64": `{"PublicIP":"198.18.0.2","PublicIPv6":"fd00:198:18::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"ee:27:87:43:1f:09"},"BackendV6Data":{"VNI":1,"VtepMAC":"e2:fb:49:af:e6:a9"}}`,
}

func TestFlannelsKeysAndValues(t *testing.T) {
	for key, value := range captures {
		t.Run(key, func(t *testing.T) {
			s, err := ParseSubnet(key)
			if err != nil || s.Key() != key {
				t.Errorf("ParseSubnet = %v, %v; its Key is %q", s, err, s.Key())
			}
			var a Attrs
			if err := json.Unmarshal([]byte(value), &a); err != nil {
				t.Fatal(err)
			}
			got, err := json.Marshal(a)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(value, string(got)); d != "" {
				t.Errorf("-want +got\n%s", d)
			}
		})
	}
}

// What is ours stands behind what is flannel's, and what is not there is left
// out.
func TestAttrsEncode(t *testing.T) {
	a := netip.MustParseAddr
	owned := Attrs{PublicIP: ByFamily[netip.Addr]{a("192.0.2.1")}, BackendType: "vxlan", BackendData: ByFamily[RawJSON]{`{"VNI":1}`}, Owner: "n", Instance: "i"}
	challenged, dual, nowhere := owned, owned, owned
	challenged.Challenge = Challenge{Instance: "j", PublicIP: ByFamily[netip.Addr]{a("192.0.2.2")}}
	dual.Challenge = Challenge{Instance: "j", PublicIP: ByFamily[netip.Addr]{a("192.0.2.2"), a("fd00::2")}}
	nowhere.Challenge.Instance = "j"
	const value = `{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1},"Owner":"n","Instance":"i"`
	for _, tt := range []struct {
		name  string
		attrs Attrs
		want  string
	}{
		{"of ours", owned, value + "}"},
		{"challenged", challenged, value + `,"Challenge":{"Instance":"j","PublicIP":"192.0.2.2"}}`},
		{"challenged from both families", dual, value + `,"Challenge":{"Instance":"j","PublicIP":"192.0.2.2","PublicIPv6":"fd00::2"}}`},
		{"challenged from nowhere", nowhere, value + `,"Challenge":{"Instance":"j"}}`},
		{"a node's", Attrs{Owner: "n"}, `{"PublicIP":"0.0.0.0","PublicIPv6":null,"Owner":"n"}`},
	} {
		got, err := json.Marshal(tt.attrs)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(tt.want, string(got)); d != "" {
			t.Errorf("%s: -want +got\n%s", tt.name, d)
		}
	}
}

func TestParseSubnet(t *testing.T) {
	p := netip.MustParsePrefix
	for _, tt := range []struct {
		name, key string
		want      Subnet
		err       string
	}{
		{"one family", "10.5.52.0-24", Subnet{IPv4: p("10.5.52.0/24")}, ""},
		{"both", "10.5.1.0-24&fd05:0:0:52::-64", Subnet{p("10.5.1.0/24"), p("fd05:0:0:52::/64")}, ""},
		{"IPv6 alone", "0.0.0.0-0&fd05:0:0:52::-64", Subnet{IPv6: p("fd05:0:0:52::/64")}, ""},
		{"host bits occupy", "10.5.52.7-24", Subnet{IPv4: p("10.5.52.0/24")}, `parse key "10.5.52.7-24": must be written "10.5.52.0-24"`},
		{"another spelling occupies", "10.5.1.0-24&FD05:0:0:52:0::-64", Subnet{p("10.5.1.0/24"), p("fd05:0:0:52::/64")}, `parse key "10.5.1.0-24&FD05:0:0:52:0::-64": must be written "10.5.1.0-24&fd05:0:0:52::-64"`},
		{"leading zero", "10.5.52.0-024", Subnet{IPv4: p("10.5.52.0/24")}, `parse key "10.5.52.0-024": must be written "10.5.52.0-24"`},
		{"empty", "", Subnet{}, `parse key "": no subnet`},
		{"no length", "10.5.52.0", Subnet{}, `parse key "10.5.52.0": no subnet`},
		{"a word", "config-24", Subnet{}, `parse key "config-24": ParseAddr("config"): unable to parse IP`},
		{"length 33", "10.5.52.0-33", Subnet{}, `parse key "10.5.52.0-33": length "33": must be between 1 and 32`},
		{"length 0", "10.5.52.0-0", Subnet{}, `parse key "10.5.52.0-0": length "0": must be between 1 and 32`},
		{"nothing", "0.0.0.0-0", Subnet{}, `parse key "0.0.0.0-0": length "0": must be between 1 and 32`},
		{"negative", "10.5.52.0--1", Subnet{}, `parse key "10.5.52.0--1": length "-1": must be between 1 and 32`},
		{"IPv6 first", "fd05::-64", Subnet{}, `parse key "fd05::-64": fd05::: no IPv4 address`},
		{"IPv4 twice", "10.5.52.0-24&10.5.53.0-24", Subnet{}, `parse key "10.5.52.0-24&10.5.53.0-24": 10.5.53.0: no IPv6 address`},
		{"mapped", "10.5.52.0-24&::ffff:10.5.52.0-120", Subnet{}, `parse key "10.5.52.0-24&::ffff:10.5.52.0-120": ::ffff:10.5.52.0: no IPv6 address`},
		{"zone", "10.5.52.0-24&fe80::%a-64", Subnet{}, `parse key "10.5.52.0-24&fe80::%a-64": fe80::%a: no IPv6 address`},
		{"empty IPv6", "10.5.52.0-24&", Subnet{}, `parse key "10.5.52.0-24&": no subnet`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseSubnet(tt.key)
			text := ""
			if err != nil {
				text = err.Error()
			}
			if d := cmp.Diff(tt.err, text); d != "" || got != tt.want {
				t.Errorf("got %v, want %v; error -want +got\n%s", got, tt.want, d)
			}
		})
	}
}

func TestSubnetsCompareAndOverlap(t *testing.T) {
	parse := func(key string) Subnet {
		s, err := ParseSubnet(key)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	sorted := []Subnet{
		parse("0.0.0.0-0&fd05:0:0:1::-64"), parse("9.0.0.0-8"), parse("10.5.0.0-16"), parse("10.5.0.0-24"),
		parse("10.5.1.0-24"), parse("10.5.1.0-24&fd05:0:0:1::-64"), parse("10.5.1.0-24&fd05:0:0:2::-64"), parse("10.5.10.0-24&fd05::-48"),
	}
	for i, a := range sorted {
		for j, b := range sorted {
			want := 0
			switch {
			case i < j:
				want = -1
			case i > j:
				want = 1
			}
			if got := a.Compare(b); got != want {
				t.Errorf("%s Compare %s = %d, want %d", a, b, got, want)
			}
		}
	}
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"10.5.1.0-24", "10.5.1.0-24", true},
		{"10.5.1.0-24", "10.5.2.0-24", false},
		{"10.5.1.0-24", "10.5.0.0-16", true},
		{"10.5.1.0-24", "10.5.1.128-25", true},
		{"10.5.1.0-24&fd05:0:0:1::-64", "10.5.2.0-24&fd05:0:0:1::-64", true},
		{"10.5.1.0-24&fd05:0:0:1::-64", "10.5.1.0-24&fd05:0:0:2::-64", true},
		{"10.5.1.0-24&fd05:0:0:1::-64", "10.5.2.0-24&fd05:0:0:2::-64", false},
		{"10.5.1.0-24", "0.0.0.0-0&fd05:0:0:1::-64", false},
	} {
		a, b := parse(tt.a), parse(tt.b)
		if a.Overlaps(b) != tt.want || b.Overlaps(a) != tt.want {
			t.Errorf("%s and %s: overlap %v, want %v", a, b, !tt.want, tt.want)
		}
	}
	if s := (Subnet{}); !s.IsZero() || s.Overlaps(s) || s.String() != "" || sorted[0].IsZero() {
		t.Error("the zero subnet covers something, or another does not")
	}
	if got := sorted[5].String(); got != "10.5.1.0/24,fd05:0:0:1::/64" {
		t.Errorf("String = %s", got)
	}
}

func TestAttrsDecode(t *testing.T) {
	a := netip.MustParseAddr
	for _, tt := range []struct {
		name, text string
		want       Attrs
		err        string
	}{
		{
			"any case, unknown fields, space",
			`{"publicip":"192.0.2.1","PUBLICIPV6":null,"backendtype":"vxlan","Zone":{"x":1}, "BackendData" : { "VNI" : 1 },"owner":"n","instance":"i"}`,
			Attrs{PublicIP: ByFamily[netip.Addr]{a("192.0.2.1")}, BackendType: "vxlan", BackendData: ByFamily[RawJSON]{`{"VNI":1}`}, Owner: "n", Instance: "i"},
			"",
		},
		{
			"challenged", `{"PublicIP":"192.0.2.1","Owner":"n","Challenge":{"Instance":"i","PublicIP":"192.0.2.2","PublicIPv6":"fd00::2","Since":1}}`,
			Attrs{PublicIP: ByFamily[netip.Addr]{a("192.0.2.1")}, Owner: "n", Challenge: Challenge{Instance: "i", PublicIP: ByFamily[netip.Addr]{a("192.0.2.2"), a("fd00::2")}}},
			"",
		},
		{"challenged by nobody", `{"Owner":"n","Challenge":{"PublicIP":"0.0.0.0"}}`, Attrs{Owner: "n"}, ""},
		{"challenged from nowhere", `{"Owner":"n","Challenge":{"PublicIPv6":"x"}}`, Attrs{}, `decode lease: Challenge: PublicIPv6: ParseAddr("x"): unable to parse IP`},
		{"challenged by a list", `{"Owner":"n","Challenge":[]}`, Attrs{}, "decode lease: json: cannot unmarshal array into Go struct field wireAttrs.Challenge of type subnet.wireChallenge"},
		{"IPv6 alone", `{"PublicIP":"0.0.0.0","PublicIPv6":"fd00::1","BackendData":null}`, Attrs{PublicIP: ByFamily[netip.Addr]{IPv6: a("fd00::1")}}, ""},
		{"a reservation for a node", `{"Owner":"n"}`, Attrs{Owner: "n"}, ""},
		{"no JSON", `198.18.0.1`, Attrs{}, "invalid character '.' after top-level value"},
		{"empty", ``, Attrs{}, "unexpected end of JSON input"},
		{"nobody's", `{}`, Attrs{}, "decode lease: has neither PublicIP nor Owner"},
		{"null", `null`, Attrs{}, "decode lease: has neither PublicIP nor Owner"},
		{"a list", `[]`, Attrs{}, "decode lease: json: cannot unmarshal array into Go value of type subnet.wireAttrs"},
		{"no address", `{"PublicIP":"198.18.0"}`, Attrs{}, `decode lease: PublicIP: ParseAddr("198.18.0"): IPv4 address too short`},
		{"a number", `{"PublicIP":12}`, Attrs{}, "decode lease: json: cannot unmarshal number into Go struct field wireAttrs.PublicIP of type string"},
		{"the other family", `{"PublicIP":"fd00::1"}`, Attrs{}, "decode lease: PublicIP: fd00::1: must be an IPv4 address of a host"},
		{"empty address", `{"PublicIP":"","Owner":"n"}`, Attrs{}, `decode lease: PublicIP: ParseAddr(""): unable to parse IP`},
		{"IPv6 unspecified", `{"PublicIP":"198.18.0.1","PublicIPv6":"::"}`, Attrs{}, "decode lease: PublicIPv6: ::: must be an IPv6 address of a host"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got Attrs
			err := json.Unmarshal([]byte(tt.text), &got)
			text := ""
			if err != nil {
				text = err.Error()
			}
			if d := cmp.Diff(tt.err, text); d != "" {
				t.Errorf("error -want +got\n%s", d)
			}
			if d := cmp.Diff(tt.want, got, compareNetip()); d != "" {
				t.Errorf("-want +got\n%s", d)
			}
		})
	}
}

func genAddr(f Family) *rapid.Generator[netip.Addr] {
	return rapid.Custom(func(t *rapid.T) netip.Addr {
		b := rapid.SliceOfN(rapid.Byte(), f.Bits()/8, f.Bits()/8).Draw(t, "bytes")
		a, _ := netip.AddrFromSlice(b)
		return a
	})
}

// What we write, we read; and what reads, writes itself.
func TestKeysAndValuesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s Subnet
		a := Attrs{BackendType: rapid.String().Draw(t, "type"), Owner: "n" + NodeID(rapid.StringMatching(`[a-z"<é]*`).Draw(t, "owner")), Instance: "i"}
		for _, f := range Families() {
			if f == IPv4 || rapid.Bool().Draw(t, "dual") {
				s[f] = netip.PrefixFrom(genAddr(f).Draw(t, "subnet"), rapid.IntRange(1, f.Bits()).Draw(t, "bits")).Masked()
				a.PublicIP[f] = genAddr(f).Filter(func(a netip.Addr) bool { return !a.IsUnspecified() && !a.Is4In6() }).Draw(t, "public")
				a.BackendData[f] = `{"VNI":1}`
			}
		}
		if s[IPv6].Addr().Is4In6() {
			t.Skip("IPv4-mapped")
		}
		if rapid.Bool().Draw(t, "challenged") {
			a.Challenge = Challenge{Instance: rapid.StringMatching(`[a-z]+`).Draw(t, "challenger"), PublicIP: a.PublicIP}
		}
		a.BackendType = strings.ToValidUTF8(a.BackendType, "")
		if got, err := ParseSubnet(s.Key()); err != nil || got != s {
			t.Fatalf("key %q reads as %v, %v", s.Key(), got, err)
		}
		text, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		var got Attrs
		if err := json.Unmarshal(text, &got); err != nil || got != a {
			t.Fatalf("%s reads as %+v, %v; want %+v", text, got, err, a)
		}
	})
}

func FuzzParseSubnet(f *testing.F) {
	for key := range captures {
		f.Add(key)
	}
	for _, key := range []string{"", "-", "&", "0.0.0.0-0", "0.0.0.0-0&fd05::-64", "10.5.52.7-24", "10.5.1.0-24&fd05:0:0:52::-64&", "10.0.0.0-08", "1.2.3.4-32&1::2-128"} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		s, err := ParseSubnet(key)
		if err == nil && s.Key() != key {
			t.Fatalf("%q reads as %s, which is written %q", key, s, s.Key())
		}
		if s.IsZero() {
			if err == nil {
				t.Fatalf("%q is nothing, without an error", key)
			}
			return
		}
		if again, err := ParseSubnet(s.Key()); err != nil || again != s {
			t.Fatalf("%q reads as %s, whose key %q reads as %s, %v", key, s, s.Key(), again, err)
		}
	})
}

func FuzzAttrs(f *testing.F) {
	for _, value := range captures {
		f.Add(value)
	}
	for _, value := range []string{"", "null", "{}", `{"Owner":"n"}`, `{"PublicIP":"0.0.0.0","PublicIPv6":"::1"}`, `{"publicIP":"1.2.3.4","BackendData":[ 1, "\u003c" ]}`, `{"Owner":"n","challenge":{"Instance":"","PublicIP":"1.2.3.4"}}`} {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var a, b Attrs
		if json.Unmarshal([]byte(text), &a) != nil {
			return
		}
		first, err := json.Marshal(a)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if err := json.Unmarshal(first, &b); err != nil {
			t.Fatalf("%s becomes %s: %v", text, first, err)
		}
		second, err := json.Marshal(b)
		if err != nil || string(first) != string(second) {
			t.Fatalf("%s becomes %s and then %s, %v", text, first, second, err)
		}
	})
}

func FuzzParseObject(f *testing.F) {
	for _, seed := range []string{"", "{}", "{", `{"a":1,"A":2}`, `{"a":null}`, `{"a":[{}],"b":"x"} `, "{\n\"a\"\n:\n}", "\xff", `{"a":1e999}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		o, err := ParseObject("Backend", RawJSON(text))
		if err != nil {
			if err.Error() == "" || json.Valid([]byte(text)) != !strings.Contains(err.Error(), "line ") {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		for _, key := range []string{"a", "b"} {
			had := o.Has(key)
			o.Int(key, 0, 0, 9)
			o.Bool(key, false)
			o.String(key, "")
			o.Addr(key, IPv4)
			o.Prefix(key, IPv6)
			if had && o.Err() == nil {
				t.Fatalf("%q: %s is of every type at once", text, key)
			}
		}
		for _, path := range o.Unknown() {
			if !strings.HasPrefix(path, "Backend.") || strings.EqualFold(path, "Backend.a") {
				t.Fatalf("%q: unknown %q", text, path)
			}
		}
	})
}

func TestParseOnConflict(t *testing.T) {
	for _, o := range []OnConflict{Renumber, Fence, Keep} {
		if got, err := ParseOnConflict(o.String()); err != nil || got != o {
			t.Errorf("%s reads as %s, %v", o, got, err)
		}
	}
	if _, err := ParseOnConflict("panic"); err == nil || err.Error() != `"panic": must be renumber, fence or keep` {
		t.Errorf("panic: %v", err)
	}
}

// The clock of the machine counts suspended time: it is the one that
// /proc/uptime shows.
func TestSystemClock(t *testing.T) {
	text, err := os.ReadFile("/proc/uptime")
	if err != nil {
		t.Skip("needs /proc/uptime: ", err)
	}
	seconds, _, _ := strings.Cut(string(text), " ")
	var want float64
	if err := json.Unmarshal([]byte(seconds), &want); err != nil {
		t.Fatal(err)
	}
	if got := (SystemClock{}).Uptime().Seconds(); got < want-1 || got > want+60 {
		t.Errorf("Uptime = %.2f s, /proc/uptime says %.2f", got, want)
	}
	timer := SystemClock{}.Timer(0)
	<-timer.C
	timer.Stop()
	timer.Stop()
}
