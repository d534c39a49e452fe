package vxlan

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// The MACs are in leases of hosts that run: this derivation can never change.
func TestDeriveMACIsForEver(t *testing.T) {
	tests := []struct {
		node subnet.NodeID
		vni  int
		f    subnet.Family
		want string
	}{
		{"6b1f0f2a4c5d4e7f8091a2b3c4d5e6f7", 1, subnet.IPv4, "4a:d1:51:02:10:c5"},
		{"6b1f0f2a4c5d4e7f8091a2b3c4d5e6f7", 1, subnet.IPv6, "26:b5:4f:cb:15:3a"},
		{"6b1f0f2a4c5d4e7f8091a2b3c4d5e6f7", 2, subnet.IPv4, "3e:f4:66:4c:75:95"},
		{"h1", 1, subnet.IPv4, "5e:97:14:07:72:e5"},
		{"", 16777215, subnet.IPv4, "06:7e:6d:04:b0:e7"},
	}
	for _, tc := range tests {
		if got := deriveMAC(tc.node, tc.vni, tc.f).String(); got != tc.want {
			t.Errorf("deriveMAC(%q, %d, %s) = %s, want %s", tc.node, tc.vni, tc.f, got, tc.want)
		}
	}
}

func TestDeriveMACIsLocalUnicast(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mac := deriveMAC(subnet.NodeID(rapid.String().Draw(t, "node")), rapid.IntRange(1, maxVNI).Draw(t, "vni"), subnet.IPv4)
		if !unicast(mac) || mac[0]&0x02 == 0 {
			t.Fatalf("%s is no locally administered unicast address", mac)
		}
	})
}

func TestDeviceNameFits(t *testing.T) {
	tests := []struct {
		f    subnet.Family
		vni  int
		want string
	}{
		{subnet.IPv4, 1, "flannel.1"},
		{subnet.IPv6, 1, "flannel-v6.1"},
		{subnet.IPv4, 9999999, "flannel.9999999"},
		{subnet.IPv4, 10000000, "fl.10000000"},
		{subnet.IPv6, 9999, "flannel-v6.9999"},
		{subnet.IPv6, 10000, "fl6.10000"},
		{subnet.IPv6, maxVNI, "fl6.16777215"},
	}
	for _, tc := range tests {
		if got := deviceName(tc.f, tc.vni); got != tc.want || len(got) > maxName {
			t.Errorf("deviceName(%s, %d) = %q, want %q", tc.f, tc.vni, got, tc.want)
		}
	}
}

func TestParseVTEP(t *testing.T) {
	tests := map[string]struct {
		raw  subnet.RawJSON
		vni  int
		want string
		err  string
	}{
		"flannel's":              {raw: `{"VNI":1,"VtepMAC":"5e:ca:ce:aa:6f:af"}`, vni: 1, want: "5e:ca:ce:aa:6f:af"},
		"old flannel's":          {raw: `{"VtepMAC":"5e:ca:ce:aa:6f:af"}`, vni: 7, want: "5e:ca:ce:aa:6f:af"},
		"unknown keys":           {raw: `{"VNI":1,"VtepMAC":"5e:ca:ce:aa:6f:af","X":[]}`, vni: 1, want: "5e:ca:ce:aa:6f:af"},
		"a VNI of 17 bits whole": {raw: `{"VNI":65537,"VtepMAC":"5e:ca:ce:aa:6f:af"}`, vni: 65537, want: "5e:ca:ce:aa:6f:af"},
		"a VNI of 17 bits cut":   {raw: `{"VNI":1,"VtepMAC":"5e:ca:ce:aa:6f:af"}`, vni: 65537, want: "5e:ca:ce:aa:6f:af"},
		"another VNI":            {raw: `{"VNI":2,"VtepMAC":"5e:ca:ce:aa:6f:af"}`, vni: 1, err: "its VNI is another: 2, not 1"},
		"nothing":                {raw: ``, vni: 1, err: "read backend data: there is none"},
		"null":                   {raw: `null`, vni: 1, err: `read backend data: VtepMAC: parse mac "": not an ethernet address`},
		"no JSON":                {raw: `{`, vni: 1, err: "read backend data: unexpected end of JSON input"},
		"no MAC":                 {raw: `{"VNI":1}`, vni: 1, err: `read backend data: VtepMAC: parse mac "": not an ethernet address`},
		"a MAC of 8 bytes":       {raw: `{"VtepMAC":"02:00:00:00:00:00:00:01"}`, vni: 1, err: `read backend data: VtepMAC: parse mac "02:00:00:00:00:00:00:01": not an ethernet address`},
		"broadcast":              {raw: `{"VtepMAC":"ff:ff:ff:ff:ff:ff"}`, vni: 1, err: "read backend data: VtepMAC: ff:ff:ff:ff:ff:ff is no unicast address"},
		"zero":                   {raw: `{"VtepMAC":"00:00:00:00:00:00"}`, vni: 1, err: "read backend data: VtepMAC: 00:00:00:00:00:00 is no unicast address"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			mac, err := parseVTEP(tc.raw, tc.vni)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if diff := cmp.Diff(tc.err, got); diff != "" {
				t.Fatalf("parseVTEP() error (-want +got)\n%s", diff)
			}
			if err == nil && mac.String() != tc.want {
				t.Errorf("parseVTEP() = %s, want %s", mac, tc.want)
			}
		})
	}
}

