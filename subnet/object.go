package subnet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ConfigError is one problem of a config, in the form "path: value: rule".
type ConfigError struct {
	// Path names the key, "Backend.VNI"; empty: the whole document.
	Path string
	// Value is what stands there, cut when long; "missing" when nothing does.
	Value string
	// Rule is what it must be.
	Rule string
}

// Error reads as "SubnetLen: 31: must be between 18 and 30".
func (e *ConfigError) Error() string {
	if e.Path == "" {
		return "config: " + e.Value + ": " + e.Rule
	}
	return e.Path + ": " + e.Value + ": " + e.Rule
}

// SyntaxError is text that is not JSON. Line and Column count from 1, Column in
// characters; they point at the first character that cannot be right.
type SyntaxError struct {
	// Path is where the text was found; empty: it is the whole document.
	Path         string
	Line, Column int
	Err          error
}

// Error reads as "line 3, column 5: invalid character '}' looking for ...".
func (e *SyntaxError) Error() string {
	s := fmt.Sprintf("line %d, column %d: %v", e.Line, e.Column, e.Err)
	if e.Path != "" {
		s = e.Path + ": " + s
	}
	return s
}

// Unwrap returns encoding/json's error.
func (e *SyntaxError) Unwrap() error { return e.Err }

// Object decodes the members of a JSON object one by one and collects every
// problem instead of stopping at the first. Keys match without regard to case,
// as encoding/json matches them in flannel; null counts as absent. What is
// wrong reads as its default, so that checks which depend on it can go on.
type Object struct {
	path     string
	members  []member
	problems []error
}

type member struct {
	key   string
	value RawJSON
	asked bool
}

// ParseObject splits raw into its members. Path is how problems name the
// object: "Backend", or empty for the whole document. An empty raw below the
// root is an object that is not there and has no members.
func ParseObject(path string, raw RawJSON) (*Object, error) {
	o := &Object{path: path}
	if raw == "" && path != "" {
		return o, nil
	}
	if err := checkSyntax(path, string(raw)); err != nil {
		return nil, err
	}
	if strings.TrimLeft(string(raw), " \t\r\n")[0] != '{' {
		return nil, &ConfigError{path, show(raw), "must be an object"}
	}
	dec := json.NewDecoder(strings.NewReader(string(raw)))
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("read object: %w", err)
	}
	for dec.More() {
		if err := o.readMember(dec); err != nil {
			return nil, fmt.Errorf("read object: %w", err)
		}
	}
	return o, nil
}

// readMember reads one key and its value.
func (o *Object) readMember(dec *json.Decoder) error {
	token, err := dec.Token()
	if err != nil {
		return err
	}
	key, _ := token.(string) // the syntax is checked: keys are strings
	var value json.RawMessage
	if err := dec.Decode(&value); err != nil {
		return err
	}
	if first := o.find(key); first != nil {
		o.report(o.sub(key), show(RawJSON(value)),
			fmt.Sprintf("is given twice: before as %s with %s", o.sub(first.key), show(first.value)))
		return nil
	}
	o.members = append(o.members, member{key: key, value: RawJSON(value)})
	return nil
}

// checkSyntax returns a *SyntaxError unless text is exactly one JSON value.
func checkSyntax(path, text string) error {
	var syntax *json.SyntaxError
	err := json.Unmarshal([]byte(text), new(json.RawMessage))
	if err == nil {
		return nil
	}
	if !errors.As(err, &syntax) {
		return fmt.Errorf("read object: %w", err)
	}
	// Offset counts the bytes read up to and including the wrong one. Text
	// that merely ends too early has no wrong one: point behind its end.
	at := int(syntax.Offset) - 1
	rest := json.NewDecoder(strings.NewReader(text)).Decode(new(json.RawMessage))
	if errors.Is(rest, io.ErrUnexpectedEOF) || errors.Is(rest, io.EOF) {
		at = len(text)
	}
	before := text[:min(max(at, 0), len(text))]
	line := before[strings.LastIndexByte(before, '\n')+1:]
	return &SyntaxError{path, strings.Count(before, "\n") + 1, utf8.RuneCountInString(line) + 1, err}
}

// sub is the full path of a member.
func (o *Object) sub(key string) string {
	if o.path == "" {
		return key
	}
	return o.path + "." + key
}

func (o *Object) find(key string) *member {
	for i := range o.members {
		if strings.EqualFold(o.members[i].key, key) {
			return &o.members[i]
		}
	}
	return nil
}

// take marks a member as known and returns its value, empty when it is absent
// or null.
func (o *Object) take(key string) RawJSON {
	m := o.find(key)
	if m == nil {
		return ""
	}
	m.asked = true
	if m.value == "null" {
		return ""
	}
	return m.value
}

