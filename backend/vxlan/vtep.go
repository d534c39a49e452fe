package vxlan

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// ErrOtherVNI: a peer's tunnel is another than ours. It is so for a while when
// the config's VNI is changed.
var ErrOtherVNI = errors.New("its VNI is another")

// deriveMAC gives a host the same MAC for ever: the first 48 bits of
// SHA-256("flanneld-go vtep" 0 node 0 VNI 0 family), made a locally
// administered unicast address (IEEE 802-2014, 8.4).
func deriveMAC(node subnet.NodeID, vni int, f subnet.Family) kernel.MAC {
	h := sha256.Sum256([]byte("flanneld-go vtep\x00" + string(node) + "\x00" + strconv.Itoa(vni) + "\x00" + f.String()))
	mac := kernel.MAC(h[:6])
	mac[0] = mac[0]&^0x01 | 0x02
	return mac
}

// unicast reports whether mac can be a VTEP's.
func unicast(mac kernel.MAC) bool { return mac != kernel.MAC{} && mac[0]&0x01 == 0 }

// vtep is the BackendData of a lease, in flannel's form.
type vtep struct {
	// VNI is absent in leases of old flannels. A current one holds it in 16
	// bits: it writes the low ones and cannot read more.
	VNI     *int   `json:"VNI,omitempty"`
	VtepMAC string `json:"VtepMAC"`
}

// marshalVTEP writes BackendData that flannel can read.
func marshalVTEP(vni int, mac kernel.MAC) (subnet.RawJSON, error) {
	low := vni & 0xffff
	b, err := json.Marshal(vtep{VNI: &low, VtepMAC: mac.String()})
	if err != nil {
		return "", fmt.Errorf("encode backend data: %w", err)
	}
	return subnet.RawJSON(b), nil
}

// parseVTEP reads a peer's BackendData and returns its MAC.
func parseVTEP(raw subnet.RawJSON, vni int) (kernel.MAC, error) {
	if mac, usual := scanVTEP(string(raw), vni); usual {
		return mac, nil
	}
	return decodeVTEP(raw, vni)
}

// decodeVTEP reads BackendData in whatever form it has.
func decodeVTEP(raw subnet.RawJSON, vni int) (kernel.MAC, error) {
	var v vtep
	if raw == "" {
		return kernel.MAC{}, errors.New("read backend data: there is none")
	}
	if err := json.Unmarshal([]byte(raw), &v); err != nil {
		return kernel.MAC{}, fmt.Errorf("read backend data: %w", err)
	}
	if v.VNI != nil && *v.VNI != vni && *v.VNI != vni&0xffff {
		return kernel.MAC{}, fmt.Errorf("%w: %d, not %d", ErrOtherVNI, *v.VNI, vni)
	}
	mac, err := kernel.ParseMAC(v.VtepMAC)
	if err != nil {
		return kernel.MAC{}, fmt.Errorf("read backend data: VtepMAC: %w", err)
	}
	if !unicast(mac) {
		return kernel.MAC{}, fmt.Errorf("read backend data: VtepMAC: %s is no unicast address", mac)
	}
	return mac, nil
}

// scanVTEP reads BackendData that is to the letter what flannel and we write, for this
// VNI: every full check reads one for each peer. Whatever is unusual or wrong is for the
// JSON decoder to judge.
func scanVTEP(raw string, vni int) (mac kernel.MAC, usual bool) {
	rest, begins := strings.CutPrefix(raw, `{"VNI":`)
	number, text, found := strings.Cut(rest, `,"VtepMAC":"`)
	text, ends := strings.CutSuffix(text, `"}`)
	if !begins || !found || !ends || len(text) != len("00:00:00:00:00:00") {
		return mac, false
	}
	if n, err := strconv.Atoi(number); err != nil || strconv.Itoa(n) != number || n != vni && n != vni&0xffff {
		return mac, false
	}
	for i := range mac {
		octet := text[3*i : 3*i+2]
		b, err := strconv.ParseUint(octet, 16, 8)
		if err != nil || i > 0 && text[3*i-1] != ':' {
			return kernel.MAC{}, false
		}
		mac[i] = byte(b)
	}
	return mac, unicast(mac)
}
