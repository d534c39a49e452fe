package daemonconfig

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
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
// text.
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
}

// value is a wanted key with what it should hold.
type value struct {
	key  string
	want any
}

// ourKeys are all keys that a Docker can set, in the order in which they are
// written. Each is set only where it applies: see values.
func ourKeys() []string { return []string{"bip", "mtu", "ip-masq"} }

// values are the keys that d sets.
func (d Docker) values() []value {
	var vs []value
	if d.BIP.IsValid() {
		vs = append(vs, value{"bip", d.BIP.String()})
	}
	if d.MTU != 0 {
		vs = append(vs, value{"mtu", d.MTU})
	}
	if d.IPMasq != nil {
		vs = append(vs, value{"ip-masq", *d.IPMasq})
	}
	return vs
}

// Validate reports every field that dockerd would refuse.
func (d Docker) Validate() error {
	var errs []error
	if d.BIP.IsValid() && (!d.BIP.Addr().Is4() || d.BIP.Bits() >= 31 || d.BIP.Masked() == d.BIP) {
		errs = append(errs, fmt.Errorf("bip: %s: want an IPv4 host address with the length of its subnet", d.BIP))
	}
	if d.MTU != 0 && (d.MTU < minMTU || d.MTU > maxMTU) {
		errs = append(errs, fmt.Errorf("mtu: %d: want %d to %d", d.MTU, minMTU, maxMTU))
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
// [ErrBridge]; nothing is guessed.
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
	values := want.values()
	for _, v := range values {
		if err := m.set(v); err != nil {
			return Merged{}, err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(m.memory.Keys)) {
		if slices.ContainsFunc(values, func(v value) bool { return v.key == key }) {
			continue
		}
		if err := m.restore(key); err != nil {
			return Merged{}, err
		}
	}
	return m.result(old), nil
}

// refuse reports what makes our keys worthless in this file.
func (o *object) refuse(want Docker) error {
	if want == (Docker{}) {
		return nil
	}
	for _, m := range o.members {
		for _, ours := range ourKeys() {
			if m.key != ours && strings.EqualFold(m.key, ours) {
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
	object  *object
	memory  Memory
	changes []Change
}

// set makes the key hold what is wanted.
func (m *merge) set(v value) error {
	have := m.object.get(v.key)
	if means(have, v.want) {
		return nil
	}
	text, err := json.Marshal(v.want)
	if err != nil {
		return err
	}
	before := have
	if r, ok := m.memory.Keys[v.key]; ok && r.ours(have) {
		before = r.Before // what stood there before us, not before this change
	} else if _, ok := decode(have, v.want); !ok {
		before = "" // "mtu": "1450": dockerd would not start with it, so it never comes back
	}
	m.memory.Keys[v.key] = Remembered{Before: before, Wrote: []string{string(text)}}
	return m.put(v.key, string(text))
}

// restore gives the key back what it had before us, if it is still ours.
func (m *merge) restore(key string) error {
	r := m.memory.Keys[key]
	delete(m.memory.Keys, key)
	if !r.ours(m.object.get(key)) {
		return nil
	}
	return m.put(key, r.Before)
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
	r := Merged{Text: old, Changes: m.changes, Memory: m.memory}
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