func (o *Object) report(path, value, rule string) {
	o.problems = append(o.problems, &ConfigError{path, value, rule})
}

// Has reports whether key is there and not null.
func (o *Object) Has(key string) bool { return o.take(key) != "" }

// Fail adds a problem of key that only the caller can see, such as a rule over
// several keys.
func (o *Object) Fail(key, rule string) {
	value := "missing"
	if raw := o.take(key); raw != "" {
		value = show(raw)
	}
	o.report(o.sub(key), value, rule)
}

// Int reads an integer within low and high, both included; high
// [math.MaxInt]: no upper bound.
func (o *Object) Int(key string, def, low, high int) int {
	raw := o.take(key)
	if raw == "" {
		return def
	}
	n, err := strconv.Atoi(string(raw))
	rule := fmt.Sprintf("must be between %d and %d", low, high)
	if high == math.MaxInt {
		rule = fmt.Sprintf("must be at least %d", low)
	}
	switch {
	case errors.Is(err, strconv.ErrRange), err == nil && (n < low || n > high):
		o.Fail(key, rule)
		return def
	case err != nil && raw[0] == '"':
		o.Fail(key, "must be an integer without quotes")
		return def
	case err != nil:
		o.Fail(key, "must be an integer")
		return def
	}
	return n
}

// Bool reads true or false.
func (o *Object) Bool(key string, def bool) bool {
	switch o.take(key) {
	case "":
		return def
	case "true":
		return true
	case "false":
		return false
	}
	o.Fail(key, "must be true or false")
	return def
}

// String reads a string, one of oneOf where any are given.
func (o *Object) String(key, def string, oneOf ...string) string {
	raw := o.take(key)
	if raw == "" {
		return def
	}
	var s string
	if err := json.Unmarshal([]byte(raw), &s); err != nil {
		o.Fail(key, "must be a string")
		return def
	}
	if len(oneOf) > 0 && !slices.Contains(oneOf, s) {
		o.Fail(key, "must be one of "+strings.Join(oneOf, ", "))
		return def
	}
	return s
}

// Addr reads an address of one family; absent: the zero Addr.
func (o *Object) Addr(key string, f Family) netip.Addr {
	raw := o.take(key)
	if raw == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(o.text(raw))
	if err != nil || a.Zone() != "" || a.Is4In6() || FamilyOf(a) != f {
		o.Fail(key, "must be an "+f.String()+" address in quotes")
		return netip.Addr{}
	}
	return a
}

// Prefix reads a network of one family in CIDR form and masks it, as flannel
// does; absent: the zero Prefix.
func (o *Object) Prefix(key string, f Family) netip.Prefix {
	raw := o.take(key)
	if raw == "" {
		return netip.Prefix{}
	}
	p, err := netip.ParsePrefix(o.text(raw))
	if err != nil || p.Addr().Is4In6() || FamilyOf(p.Addr()) != f {
		example := "10.5.0.0/16"
		if f == IPv6 {
			example = "fd05::/48"
		}
		o.Fail(key, "must be an "+f.String()+" network such as \""+example+"\"")
		return netip.Prefix{}
	}
	return p.Masked()
}

// Raw returns the member's value as it stands; absent: empty.
func (o *Object) Raw(key string) RawJSON { return o.take(key) }

// text is the content of a JSON string; what is no string has none.
func (o *Object) text(raw RawJSON) string {
	var s string
	if err := json.Unmarshal([]byte(raw), &s); err != nil {
		return ""
	}
	return s
}

// Err joins every problem in the order of its discovery, each a
// *[ConfigError]; nil: there are none.
func (o *Object) Err() error { return errors.Join(o.problems...) }

// Unknown returns the full paths of the keys that nobody asked for, sorted.
func (o *Object) Unknown() []string {
	var paths []string
	for _, m := range o.members {
		if !m.asked {
			paths = append(paths, o.sub(m.key))
		}
	}
	slices.Sort(paths)
	return paths
}

// show is a value as people want to read it: compact, a plain string without
// its quotes, and no more than 60 characters of it.
func show(raw RawJSON) string {
	const longest = 60
	var b bytes.Buffer
	if err := json.Compact(&b, []byte(raw)); err != nil {
		return strconv.Quote(string(raw))
	}
	s := b.String()
	var plain string
	if json.Unmarshal([]byte(raw), &plain) == nil && plain != "" && !strings.ContainsFunc(plain, quoted) {
		s = plain
	}
	if runes := []rune(s); len(runes) > longest {
		s = string(runes[:longest]) + "..."
	}
	return s
}

// quoted reports a rune that makes a string unreadable without quotes.
func quoted(r rune) bool {
	return unicode.IsSpace(r) || !unicode.IsPrint(r) || r == '"' || r == '\\' || r == utf8.RuneError
}
