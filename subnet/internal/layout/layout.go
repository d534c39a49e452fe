// Package layout is what stores have in common: which keys there are below the
// prefix, and how a key and its value become a lease.
//
//	<prefix>/config               the network config
//	<prefix>/subnets/10.5.52.0-24 a lease, or a reservation
//	<prefix>/flanneld-go/store    the store's identity
//
// Flannel watches "<prefix>/subnets" without a closing slash: nothing but leases
// may have a name that begins so.
package layout

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// The keys below the prefix. Subnets is followed by a lease's own name.
const (
	Config   = "config"
	Subnets  = "subnets/"
	Identity = "flanneld-go/store"
)

// KV is one key below [Subnets] as a store holds it.
type KV struct {
	// Key is the path below Subnets.
	Key               string
	Value             []byte
	Lease             subnet.LeaseID
	Created, Modified subnet.Revision
}

// Content is a set of keys, read. Both halves are sorted by key.
type Content struct {
	Leases []subnet.Lease
	Bad    []subnet.BadKey
}

// Read sorts kvs by key and makes leases of them, and bad keys of the rest.
func Read(kvs []KV) Content {
	slices.SortFunc(kvs, func(a, b KV) int { return strings.Compare(a.Key, b.Key) })
	// Nearly all of them are leases: of a page that grew as they come half would be
	// garbage.
	c := Content{Leases: make([]subnet.Lease, 0, len(kvs))}
	for _, kv := range kvs {
		l, err := kv.lease()
		if err != nil {
			c.Bad = append(c.Bad, subnet.BadKey{Key: kv.Key, Occupies: l.Subnet, Modified: kv.Modified, Err: err})
			continue
		}
		c.Leases = append(c.Leases, l)
	}
	return c
}

// lease decodes kv. Beside an error the Lease still says which subnet the key
// occupies.
func (kv KV) lease() (subnet.Lease, error) {
	s, err := subnet.ParseSubnet(kv.Key)
	if err != nil {
		return subnet.Lease{Subnet: s}, err
	}
	l := subnet.Lease{Subnet: s, ID: kv.Lease, Created: kv.Created, Modified: kv.Modified}
	// Not by json.Unmarshal, which would scan the value once more.
	if err := l.Attrs.UnmarshalJSON(kv.Value); err != nil {
		return subnet.Lease{Subnet: s}, fmt.Errorf("read value of %s: %w", kv.Key, err)
	}
	return l, nil
}

// Entry is what is written for a lease.
type Entry struct {
	// Key is the path below Subnets.
	Key   string
	Value string
	// Attrs are the attributes as every reader will decode them from Value.
	Attrs subnet.Attrs
}

// Write encodes the subnet and the attributes of l. What could not be read back
// is an error.
func Write(l subnet.Lease) (Entry, error) {
	if l.Subnet.IsZero() {
		return Entry{}, errors.New("encode lease: it has no subnet")
	}
	value, err := json.Marshal(l.Attrs)
	if err != nil {
		return Entry{}, fmt.Errorf("encode lease of %s: %w", l.Subnet, err)
	}
	back, err := KV{Key: l.Subnet.Key(), Value: value}.lease()
	if err != nil {
		return Entry{}, fmt.Errorf("encode lease of %s: %w", l.Subnet, err)
	}
	return Entry{Key: l.Subnet.Key(), Value: string(value), Attrs: back.Attrs}, nil
}

// NewIdentity returns a name that no other store has.
func NewIdentity() string { return rand.Text() }
