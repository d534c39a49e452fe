package subnet

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// noIPv4 stands for the missing IPv4 half in flannel's keys, and noPublicIP for
// the missing address in its values: the zero values of its types.
const (
	noIPv4     = "0.0.0.0-0"
	noPublicIP = "0.0.0.0"
)

// ParseSubnet reads the last element of a lease's key in flannel's form:
// "10.5.52.0-24", "10.5.1.0-24&fd05:0:0:52::-64", or with IPv6 alone
// "0.0.0.0-0&fd05:0:0:52::-64". A key that names a subnet in another spelling
// than [Subnet.Key] (host bits set, say) is an error that comes with the subnet
// it occupies: every other error comes with the zero Subnet.
func ParseSubnet(key string) (Subnet, error) {
	var s Subnet
	v4, v6, dual := strings.Cut(key, "&")
	halves := [...]string{IPv4: v4, IPv6: v6}
	for _, f := range Families() {
		if f == IPv6 && !dual || f == IPv4 && dual && v4 == noIPv4 {
			continue
		}
		p, err := parseHalf(halves[f], f)
		if err != nil {
			return Subnet{}, fmt.Errorf("parse key %q: %w", key, err)
		}
		s[f] = p
	}
	if canonical := s.Key(); canonical != key {
		return s, fmt.Errorf("parse key %q: must be written %q", key, canonical)
	}
	return s, nil
}

// parseHalf reads "10.5.52.0-24" or "fd05:0:0:52::-64" and masks it.
func parseHalf(s string, f Family) (netip.Prefix, error) {
	text, length, found := strings.Cut(s, "-")
	if !found {
		return netip.Prefix{}, errors.New("no subnet")
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, err
	}
	if a.Zone() != "" || a.Is4In6() || FamilyOf(a) != f {
		return netip.Prefix{}, fmt.Errorf("%s: no %s address", text, f)
	}
	bits, err := strconv.ParseUint(length, 10, 8)
	if err != nil || bits == 0 || int(bits) > f.Bits() {
		return netip.Prefix{}, fmt.Errorf("length %q: must be between 1 and %d", length, f.Bits())
	}
	return netip.PrefixFrom(a, int(bits)).Masked(), nil
}

// Key is the last element of the subnet's path in the store, to the letter as
// flannel writes it.
func (s Subnet) Key() string {
	half := func(p netip.Prefix) string { return p.Addr().String() + "-" + strconv.Itoa(p.Bits()) }
	key := noIPv4
	if s[IPv4].IsValid() {
		key = half(s[IPv4])
	}
	if s[IPv6].IsValid() {
		key += "&" + half(s[IPv6])
	}
	return key
}

// String returns the prefixes, joined by "," where there are two.
func (s Subnet) String() string {
	var parts []string
	for _, p := range s {
		if p.IsValid() {
			parts = append(parts, p.String())
		}
	}
	return strings.Join(parts, ",")
}

// IsZero reports whether s covers nothing.
func (s Subnet) IsZero() bool { return s == Subnet{} }

// Overlaps reports whether s and t share an address in any family.
func (s Subnet) Overlaps(t Subnet) bool {
	for f, p := range s {
		if p.Overlaps(t[f]) {
			return true
		}
	}
	return false
}

// Compare orders subnets by their IPv4 half and then by their IPv6 half, each
// by address and then by length, a missing half first.
func (s Subnet) Compare(t Subnet) int {
	for f, p := range s {
		c := cmp.Or(p.Addr().Compare(t[f].Addr()), cmp.Compare(p.Bits(), t[f].Bits()))
		if c != 0 {
			return c
		}
	}
	return 0
}

// MarshalJSON returns the value itself.
func (r RawJSON) MarshalJSON() ([]byte, error) {
	if r == "" {
		return []byte("null"), nil
	}
	return []byte(r), nil
}

// UnmarshalJSON takes the value as it stands; null is the empty RawJSON.
func (r *RawJSON) UnmarshalJSON(b []byte) error {
	*r = RawJSON(b)
	if *r == "null" {
		*r = ""
	}
	return nil
}

// wireAttrs is the value of a lease's key: flannel's LeaseAttrs, whose order
// and omissions it keeps, and behind them what is ours. Flannel ignores the
// latter; its keys decode without regard to case, as encoding/json does.
type wireAttrs struct {
	PublicIP      *string
	PublicIPv6    *string
	BackendType   string  `json:",omitempty"`
	BackendData   RawJSON `json:",omitempty"`
	BackendV6Data RawJSON `json:",omitempty"`
	Owner         NodeID  `json:",omitempty"`
	Instance      string  `json:",omitempty"`

	Challenge *wireChallenge `json:",omitempty"`
}

// wireChallenge is a [Challenge]; what is empty is left out.
type wireChallenge struct {
	Instance   string  `json:",omitempty"`
	PublicIP   *string `json:",omitempty"`
	PublicIPv6 *string `json:",omitempty"`
}

