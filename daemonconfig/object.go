package daemonconfig

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// utf8BOM is what some Windows editors put first. dockerd reads it since 23.0.
const utf8BOM = "\xef\xbb\xbf"

// object is one JSON object as text, edited in place: what is not edited keeps
// its bytes.
//
//	{ "a" : [1, 2] , "b" : {} }
//	  ^keyStart
//	     ^keyEnd
//	        ^start
//	              ^end
type object struct {
	text    []byte
	open    int // offset of "{"
	close   int // offset of "}"
	members []member
}

// member is one key with its value, by offsets into the text.
type member struct {
	key              string // decoded
	keyStart, keyEnd int
	start, end       int
}

// parseObject reads text strictly: one object, its keys distinct, nothing
// else. What dockerd would refuse, or read differently from what a person
// sees, is a [*PositionError]. Text without any value is an empty object.
func parseObject(text []byte) (*object, error) {
	if bytes.HasPrefix(text, []byte("\xff\xfe")) || bytes.HasPrefix(text, []byte("\xfe\xff")) {
		return nil, positionError(nil, 0, errors.New("is UTF-16: want UTF-8"))
	}
	bom := 0
	if bytes.HasPrefix(text, []byte(utf8BOM)) {
		bom = len(utf8BOM)
	}
	body := text[bom:]
	if len(bytes.TrimSpace(body)) == 0 {
		return newObject(text[:bom]), nil
	}
	if err := checkSyntax(body); err != nil {
		return nil, err
	}
	o := &object{text: text, open: bom + bytes.IndexByte(body, '{')}
	if err := o.scan(body, bom); err != nil {
		return nil, err
	}
	return o, nil
}

// newObject is an empty object on two lines of its own, which is what a file
// of ours looks like until it has members.
func newObject(prefix []byte) *object {
	text := append(bytes.Clone(prefix), "{}\n"...)
	return &object{text: text, open: len(prefix), close: len(prefix) + 1}
}

// checkSyntax makes sure that body is one JSON object.
func checkSyntax(body []byte) error {
	var whole json.RawMessage
	err := json.Unmarshal(body, &whole)
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		at := int(syntax.Offset)
		if at < len(body) || !strings.HasPrefix(syntax.Error(), "unexpected end") {
			at-- // Offset is behind the character that is wrong
		}
		return positionError(body, at, fmt.Errorf("is not JSON: %w%s", err, syntaxHint(body, at)))
	}
	if err != nil {
		return positionError(body, 0, fmt.Errorf("is not JSON: %w", err))
	}
	first := bytes.IndexFunc(body, func(r rune) bool { return !strings.ContainsRune(" \t\r\n", r) })
	if body[first] != '{' {
		return positionError(body, first, errors.New("is not a JSON object: want {...}"))
	}
	return nil
}

// syntaxHint names the two habits that JSON does not share with what people
// write otherwise.
func syntaxHint(body []byte, at int) string {
	if at >= len(body) {
		return ""
	}
	before := bytes.TrimRight(body[:at], " \t\r\n")
	switch c := body[at]; {
	case c == '/' || c == '#':
		return " (JSON has no comments)"
	case (c == '}' || c == ']') && bytes.HasSuffix(before, []byte{','}):
		return " (no comma after the last one)"
	default:
		return ""
	}
}

// scan finds the members of body, which is valid and begins at offset base of
// the text.
func (o *object) scan(body []byte, base int) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	if _, err := dec.Token(); err != nil {
		return err
	}
	seen := make(map[string]bool)
	for dec.More() {
		after := int(dec.InputOffset())
		token, err := dec.Token()
		if err != nil {
			return err
		}
		key, ok := token.(string)
		if !ok {
			return fmt.Errorf("key %v is not a string", token) // cannot be: the syntax was checked
		}
		m := member{
			key:      key,
			keyStart: base + after + bytes.IndexByte(body[after:], '"'),
			keyEnd:   base + int(dec.InputOffset()),
		}
		if seen[key] {
			return positionError(body, m.keyStart-base, fmt.Errorf("key %q stands twice: remove one", key))
		}
		seen[key] = true
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return err
		}
		m.end = base + int(dec.InputOffset())
		m.start = m.end - len(value)
		o.members = append(o.members, m)
	}
	if _, err := dec.Token(); err != nil {
		return err
	}
	o.close = base + int(dec.InputOffset()) - 1
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// find returns the index of a key, or -1.
func (o *object) find(key string) int {
	for i, m := range o.members {
		if m.key == key {
			return i
		}
	}
	return -1
}

// get returns the value of a key as text; empty: there is no such key.
func (o *object) get(key string) string {
	if i := o.find(key); i >= 0 {
		return string(o.text[o.members[i].start:o.members[i].end])
	}
	return ""
}

// set returns o with a value for key: in the place of the present one, or
// behind the last member and in its style.
func (o *object) set(key, value string) (*object, error) {
	if i := o.find(key); i >= 0 {
		return o.splice(o.members[i].start, o.members[i].end, value)
	}
	name, err := json.Marshal(key)
	if err != nil {
		return nil, err
	}
	if len(o.members) == 0 {
		eol := o.lineEnd()
		inside := fmt.Sprintf("%s  %s: %s%s", eol, name, value, eol)
		return o.splice(o.open+1, o.close, inside)
	}
	lead, colon := o.style()
	last := o.members[len(o.members)-1]
	return o.splice(last.end, last.end, fmt.Sprintf(",%s%s%s%s", lead, name, colon, value))
}

// remove returns o without key, and without the comma and the blanks that
// came with it: it undoes set.
func (o *object) remove(key string) (*object, error) {
	i := o.find(key)
	switch {
	case i < 0:
		return o, nil
	case len(o.members) == 1:
		return o.splice(o.open+1, o.close, "")
	case i == 0:
		return o.splice(o.members[0].keyStart, o.members[1].keyStart, "")
	default:
		prev := o.members[i-1].end
		comma := prev + bytes.IndexByte(o.text[prev:], ',')
		return o.splice(comma, o.members[i].end, "")
	}
}

// splice returns o with text[from:to] replaced, read again: a mistake of ours
// cannot come out as a broken file.
func (o *object) splice(from, to int, by string) (*object, error) {
	text := make([]byte, 0, len(o.text)+len(by)-(to-from))
	text = append(append(append(text, o.text[:from]...), by...), o.text[to:]...)
	return parseObject(text)
}

// style is what the last member has in front of its key and between key and
// value.
func (o *object) style() (lead, colon string) {
	i := len(o.members) - 1
	last := o.members[i]
	from := o.open + 1
	if i > 0 {
		prev := o.members[i-1].end
		from = prev + bytes.IndexByte(o.text[prev:], ',') + 1
	}
	lead, colon = string(o.text[from:last.keyStart]), string(o.text[last.keyEnd:last.start])
	if strings.ContainsAny(colon, "\r\n") {
		colon = ": "
	}
	if lead == "" && i == 0 && strings.HasSuffix(colon, " ") {
		lead = " " // {"a": 1} goes on as {"a": 1, "b": 2}
	}
	if eol := strings.LastIndexByte(lead, '\n'); eol >= 0 { // of several lines only the last break and the indentation
		lead = o.lineEnd() + lead[eol+1:]
	}
	return lead, colon
}

// lineEnd is CRLF in a file whose first line ends so.
func (o *object) lineEnd() string {
	if i := bytes.IndexByte(o.text, '\n'); i > 0 && o.text[i-1] == '\r' {
		return "\r\n"
	}
	return "\n"
}