// What flannel reads into 16 bits must fit there.
func TestMarshalVTEPIsFlannels(t *testing.T) {
	mac := kernel.MAC{0x5e, 0xca, 0xce, 0xaa, 0x6f, 0xaf}
	for vni, want := range map[int]subnet.RawJSON{
		1:      `{"VNI":1,"VtepMAC":"5e:ca:ce:aa:6f:af"}`,
		65535:  `{"VNI":65535,"VtepMAC":"5e:ca:ce:aa:6f:af"}`,
		maxVNI: `{"VNI":65535,"VtepMAC":"5e:ca:ce:aa:6f:af"}`,
		65536:  `{"VNI":0,"VtepMAC":"5e:ca:ce:aa:6f:af"}`,
	} {
		got, err := marshalVTEP(vni, mac)
		if err != nil || got != want {
			t.Errorf("marshalVTEP(%d) = %s, %v, want %s", vni, got, err, want)
		}
	}
}

// 10,000 of these are read at a start.
func TestUsualVTEPs(t *testing.T) {
	for vni, raw := range map[int]string{1: `{"VNI":1,"VtepMAC":"5e:ca:ce:aa:6f:af"}`, 65537: `{"VNI":1,"VtepMAC":"02:00:00:00:00:0A"}`} {
		if mac, usual := scanVTEP(raw, vni); !usual || !strings.EqualFold(mac.String(), raw[20:37]) {
			t.Errorf("%s is unusual, or reads as %s", raw, mac)
		}
		if n := testing.AllocsPerRun(10, func() { scanVTEP(raw, vni) }); n != 0 {
			t.Errorf("%v allocations for %s", n, raw)
		}
	}
}

func FuzzParseVTEP(f *testing.F) {
	f.Add(`{"VNI":1,"VtepMAC":"5e:ca:ce:aa:6f:af"}`, 1)
	f.Add(`{"VtepMAC":"ff:ff:ff:ff:ff:ff"}`, 1)
	f.Add(`{"VNI":01,"VtepMAC":"5e:ca:ce:aa:6f:af"}`, 1)
	f.Add(`{"VNI":1,"VtepMAC":"5e:ca:ce:aa:6f-af"}`, 1)
	f.Add(`{"VNI":1,"VtepMAC":"5E:CA:CE:+A:6F:AF"}`, 1)
	f.Add(`{"VNI":1,"VtepMAC":"01:00:00:00:00:01"}`, 1)
	f.Add(`{"VNI":1,"VtepMAC":"02:00:00:00:00:01"} `, 65537)
	f.Add(`{"VNI":-1,"VtepMAC":"02:00:00:00:00:01"}`, 65535)
	f.Fuzz(func(t *testing.T, raw string, vni int) {
		mac, err := parseVTEP(subnet.RawJSON(raw), vni)
		if slow, slowErr := decodeVTEP(subnet.RawJSON(raw), vni); slow != mac || fmt.Sprint(slowErr) != fmt.Sprint(err) {
			t.Fatalf("%s: %s, %v; by the JSON decoder %s, %v", raw, mac, err, slow, slowErr)
		}
		if err != nil {
			return
		}
		if !unicast(mac) {
			t.Fatalf("accepted %s", mac)
		}
		written, err := marshalVTEP(vni, mac)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseVTEP(written, vni); err != nil || again != mac {
			t.Fatalf("%s does not read back: %s, %v", written, again, err)
		}
	})
}

func FuzzParseOptions(f *testing.F) {
	f.Add(`{"Type":"vxlan"}`)
	f.Add(`{"Type":"vxlan","VNI":7,"Port":4789,"MTU":1400,"DirectRouting":true,"GBP":true,"Learning":true}`)
	f.Add(`{"vni":"1","port":1e3,"mtu":-1}`)
	f.Fuzz(func(t *testing.T, raw string) {
		c := subnet.Config{Backend: subnet.RawJSON(raw)}
		o, _, err := ParseOptions(&c)
		if err != nil {
			if strings.TrimSpace(err.Error()) == "" {
				t.Fatal("an error without words")
			}
			return
		}
		if o.VNI < 1 || o.VNI > maxVNI || o.Port < 1 || o.Port > 65535 || o.MTU < 0 || o.MTU > maxMTU {
			t.Fatalf("accepted %+v", o)
		}
	})
}
