package daemonconfig

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Docker are the keys of daemon.json that follow the lease. A zero field is
// not ours to set; the zero Docker takes back everything.
type Docker struct {
	// BIP is docker0's own address in its subnet (10.5.72.1/24): see
	// [HostAddr].
	BIP netip.Prefix
	// MTU is docker0's, in bytes.
	MTU int
	// IPMasq, when set, says whether Docker masquerades.
	IPMasq *bool
	// NetworkMTU is that of bridge networks which are made later, in bytes. The
	// key is default-network-opts, and a dockerd before 24.0 does not start
	// with it.
	NetworkMTU int
	// AcceptMark is the firewall mark of packets that Docker's own rules must
	// accept. The key is bridge-accept-fwmark, and a dockerd before 29.0 does
	// not start with it.
	AcceptMark Mark
	// Networks are the overlay's, to warn of what overlaps them. They are no
	// key.
	Networks [2]netip.Prefix
}

// Mark is a firewall mark and the bits of it that count; the zero Mark is none.
type Mark struct{ Value, Mask uint32 }

// String is the form of dockerd's option: 0x1/0x3.
func (m Mark) String() string { return fmt.Sprintf("%#x/%#x", m.Value, m.Mask) }

// ParseMark reads dockerd's option: a number, or two of which the second is the
// mask.
func ParseMark(text string) (Mark, error) {
	value, mask, masked := strings.Cut(text, "/")
	v, err := strconv.ParseUint(value, 0, 32)
	if err != nil {
		return Mark{}, fmt.Errorf("mark %q: %w", text, err)
	}
	if !masked {
		return Mark{Value: uint32(v), Mask: math.MaxUint32}, nil
	}
	m, err := strconv.ParseUint(mask, 0, 32)
	if err != nil {
		return Mark{}, fmt.Errorf("mark %q: %w", text, err)
	}
	return Mark{Value: uint32(v), Mask: uint32(m)}, nil
}

// The range of an MTU: RFC 791's smallest, and what an IP packet can be.
const (
	minMTU = 68
	maxMTU = 65535
)

// ErrBridge: daemon.json gives docker0 up for another bridge; dockerd refuses
// bip beside it, so there is nothing that we could set.
var ErrBridge = errors.New(`key "bridge" is set: dockerd takes no "bip" beside it; remove it, or run with --docker-config=none`)

// Memory is what we changed in one daemon.json. It is kept in the state
// directory, as JSON.
type Memory struct {
	// Path is the file that it is about.
	Path string `json:"path,omitempty"`
	// Created: the file did not exist before us.
	Created bool `json:"created,omitempty"`
	// Keys are those that we set, by name.
	Keys map[string]Remembered `json:"keys,omitempty"`
}

// Remembered is one value of daemon.json, before us and as we wrote it, as JSON
// text. Of a value inside of objects it is the whole of the outermost.
type Remembered struct {
	// Before is empty where the key was absent.
	Before string `json:"before,omitempty"`
	// Wrote are the values by which we know our own: one, or two while the
	// file is being changed from one to the other.
	Wrote []string `json:"wrote"`
}

// ours reports whether a value of the file is one that we wrote.
func (r Remembered) ours(text string) bool { return slices.Contains(r.Wrote, text) }

// Change is what Merge does to one key, as JSON text; empty is absent.
type Change struct {
	Key, Old, New string
}

// String reads as `"mtu": 1500 -> 1450`.
func (c Change) String() string {
	return fmt.Sprintf("%q: %s -> %s", c.Key, cmp.Or(c.Old, "absent"), cmp.Or(c.New, "absent"))
}

// Merged is what daemon.json should be.
type Merged struct {
	// Text is the whole file; nil: there should be none.
	Text []byte
	// Changes are empty when Text is the old text.
	Changes []Change
	// Memory is to be saved before Text is written.
	Memory Memory
	// Warnings are what the administrator should know of his own keys, each a
	// sentence: nothing was refused for them.
	Warnings []string
}

// value is a wanted value, and where it stands: the names of the objects around
// it, and its own.
type value struct {
	path []string
	want any
}

// key is the member of the file that holds the value.
func (v value) key() string { return v.path[0] }

// mtuOption is the MTU among a network's options.
const mtuOption = "com.docker.network.driver.mtu"

// ourPaths are where all values stand that a Docker can set.
func ourPaths() [][]string {
	return [][]string{
		{"bip"},
		{"mtu"},
		{"ip-masq"},
		{"default-network-opts", "bridge", mtuOption},
		{"bridge-accept-fwmark"},
	}
}

