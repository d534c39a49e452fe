package firewall

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"maps"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/flanneld-go/flanneld-go/subnet"
)

const (
	// pollEvery is how long a flush of legacy tables can go unnoticed. A look
	// at the tables' sizes takes 15 us.
	pollEvery = 250 * time.Millisecond
	// compareEvery is after how many looks the rules themselves are compared:
	// a rule that was moved, or replaced by one of the same size, does not show
	// otherwise. That takes 0.1 ms with 50 rules and 10 ms with 10,000.
	compareEvery = 4
)

// Options of getsockopt (linux/netfilter_ipv4/ip_tables.h; those of ip6_tables
// are the same).
const (
	optInfo    = 64
	optEntries = 65
)

// tableInfo is struct ipt_getinfo.
type tableInfo struct {
	Name       [32]byte
	ValidHooks uint32
	HookEntry  [5]uint32
	Underflow  [5]uint32
	Entries    uint32
	Size       uint32
}

// entry4 and entry6 are struct ipt_entry and ip6t_entry. Matches and the target
// follow.
type (
	entry4 struct {
		_        [84]byte // what it matches
		_        uint32
		_        uint16 // where the target is
		next     uint16
		_        uint32
		counters [2]uint64
	}
	entry6 struct {
		_        [136]byte
		_        uint32
		_        uint16
		next     uint16
		_        uint32
		counters [2]uint64
	}
)

// layout is what differs between the families: the level of the options, the
// file with the names of the tables in use, and where in an entry things are.
type layout struct {
	level               int
	names               string
	next, counters, end uintptr
}

func layoutOf(f subnet.Family) layout {
	if f == subnet.IPv6 {
		var e entry6
		return layout{syscall.IPPROTO_IPV6, "/proc/thread-self/net/ip6_tables_names", unsafe.Offsetof(e.next), unsafe.Offsetof(e.counters), unsafe.Sizeof(e)}
	}
	var e entry4
	return layout{syscall.IPPROTO_IP, "/proc/thread-self/net/ip_tables_names", unsafe.Offsetof(e.next), unsafe.Offsetof(e.counters), unsafe.Sizeof(e)}
}

// poller tells changes of one family's legacy tables. It looks only at tables
// that are in use: to ask for another would make the kernel load it.
type poller struct {
	layout
	// sock and list belong to one network namespace; list is nil until the
	// kernel has legacy tables at all.
	sock int
	list *os.File
	seed maphash.Seed
	// tables are as they were at the last look.
	tables map[string]tableState
	buf    []byte
}

// tableState is what is remembered of a table; sum is over its rules.
type tableState struct {
	info tableInfo
	sum  uint64
}

// openPoller has not looked yet. Sums of the same seed can be compared.
func openPoller(f subnet.Family, seed maphash.Seed) (*poller, error) {
	domain := [...]int{syscall.AF_INET, syscall.AF_INET6}[f]
	sock, err := syscall.Socket(domain, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("watch legacy tables: %w", os.NewSyscallError("socket", err))
	}
	return &poller{layout: layoutOf(f), sock: sock, seed: seed, tables: map[string]tableState{}}, nil
}

// run tells changes since the last look until ctx ends, and closes the poller. Where we
// wrote since, it tells one whatever it finds: what we wrote may be undone already, and
// then the tables are as they were at the last look.
func (p *poller) run(ctx context.Context, wrote *atomic.Uint64, signal func()) {
	defer p.close()
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	seen := wrote.Load()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := wrote.Load() // before the look: what is written during it shows at the next
		if p.changed(n%compareEvery == 0) || now != seen {
			signal()
		}
		seen = now
	}
}

func (p *poller) close() {
	_ = syscall.Close(p.sock) // nothing was written
	if p.list != nil {
		p.list.Close()
	}
}

// changed reports whether any table is not as it was at the last look. What
// cannot be read in the middle of a change is looked at the next time.
func (p *poller) changed(compare bool) bool {
	names, err := p.names()
	if err != nil {
		return false
	}
	now := make(map[string]tableState, len(p.tables))
	for _, name := range names {
		before := p.tables[name]
		state, err := p.look(name, before, compare)
		if err != nil {
			state = before
		}
		now[name] = state
	}
	differs := !maps.Equal(now, p.tables)
	p.tables = now
	return differs
}

func (p *poller) look(name string, before tableState, compare bool) (tableState, error) {
	now := before
	if err := p.info(name, &now.info); err != nil {
		return before, err
	}
	if !compare && now.info == before.info {
		return now, nil
	}
	var err error
	now.sum, err = p.sum(&now.info)
	return now, err
}

// stamp is the content of all tables in use.
func (p *poller) stamp() (Stamp, error) {
	names, err := p.names()
	if err != nil {
		return Stamp{}, err
	}
	stamp := fmt.Sprintf("%d tables", len(names))
	for _, name := range names {
		now, err := p.look(name, tableState{}, true)
		if err != nil {
			return Stamp{}, fmt.Errorf("look at table %s: %w", name, err)
		}
		stamp += fmt.Sprintf(", %s: %v", name, now)
	}
	return Stamp{Tables: stamp}, nil
}

// names lists the tables in use.
func (p *poller) names() ([]string, error) {
	if p.list == nil {
		f, err := os.Open(p.layout.names)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return nil, nil // the kernel has none, or not yet
		case err != nil:
			return nil, fmt.Errorf("list tables in use: %w", err)
		}
		p.list = f
	}
	var buf [256]byte
	n, err := p.list.ReadAt(buf[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("list tables in use: %w", err)
	}
	var out []string
	for name := range bytes.FieldsSeq(buf[:n]) {
		out = append(out, string(name))
	}
	slices.Sort(out)
	return out, nil
}

func (p *poller) info(name string, info *tableInfo) error {
	*info = tableInfo{}
	copy(info.Name[:len(info.Name)-1], name)
	return p.get(optInfo, unsafe.Pointer(info), unsafe.Sizeof(*info))
}

// sum reads all rules and hashes them without their counters.
func (p *poller) sum(info *tableInfo) (uint64, error) {
	const header = 40 // struct ipt_get_entries: the name, the size, padding
	size := header + int(info.Size)
	p.buf = slices.Grow(p.buf[:0], size)[:size]
	clear(p.buf) // the kernel leaves padding as it is
	copy(p.buf, info.Name[:])
	binary.NativeEndian.PutUint32(p.buf[len(info.Name):], info.Size)
	if err := p.get(optEntries, unsafe.Pointer(unsafe.SliceData(p.buf)), uintptr(size)); err != nil {
		return 0, err
	}
	var h maphash.Hash
	h.SetSeed(p.seed)
	for b := p.buf[header:]; len(b) > 0; {
		if uintptr(len(b)) < p.end {
			return 0, errEntry
		}
		next := int(binary.NativeEndian.Uint16(b[p.next:]))
		if next < int(p.end) || next > len(b) {
			return 0, errEntry
		}
		_, _ = h.Write(b[:p.counters]) // never fails
		_, _ = h.Write(b[p.end:next])
		b = b[next:]
	}
	return h.Sum64(), nil
}

var errEntry = errors.New("kernel's entry has an unknown form")

func (p *poller) get(option int, value unsafe.Pointer, size uintptr) error {
	length := uint32(size)
	_, _, errno := syscall.Syscall6(sysGetsockopt, uintptr(p.sock), uintptr(p.level), uintptr(option),
		uintptr(value), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return os.NewSyscallError("getsockopt", errno)
	}
	return nil
}
