package subnet

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// usualValues are what scanAttrs is for.
func usualValues() map[string]string {
	return map[string]string{
		"flannel, vxlan":     `{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5e:ca:ce:aa:6f:af"}}`,
		"flannel, host-gw":   `{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}`,
		"flannel, udp":       `{"PublicIP":"192.0.2.1","PublicIPv6":null}`,
		"flannel, IPv6":      `{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendV6Data":{"VNI":0,"VtepMAC":"5e:ca:ce:aa:6f:af"}}`,
		"ours, both":         `{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5e:ca:ce:aa:6f:af"},"BackendV6Data":{"VNI":1,"VtepMAC":"5e:ca:ce:aa:6f:b0"},"Owner":"n","Instance":"i"}`,
		"reserved by a node": `{"PublicIP":"0.0.0.0","PublicIPv6":null,"Owner":"n"}`,
		"data is null":       `{"PublicIP":"192.0.2.1","BackendData":null}`,
	}
}

// unusualValues are for encoding/json, readable or not.
func unusualValues() []string {
	return []string{
		``, `{`, `{}`, `null`, `[]`, `{"PublicIP":"192.0.2.1"`, `{"PublicIP":"192.0.2.1",}`, `{"PublicIP":"192.0.2.1"}x`, `{"PublicIP":"192.0.2.1"} `,
		`{"PublicIP":"0.0.0.0"}`, `{"PublicIP":""}`, `{"PublicIP":"2001:db8::1"}`, `{"PublicIPv6":"192.0.2.1"}`, `{"PublicIP":"192.0.2.1%a"}`, `{"PublicIP":1}`,
		`{"publicip":"192.0.2.1"}`, `{"PublicIP":"192.0.2.1","PublicIP":"192.0.2.2"}`, `{"PublicIP":"192.0.2.1","PublicIP":null}`, `{"PublicIP":"192.0.2.1","New":1}`,
		`{"Owner":"a\u0062"}`, "{\"Owner\":\"\xff\"}", `{"Owner":"é"}`, "{\"Owner\":\"a\nb\"}", `{"Owner":null}`, `{"Owner":"n","Challenge":{"Instance":"i"}}`,
		`{"Owner":"n","BackendData":{ "VNI": 1 }}`, `{"Owner":"n","BackendData":{}}`, `{"Owner":"n","BackendData":"x"}`, `{"Owner":"n","BackendData":7}`,
		`{"Owner":"n","BackendData":{"a":01}}`, `{"Owner":"n","BackendData":{"a":1"b":2}}`, `{"Owner":"n","BackendData":{"a":1,}}`, `{"Owner":"n","BackendData":{"a":-1}}`,
		`{"Owner":"n","BackendData":{"a":1.5e3}}`, `{"Owner":"n","BackendData":{"a":[1]}}`, `{"Owner":"n","BackendData":{"a":}}`, `{"Owner":"n","BackendData":{"a"}}`, `{"Owner":"n""Instance":"i"}`,
	}
}

// FuzzScanAttrs: what the fast decoder takes is what encoding/json makes of it.
func FuzzScanAttrs(f *testing.F) {
	for _, text := range usualValues() {
		f.Add([]byte(text))
	}
	for _, text := range unusualValues() {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got, usual := scanAttrs(text)
		if !usual {
			return
		}
		want, err := decodeAttrs(text)
		if err != nil {
			t.Fatalf("takes %s, which is none: %v", text, err)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Fatalf("%s (-want +got):\n%s", text, diff)
		}
	})
}

// What flannel and we write must not go the slow way, and what is unusual must.
func TestScanAttrsTakesWhatIsUsual(t *testing.T) {
	for name, text := range usualValues() {
		if _, usual := scanAttrs([]byte(text)); !usual {
			t.Errorf("%s: not taken: %s", name, text)
		}
	}
	for _, text := range unusualValues() {
		if _, usual := scanAttrs([]byte(text)); usual {
			t.Errorf("taken: %s", text)
		}
	}
	a := Attrs{BackendType: "vxlan", Owner: "n", Instance: "i"}
	a.PublicIP[IPv4] = netip.MustParseAddr("192.0.2.1")
	a.BackendData[IPv4] = `{"VNI":1,"VtepMAC":"5e:ca:ce:aa:6f:af"}`
	text, err := a.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	got, usual := scanAttrs(text)
	if !usual || got != a {
		t.Errorf("what we write: usual %t, %+v, want %+v", usual, got, a)
	}
	// The address's text, and the fields that are kept.
	if n := testing.AllocsPerRun(100, func() { scanAttrs(text) }); n > 5 {
		t.Errorf("%v allocations, want at most 5", n)
	}
}

func BenchmarkDecodeAttrs(b *testing.B) {
	text := []byte(usualValues()["ours, both"])
	for name, decode := range map[string]func(){
		"scan": func() { scanAttrs(text) },
		"json": func() { _, _ = decodeAttrs(text) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				decode()
			}
		})
	}
}