// pathOf returns the path of the value in a member of the file. One that is
// none of ours, from a later version's memory, is the value itself.
func pathOf(key string) []string {
	for _, path := range ourPaths() {
		if path[0] == key {
			return path
		}
	}
	return []string{key}
}

// values are those that d sets, in the order in which they are written.
func (d Docker) values() []value {
	var masq any
	if d.IPMasq != nil {
		masq = *d.IPMasq
	}
	var vs []value
	for i, v := range []struct {
		set  bool
		want any
	}{
		{d.BIP.IsValid(), d.BIP.String()},
		{d.MTU != 0, d.MTU},
		{d.IPMasq != nil, masq},
		{d.NetworkMTU != 0, strconv.Itoa(d.NetworkMTU)}, // dockerd wants a string here
		{d.AcceptMark != (Mark{}), d.AcceptMark.String()},
	} {
		if v.set {
			vs = append(vs, value{ourPaths()[i], v.want})
		}
	}
	return vs
}

// Keys are the members of daemon.json that d sets, as dockerd names them.
func (d Docker) Keys() []string {
	var keys []string
	for _, v := range d.values() {
		keys = append(keys, v.key())
	}
	return keys
}

// Validate reports every field that dockerd would refuse.
func (d Docker) Validate() error {
	var errs []error
	if d.BIP.IsValid() && (!d.BIP.Addr().Is4() || d.BIP.Bits() >= 31 || d.BIP.Masked() == d.BIP) {
		errs = append(errs, fmt.Errorf("bip: %s: want an IPv4 host address with the length of its subnet", d.BIP))
	}
	for _, mtu := range []struct {
		name  string
		value int
	}{{"mtu", d.MTU}, {"mtu of later networks", d.NetworkMTU}} {
		if mtu.value != 0 && (mtu.value < minMTU || mtu.value > maxMTU) {
			errs = append(errs, fmt.Errorf("%s: %d: want %d to %d", mtu.name, mtu.value, minMTU, maxMTU))
		}
	}
	if m := d.AcceptMark; m.Value&^m.Mask != 0 {
		errs = append(errs, fmt.Errorf("accept mark: %s: want no bit outside of its mask", m))
	}
	return errors.Join(errs...)
}

