package daemonconfig

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Env is the content of subnet.env: what a host leased, for programs that read
// it (Docker's units, the CNI flannel plugin, mk-docker-opts.sh).
type Env struct {
	// Networks are the overlay's ranges and Subnets this host's slices of
	// them, IPv4 then IPv6, masked; both zero where a family is off.
	Networks, Subnets [2]netip.Prefix
	// MTU is in bytes and suits both families; 0: not known.
	MTU int
	// IPMasq says that flannel masquerades, so that Docker must not.
	IPMasq bool
}

// The variables of subnet.env.
const (
	keyMTU    = "FLANNEL_MTU"
	keyIPMasq = "FLANNEL_IPMASQ"
)

// networkKey and subnetKey name the variables that exist per family.
func networkKey(family int) string {
	return [2]string{"FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"}[family]
}

func subnetKey(family int) string {
	return [2]string{"FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"}[family]
}

// HostAddr is the first address of a subnet with the subnet's length: the
// address of the bridge (10.5.72.0/24 -> 10.5.72.1/24). It is the form of
// FLANNEL_SUBNET and of Docker's bip. The subnet is at most a /30 or /126.
func HostAddr(subnet netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(subnet.Masked().Addr().Next(), subnet.Bits())
}

// Format returns the file in flannel's order and form.
func (e Env) Format() []byte {
	var b bytes.Buffer
	for family := range e.Subnets {
		if !e.Subnets[family].IsValid() {
			continue
		}
		fmt.Fprintf(&b, "%s=%s\n", networkKey(family), e.Networks[family])
		fmt.Fprintf(&b, "%s=%s\n", subnetKey(family), HostAddr(e.Subnets[family]))
	}
	fmt.Fprintf(&b, "%s=%d\n", keyMTU, e.MTU)
	fmt.Fprintf(&b, "%s=%t\n", keyIPMasq, e.IPMasq)
	return b.Bytes()
}

// ParseEnv reads a subnet.env, whoever wrote it: ours, flannel's, or one that
// was edited by hand, with quotes, comments, `export`, other variables, a byte
// order mark or CRLF. What is absent is zero in the result. All problems are
// returned at once, each a [*PositionError].
func ParseEnv(text []byte) (Env, error) {
	var (
		env  Env
		errs []error
		line int
	)
	for raw := range bytes.Lines(bytes.TrimPrefix(text, []byte(utf8BOM))) {
		line++
		if err := env.parseLine(strings.TrimSpace(string(raw))); err != nil {
			errs = append(errs, &PositionError{Line: line, Err: err})
		}
	}
	if err := errors.Join(errs...); err != nil {
		return Env{}, err
	}
	return env, nil
}

// parseLine takes one assignment into e; an empty line or comment is none.
func (e *Env) parseLine(line string) error {
	if line == "" || line[0] == '#' {
		return nil
	}
	if rest, ok := strings.CutPrefix(line, "export"); ok && strings.TrimLeft(rest, " \t") != rest {
		line = strings.TrimLeft(rest, " \t")
	}
	key, word, ok := strings.Cut(line, "=")
	if !ok || key == "" || strings.ContainsAny(key, " \t") {
		return fmt.Errorf("%q: want NAME=value", line)
	}
	value, err := unquote(word)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	if err := e.assign(key, value); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

// assign sets the field that key names; an unknown key is none of ours.
func (e *Env) assign(key, value string) (err error) {
	switch key {
	case keyMTU:
		e.MTU, err = parseMTU(value)
	case keyIPMasq:
		e.IPMasq, err = parseBool(value)
	case networkKey(0):
		e.Networks[0], err = parsePrefix(value, 0)
	case networkKey(1):
		e.Networks[1], err = parsePrefix(value, 1)
	case subnetKey(0):
		e.Subnets[0], err = parseSubnet(value, 0)
	case subnetKey(1):
		e.Subnets[1], err = parseSubnet(value, 1)
	}
	return err
}

// unquote reads the shell word at the start of s: one quoted text, or
// everything up to a blank. After it only a comment may stand.
func unquote(s string) (string, error) {
	var value, rest string
	if s != "" && (s[0] == '"' || s[0] == '\'') {
		var closed bool
		if value, rest, closed = strings.Cut(s[1:], s[:1]); !closed {
			return "", fmt.Errorf("%s: quote is not closed", s)
		}
	} else if i := strings.IndexAny(s, " \t"); i >= 0 {
		value, rest = s[:i], s[i:]
	} else {
		value = s
	}
	if comment := strings.TrimLeft(rest, " \t"); comment != "" && (comment == rest || comment[0] != '#') {
		return "", fmt.Errorf("%s: want one value", s)
	}
	return value, nil
}

func parsePrefix(value string, family int) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(value)
	if err != nil || p.Addr().Is4() != (family == 0) {
		return netip.Prefix{}, fmt.Errorf("%q: want an %s prefix", value, [2]string{"IPv4", "IPv6"}[family])
	}
	return p.Masked(), nil
}

// parseSubnet takes prefixes that have a host address: flannel's limits.
func parseSubnet(value string, family int) (netip.Prefix, error) {
	p, err := parsePrefix(value, family)
	if longest := [2]int{30, 126}[family]; err == nil && p.Bits() > longest {
		return netip.Prefix{}, fmt.Errorf("%q: want a length of at most %d", value, longest)
	}
	return p, err
}

func parseMTU(value string) (int, error) {
	mtu, err := strconv.Atoi(value)
	if err != nil || mtu < 0 || mtu > maxMTU {
		return 0, fmt.Errorf("%q: want 0 to %d", value, maxMTU)
	}
	return mtu, nil
}

func parseBool(value string) (bool, error) {
	b, err := strconv.ParseBool(value)
	if err != nil {
		return false, fmt.Errorf("%q: want true or false", value)
	}
	return b, nil
}