// MarshalJSON encodes a as flannel would, byte for byte, with Owner, Instance
// and Challenge behind flannel's own fields.
func (a Attrs) MarshalJSON() ([]byte, error) {
	w := wireAttrs{
		BackendType:   a.BackendType,
		BackendData:   a.BackendData[IPv4],
		BackendV6Data: a.BackendData[IPv6],
		Owner:         a.Owner,
		Instance:      a.Instance,
	}
	if w.PublicIP, w.PublicIPv6 = showPublicIP(a.PublicIP); w.PublicIP == nil {
		none := noPublicIP
		w.PublicIP = &none
	}
	if c := a.Challenge; !c.IsZero() {
		w.Challenge = &wireChallenge{Instance: c.Instance}
		w.Challenge.PublicIP, w.Challenge.PublicIPv6 = showPublicIP(c.PublicIP)
	}
	return json.Marshal(w)
}

// showPublicIP is the addresses as text; nil: there is none.
func showPublicIP(addrs ByFamily[netip.Addr]) (v4, v6 *string) {
	var text ByFamily[*string]
	for f, a := range addrs {
		if a.IsValid() {
			s := a.String()
			text[f] = &s
		}
	}
	return text[IPv4], text[IPv6]
}

// UnmarshalJSON decodes a value written by us or by flannel. Unknown fields are
// ignored. An address that cannot be read is an error, and so is a value
// without any address and owner: it would belong to nobody.
func (a *Attrs) UnmarshalJSON(b []byte) error {
	out, usual := scanAttrs(b)
	if !usual {
		var err error
		if out, err = decodeAttrs(b); err != nil {
			return err
		}
	}
	*a = out
	return nil
}

// decodeAttrs decodes a value in whatever form it has.
func decodeAttrs(b []byte) (Attrs, error) {
	var w wireAttrs
	err := json.Unmarshal(b, &w)
	if errors.As(err, new(*json.SyntaxError)) {
		return Attrs{}, err // as who is called by json.Unmarshal never sees it
	}
	if err != nil {
		return Attrs{}, fmt.Errorf("decode lease: %w", err)
	}
	out := Attrs{BackendType: w.BackendType, Owner: w.Owner, Instance: w.Instance}
	if out.PublicIP, err = parsePublicIPs(w.PublicIP, w.PublicIPv6); err != nil {
		return Attrs{}, fmt.Errorf("decode lease: %w", err)
	}
	data := [...]RawJSON{IPv4: w.BackendData, IPv6: w.BackendV6Data}
	for _, f := range Families() {
		if out.BackendData[f], err = compact(data[f]); err != nil {
			return Attrs{}, fmt.Errorf("decode lease: %w", err)
		}
	}
	if c := w.Challenge; c != nil {
		out.Challenge.Instance = c.Instance
		if out.Challenge.PublicIP, err = parsePublicIPs(c.PublicIP, c.PublicIPv6); err != nil {
			return Attrs{}, fmt.Errorf("decode lease: Challenge: %w", err)
		}
	}
	if out.PublicIP == (ByFamily[netip.Addr]{}) && out.Owner == "" {
		return Attrs{}, errors.New("decode lease: has neither PublicIP nor Owner")
	}
	return out, nil
}

// canonical is a as it reads after a round through the store, so that what is
// wanted compares with what is there. What cannot be encoded stays as it is: the
// store will refuse it.
func (a Attrs) canonical() Attrs {
	var c Attrs
	text, err := json.Marshal(a)
	if err != nil || json.Unmarshal(text, &c) != nil {
		return a
	}
	return c
}

// parsePublicIPs reads the addresses of both families.
func parsePublicIPs(v4, v6 *string) (ByFamily[netip.Addr], error) {
	var addrs ByFamily[netip.Addr]
	var err error
	if addrs[IPv4], err = parsePublicIP(v4, IPv4); err != nil {
		return addrs, fmt.Errorf("PublicIP: %w", err)
	}
	if addrs[IPv6], err = parsePublicIP(v6, IPv6); err != nil {
		return addrs, fmt.Errorf("PublicIPv6: %w", err)
	}
	return addrs, nil
}

// parsePublicIP reads an address; flannel's zero value is none.
func parsePublicIP(text *string, f Family) (netip.Addr, error) {
	if text == nil || f == IPv4 && *text == noPublicIP {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(*text)
	if err != nil {
		return netip.Addr{}, err
	}
	if a.Zone() != "" || a.Is4In6() || FamilyOf(a) != f || a.IsUnspecified() {
		return netip.Addr{}, fmt.Errorf("%s: must be an %s address of a host", *text, f)
	}
	return a, nil
}

// compact removes insignificant space, so that equal values compare as equal.
func compact(r RawJSON) (RawJSON, error) {
	if r == "" {
		return "", nil
	}
	var b bytes.Buffer
	if err := json.Compact(&b, []byte(r)); err != nil {
		return "", err
	}
	return RawJSON(b.String()), nil
}
