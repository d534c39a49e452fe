package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// rule is one rule as far as we write them. Two rules are the same rule when
// they are equal as values, however iptables prints them: versions differ in
// the order of matches, in quotes and in what they imply.
type rule struct {
	src, dst       netip.Prefix
	notSrc, notDst bool
	in, out        string
	// notIn: in by any interface but in.
	notIn bool
	proto string
	dport uint16
	// srcLocal: the source is an address of this host.
	srcLocal bool
	comment  string
	// target is a chain or a verdict; jump goes there without coming back
	// to this chain when it is a goto.
	target string
	isGoto bool
	// toSource is the new source of SNAT.
	toSource    netip.Addr
	randomFully bool
	// other is what we would not have written: never part of a rule of ours,
	// so a rule with it equals none of ours.
	other string
}

// unconditional reports whether every packet matches r.
func (r rule) unconditional() bool {
	return r == rule{
		comment: r.comment, target: r.target, isGoto: r.isGoto,
		toSource: r.toSource, randomFully: r.randomFully,
	}
}

// String returns r as iptables-restore takes it behind "-A CHAIN", in the order
// in which iptables-save prints.
func (r rule) String() string {
	var w strings.Builder
	option := func(not bool, name, value string) {
		if value == "" {
			return
		}
		if not {
			w.WriteString("! ")
		}
		w.WriteString(name + " " + value + " ")
	}
	option(r.notSrc, "-s", prefixText(r.src))
	option(r.notDst, "-d", prefixText(r.dst))
	option(r.notIn, "-i", r.in)
	option(false, "-o", r.out)
	option(false, "-p", r.proto)
	if r.dport != 0 {
		option(false, "-m", r.proto)
		option(false, "--dport", strconv.Itoa(int(r.dport)))
	}
	if r.srcLocal {
		w.WriteString("-m addrtype --src-type LOCAL ")
	}
	if r.comment != "" {
		w.WriteString("-m comment --comment " + quote(r.comment) + " ")
	}
	if r.isGoto {
		option(false, "-g", r.target)
	} else {
		option(false, "-j", r.target)
	}
	if r.toSource.IsValid() {
		option(false, "--to-source", r.toSource.String())
	}
	if r.randomFully {
		w.WriteString("--random-fully ")
	}
	return strings.TrimSuffix(w.String(), " ")
}

func prefixText(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

// parseRule reads the words behind "-A CHAIN". It never fails: what is not in
// our vocabulary is kept in other.
func parseRule(words []string) rule {
	p := ruleParser{words: words}
	for len(p.words) > 0 {
		p.step()
	}
	p.r.other = strings.Join(p.rest, " ")
	return p.r
}

type ruleParser struct {
	words []string
	rest  []string
	r     rule
}

// step consumes one option with its argument.
func (p *ruleParser) step() {
	name, not := p.take(), false
	if name == "!" && len(p.words) > 0 {
		name, not = p.take(), true
	}
	if name == "--random-fully" && !not {
		p.r.randomFully = true
		return
	}
	if !takesArgument(name) || len(p.words) == 0 {
		p.unknown(not, name)
		return
	}
	if arg := p.take(); !p.option(name, arg, not) {
		p.unknown(not, name, arg)
	}
}

func (p *ruleParser) take() string {
	w := p.words[0]
	p.words = p.words[1:]
	return w
}

func (p *ruleParser) unknown(not bool, words ...string) {
	if not {
		p.rest = append(p.rest, "!")
	}
	for _, w := range words {
		p.rest = append(p.rest, quote(w))
	}
}

func takesArgument(name string) bool {
	switch name {
	case "-s", "-d", "-i", "-o", "-p", "-m", "-j", "-g",
		"--dport", "--src-type", "--comment", "--to-source":
		return true
	}
	return false
}

// option stores one option and reports whether it is one of ours.
func (p *ruleParser) option(name, arg string, not bool) bool {
	r := &p.r
	switch name {
	case "-s":
		r.notSrc = not
		return setPrefix(&r.src, arg)
	case "-d":
		r.notDst = not
		return setPrefix(&r.dst, arg)
	case "-i":
		r.in, r.notIn = arg, not
		return true
	}
	if not {
		return false
	}
	switch name {
	case "-o":
		r.out = arg
	case "-p":
		r.proto = protocolName(arg)
	case "-m":
		// These only announce options that follow.
		return slices.Contains([]string{"comment", "addrtype", "udp", "tcp", "sctp"}, arg)
	case "-j", "-g":
		r.target, r.isGoto = arg, name == "-g"
	case "--dport":
		n, err := strconv.ParseUint(arg, 10, 16)
		r.dport = uint16(n)
		return err == nil && n != 0
	case "--src-type":
		r.srcLocal = arg == "LOCAL"
		return r.srcLocal
	case "--comment":
		r.comment = arg
	case "--to-source":
		a, err := netip.ParseAddr(arg)
		r.toSource = a
		return err == nil
	default:
		return false
	}
	return true
}

// setPrefix reads "10.5.0.0/16", and "10.5.3.1" as a /32.
func setPrefix(dst *netip.Prefix, text string) bool {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return false
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	*dst = p.Masked()
	return true
}

// protocolName turns the number that some versions print into the name.
func protocolName(text string) string {
	switch text {
	case "6":
		return "tcp"
	case "17":
		return "udp"
	case "132":
		return "sctp"
	}
	return text
}

// quote writes a word as iptables-save does: bare if it can be, else in double
// quotes with backslashes.
func quote(word string) string {
	bare := func(c rune) bool {
		return c == '_' || c == '-' || c == '.' || c == '/' || c == ':' || c == ',' || c == '+' ||
			'0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
	}
	if word != "" && strings.IndexFunc(word, func(c rune) bool { return !bare(c) }) < 0 {
		return word
	}
	quoted := []byte{'"'}
	for i := range len(word) {
		if strings.IndexByte(`\"'`, word[i]) >= 0 {
			quoted = append(quoted, '\\')
		}
		quoted = append(quoted, word[i])
	}
	return string(append(quoted, '"'))
}

// splitWords undoes quote over a line.
func splitWords(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	in, quoted, escaped := false, false, false
	for _, c := range []byte(line) {
		switch {
		case escaped:
			word.WriteByte(c)
			escaped = false
		case quoted && c == '\\':
			escaped = true
		case c == '"':
			in, quoted = true, !quoted
		case c == ' ' && !quoted:
			if in {
				words = append(words, word.String())
			}
			word.Reset()
			in = false
		default:
			in = true
			word.WriteByte(c)
		}
	}
	if quoted {
		return nil, fmt.Errorf("parse %q: quote is not closed", line)
	}
	if in {
		words = append(words, word.String())
	}
	return words, nil
}
