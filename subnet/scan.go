package subnet

import "net/netip"

// scanAttrs decodes a lease's value in the form in which flannel and we write it, in
// one pass: a start reads one for each host of the network. Whatever is unusual or
// wrong is for [decodeAttrs] to judge: then usual is false, and a means nothing.
//
// Usual are the names that we know, each once and in their own case, with no space,
// no escape and nothing beyond ASCII, and backend data of one level.
func scanAttrs(text []byte) (a Attrs, usual bool) {
	s := scanner{text}
	if !s.skip("{") {
		return a, false
	}
	for seen := uint8(0); ; {
		name, ok := s.quoted()
		if !ok || !s.skip(":") {
			return a, false
		}
		field, ok := s.member(string(name), &a)
		if !ok || seen&field != 0 {
			return a, false
		}
		seen |= field
		if s.skip(",") {
			continue
		}
		owned := a.PublicIP != ByFamily[netip.Addr]{} || a.Owner != ""
		return a, s.skip("}") && len(s.rest) == 0 && owned
	}
}

// scanner reads text from its front.
type scanner struct{ rest []byte }

// member reads the value of a field into a, and returns the field's bit.
func (s *scanner) member(name string, a *Attrs) (field uint8, ok bool) {
	switch name {
	case "PublicIP":
		a.PublicIP[IPv4], ok = s.address(IPv4)
		return 1 << 0, ok
	case "PublicIPv6":
		a.PublicIP[IPv6], ok = s.address(IPv6)
		return 1 << 1, ok
	case "BackendType":
		a.BackendType, ok = s.text()
		return 1 << 2, ok
	case "BackendData":
		a.BackendData[IPv4], ok = s.data()
		return 1 << 3, ok
	case "BackendV6Data":
		a.BackendData[IPv6], ok = s.data()
		return 1 << 4, ok
	case "Owner":
		owner, ok := s.text()
		a.Owner = NodeID(owner)
		return 1 << 5, ok
	case "Instance":
		a.Instance, ok = s.text()
		return 1 << 6, ok
	}
	return 0, false
}

// address reads an address or null.
func (s *scanner) address(f Family) (netip.Addr, bool) {
	if s.skip("null") {
		return netip.Addr{}, true
	}
	text, ok := s.text()
	if !ok {
		return netip.Addr{}, false
	}
	addr, err := parsePublicIP(&text, f)
	return addr, err == nil
}

// text reads a string.
func (s *scanner) text() (string, bool) {
	text, ok := s.quoted()
	return string(text), ok
}

// data reads null, or an object of strings and integers. What is returned does not
// keep the value that it was read from.
func (s *scanner) data() (RawJSON, bool) {
	if s.skip("null") {
		return "", true
	}
	from := s.rest
	if !s.object() {
		return "", false
	}
	return RawJSON(from[:len(from)-len(s.rest)]), true
}

// object passes over one of strings and integers.
func (s *scanner) object() bool {
	if !s.skip("{") {
		return false
	}
	for {
		if _, ok := s.quoted(); !ok || !s.skip(":") || !s.scalar() {
			return false
		}
		if !s.skip(",") {
			return s.skip("}")
		}
	}
}

// scalar passes over a string or an integer.
func (s *scanner) scalar() bool {
	if _, ok := s.quoted(); ok {
		return true
	}
	digits := 0
	for digits < len(s.rest) && '0' <= s.rest[digits] && s.rest[digits] <= '9' {
		digits++
	}
	if digits == 0 || digits > 1 && s.rest[0] == '0' {
		return false
	}
	s.rest = s.rest[digits:]
	return true
}

// quoted reads a string whose bytes stand for themselves. It is a part of the text.
func (s *scanner) quoted() ([]byte, bool) {
	if len(s.rest) == 0 || s.rest[0] != '"' {
		return nil, false
	}
	for i, c := range s.rest[1:] {
		switch {
		case c == '"':
			text := s.rest[1 : 1+i]
			s.rest = s.rest[i+2:]
			return text, true
		case c < ' ' || c > '~' || c == '\\':
			return nil, false
		}
	}
	return nil, false
}

// skip passes over token, if it is what follows.
func (s *scanner) skip(token string) bool {
	if len(s.rest) < len(token) || string(s.rest[:len(token)]) != token {
		return false
	}
	s.rest = s.rest[len(token):]
	return true
}