// Merge returns the text of daemon.json with want's keys in it. old is the
// present text, nil if there is no file; memory is that of the last Merge.
//
// Keys of ours that want no longer has go back to what they were, if they are
// still as we wrote them. A value that is right already is left in its own
// spelling, and one that was right before us does not become ours. A file that
// is not exactly one JSON object with distinct keys is refused, as is one with
// [ErrBridge], or with a value in place of an object that ours belongs into;
// nothing is guessed. A mark of somebody else's stays, with a warning.
func Merge(old []byte, want Docker, memory Memory) (Merged, error) {
	if err := want.Validate(); err != nil {
		return Merged{}, err
	}
	o, err := parseObject(old)
	if err != nil {
		return Merged{}, err
	}
	if err := o.refuse(want); err != nil {
		return Merged{}, err
	}
	if old == nil {
		memory = Memory{Path: memory.Path, Created: true}
	}
	m := merge{object: o, memory: memory.clone()}
	values := m.mayChange(want.values())
	for _, v := range values {
		if err := m.set(v); err != nil {
			return Merged{}, err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(m.memory.Keys)) {
		if slices.ContainsFunc(values, func(v value) bool { return v.key() == key }) {
			continue
		}
		if err := m.restore(pathOf(key)); err != nil {
			return Merged{}, err
		}
	}
	m.warnings = append(m.warnings, o.warnings(want, m.changes)...)
	return m.result(old), nil
}

// refuse reports what makes our keys worthless in this file.
func (o *object) refuse(want Docker) error {
	if len(want.values()) == 0 {
		return nil
	}
	for _, m := range o.members {
		for _, path := range ourPaths() {
			if ours := path[0]; m.key != ours && strings.EqualFold(m.key, ours) {
				return positionError(o.text, m.keyStart, fmt.Errorf("key %q: dockerd refuses it, the name is %q", m.key, ours))
			}
		}
	}
	i := o.find("bridge")
	if !want.BIP.IsValid() || i < 0 {
		return nil
	}
	switch o.get("bridge") {
	case `""`, `null`: // the same as absent
		return nil
	default:
		return positionError(o.text, o.members[i].keyStart, ErrBridge)
	}
}

// merge is a Merge under way.
type merge struct {
	object   *object
	memory   Memory
	changes  []Change
	warnings []string
}

// mayChange leaves out what is the administrator's to decide: a mark has a
// meaning in rules of his own.
func (m *merge) mayChange(values []value) []value {
	return slices.DeleteFunc(values, func(v value) bool {
		const key = "bridge-accept-fwmark"
		have := m.object.get(key)
		r, ours := m.memory.Keys[key]
		if v.key() != key || have == "" || have == "null" || have == `""` || means(have, v.want) || ours && r.ours(have) {
			return false
		}
		m.warnings = append(m.warnings, fmt.Sprintf("%q is %s and stays so: packets of the overlay have the mark %s, and Docker does not accept them for it", key, have, v.want))
		return true
	})
}

// set makes the file hold what is wanted.
func (m *merge) set(v value) error {
	key := v.key()
	have := m.object.get(key)
	inner, err := lookup(have, v.path[1:])
	if err != nil {
		return m.object.misplaced(key, err)
	}
	if means(inner, v.want) {
		return nil
	}
	text, err := json.Marshal(v.want)
	if err != nil {
		return err
	}
	before, err := m.before(v, have)
	if err != nil {
		return m.object.misplaced(key, err)
	}
	wrote, err := graft(have, v.path[1:], string(text), have)
	if err != nil {
		return m.object.misplaced(key, err)
	}
	m.memory.Keys[key] = Remembered{Before: before, Wrote: []string{wrote}}
	return m.put(key, wrote)
}

// before is what stood there before us, which is not what stood there before
// this change. have is what stands there now.
func (m *merge) before(v value, have string) (string, error) {
	path := v.path[1:]
	if r, ok := m.memory.Keys[v.key()]; ok {
		var err error
		if have, err = r.withoutOurs(path, have); err != nil {
			return "", err
		}
	}
	inner, err := lookup(have, path)
	if err != nil {
		return "", err
	}
	if _, ok := decode(inner, v.want); inner != "" && !ok {
		return graft(have, path, "", "") // "mtu": "1450": dockerd would not start with it, so it never comes back
	}
	return have, nil
}

// withoutOurs is have with what it was before us: the very text where nobody has
// changed it since, and else the one value at path, if that is still as we wrote it.
func (r Remembered) withoutOurs(path []string, have string) (string, error) {
	if r.ours(have) {
		return r.Before, nil
	}
	inner, err := lookup(have, path)
	if err != nil || inner == "" {
		return have, err
	}
	for _, wrote := range r.Wrote {
		if ours, err := lookup(wrote, path); err != nil || ours != inner {
			continue
		}
		was, err := lookup(r.Before, path)
		if err != nil {
			return have, err
		}
		return graft(have, path, was, r.Before)
	}
	return have, nil
}

// restore gives back what was there before us, as far as it is still ours.
func (m *merge) restore(path []string) error {
	key := path[0]
	r := m.memory.Keys[key]
	delete(m.memory.Keys, key)
	have := m.object.get(key)
	text, err := r.withoutOurs(path[1:], have)
	if err != nil || text == have {
		return nil //nolint:nilerr // of another form than ours: somebody else's
	}
	return m.put(key, text)
}

// put writes one value, or removes the key when text is empty, and notes the
// change.
func (m *merge) put(key, text string) (err error) {
	change := Change{Key: key, Old: m.object.get(key), New: text}
	if text == "" {
		m.object, err = m.object.remove(key)
	} else {
		m.object, err = m.object.set(key, text)
	}
	if err != nil {
		return fmt.Errorf("change key %s: %w", change, err)
	}
	m.changes = append(m.changes, change)
	return nil
}

// result is the outcome for a file that was old.
func (m *merge) result(old []byte) Merged {
	r := Merged{Text: old, Changes: m.changes, Memory: m.memory, Warnings: m.warnings}
	if len(m.changes) > 0 {
		r.Text = m.object.text
	}
	if len(m.memory.Keys) > 0 {
		return r
	}
	r.Memory = Memory{} // nothing in the file is ours any more
	if m.memory.Created && len(m.changes) > 0 && len(m.object.members) == 0 {
		r.Text = nil
	}
	return r
}

// means reports whether JSON text holds want, in whatever spelling.
func means(text string, want any) bool {
	have, ok := decode(text, want)
	return ok && have == want && text != "null"
}

// decode reads JSON text as a value of like's type; null reads as zero.
func decode(text string, like any) (value any, ok bool) {
	v := reflect.New(reflect.TypeOf(like))
	if err := json.Unmarshal([]byte(text), v.Interface()); err != nil {
		return nil, false
	}
	return v.Elem().Interface(), true
}

// clone keeps a caller's Memory from changing under him.
func (m Memory) clone() Memory {
	m.Keys = maps.Clone(m.Keys)
	if m.Keys == nil {
		m.Keys = make(map[string]Remembered)
	}
	return m
}
