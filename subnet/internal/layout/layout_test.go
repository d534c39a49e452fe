package layout

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/flanneld-go/flanneld-go/subnet"
)

const value = `{"PublicIP":"192.0.2.1","PublicIPv6":null}`

func v4(s string) subnet.Subnet { return subnet.Subnet{subnet.IPv4: netip.MustParsePrefix(s)} }

func TestRead(t *testing.T) {
	attrs := subnet.Attrs{PublicIP: subnet.ByFamily[netip.Addr]{subnet.IPv4: netip.MustParseAddr("192.0.2.1")}}
	got := Read([]KV{
		{Key: "nonsense", Value: []byte(value), Modified: 3},
		{Key: "10.5.9.0-24", Value: []byte(value), Lease: 7, Created: 4, Modified: 5},
		{Key: "10.5.1.0-24", Value: []byte(`{"PublicIP":`), Modified: 6},
		{Key: "10.5.2.9-24", Value: []byte(value), Modified: 7},
		{Key: "10.5.3.0-24", Value: []byte(value), Created: 8, Modified: 8},
	})
	want := Content{
		Leases: []subnet.Lease{
			{Subnet: v4("10.5.3.0/24"), Attrs: attrs, Created: 8, Modified: 8},
			{Subnet: v4("10.5.9.0/24"), Attrs: attrs, ID: 7, Created: 4, Modified: 5},
		},
		Bad: []subnet.BadKey{
			{Key: "10.5.1.0-24", Occupies: v4("10.5.1.0/24"), Modified: 6},
			{Key: "10.5.2.9-24", Occupies: v4("10.5.2.0/24"), Modified: 7},
			{Key: "nonsense", Modified: 3},
		},
	}
	opts := cmp.Options{cmpopts.IgnoreFields(subnet.BadKey{}, "Err"), cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})}
	if diff := cmp.Diff(want, got, opts); diff != "" {
		t.Errorf("Read (-want +got):\n%s", diff)
	}
	for _, b := range got.Bad {
		if b.Err == nil || !strings.Contains(b.Err.Error(), b.Key) {
			t.Errorf("bad key %s: error %v does not name it", b.Key, b.Err)
		}
	}
}

func TestWriteRefusesWhatNobodyCouldRead(t *testing.T) {
	for name, l := range map[string]subnet.Lease{
		"no subnet":      {Attrs: subnet.Attrs{Owner: "n"}},
		"nobody's":       {Subnet: v4("10.5.1.0/24")},
		"data not JSON":  {Subnet: v4("10.5.1.0/24"), Attrs: subnet.Attrs{Owner: "n", BackendData: subnet.ByFamily[subnet.RawJSON]{"{"}}},
		"host bits set":  {Subnet: v4("10.5.1.9/24"), Attrs: subnet.Attrs{Owner: "n"}},
		"length of zero": {Subnet: v4("0.0.0.0/0"), Attrs: subnet.Attrs{Owner: "n"}},
	} {
		if e, err := Write(l); err == nil {
			t.Errorf("%s: Write = %+v, want an error", name, e)
		}
	}
}

func TestWriteReturnsAttrsAsRead(t *testing.T) {
	l := subnet.Lease{Subnet: v4("10.5.1.0/24"), Attrs: subnet.Attrs{Owner: "n", BackendData: subnet.ByFamily[subnet.RawJSON]{`{ "VNI": 1 }`}}}
	e, err := Write(l)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := e.Attrs.BackendData[subnet.IPv4], subnet.RawJSON(`{"VNI":1}`); got != want {
		t.Errorf("data = %s, want %s", got, want)
	}
}
