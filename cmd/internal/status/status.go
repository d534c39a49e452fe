// Package status is the daemon's state as one value: served as JSON on its
// socket, printed by flannelctl, and the source of health and metrics.
//
//	daemon --update--> Board --Snapshot--> socket, /healthz, /readyz, metrics, sd_notify
//	                                          |
//	                                     flannelctl status
//
// # Contract
//
// A Status is a copy; nobody changes it after it was handed out. Its JSON form
// is an interface: fields are added, never renamed. Times are RFC 3339, ages
// and durations are in seconds.
package status

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// State is the daemon's state in one word.
type State string

// The states. A host in StateDegraded carries traffic; one in StateWaiting
// does not yet.
const (
	StateStarting State = "starting"
	StateWaiting  State = "waiting"
	StateRunning  State = "running"
	StateDegraded State = "degraded"
	StateStopping State = "stopping"
)

// Status is everything that an operator asks of one host.
type Status struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Node    string    `json:"node"`
	State   State     `json:"state"`
	// Ready: lease valid, data path in sync, files written.
	Ready bool `json:"ready"`
	// Problems are what is wrong now, oldest first.
	Problems []Problem `json:"problems"`
	Etcd     Etcd      `json:"etcd"`
	Config   Config    `json:"config"`
	Uplink   Uplink    `json:"uplink"`
	Lease    Lease     `json:"lease"`
	Backend  Backend   `json:"backend"`
	Peers    []Peer    `json:"peers"`
	// PeerCount is how many there are, also where they are not listed.
	PeerCount int `json:"-"`
	// BadKeys are the keys in etcd that are no leases.
	BadKeys []BadKey `json:"bad_keys,omitempty"`
	// SharedAddresses are those that leases of several owners publish.
	SharedAddresses []SharedAddress `json:"shared_addresses,omitempty"`
	// Dropped are how many packets were dropped because they were not from where
	// they claimed to be, by the reasons of package native, since its table was
	// made; nil where the kernel does not count them.
	Dropped map[string]uint64 `json:"dropped,omitempty"`
	// IPMasq: the daemon masquerades what leaves the network, so Docker must not.
	IPMasq bool `json:"ip_masq"`
	// Docker is nil where it is none of ours.
	Docker *Docker `json:"docker,omitempty"`
	Sync   Sync    `json:"sync"`
	Files  []File  `json:"files"`
}

// Problem is one thing that is wrong.
type Problem struct {
	// Component is one of the Component constants.
	Component string    `json:"component"`
	Since     time.Time `json:"since"`
	Message   string    `json:"message"`
	// Hint is what to type or to change; may be empty.
	Hint string `json:"hint,omitempty"`
	// Blocking problems keep the host from carrying traffic or from being
	// ready.
	Blocking bool `json:"blocking"`
}

// The components that problems are reported for.
const (
	ComponentEtcd       = "etcd"
	ComponentConfig     = "config"
	ComponentUplink     = "uplink"
	ComponentLease      = "lease"
	ComponentBackend    = "backend"
	ComponentPeers      = "peers"
	ComponentFirewall   = "firewall"
	ComponentForwarding = "forwarding"
	ComponentFiles      = "files"
	ComponentDocker     = "docker"
	ComponentKernel     = "kernel"
	ComponentDataPath   = "data_path"
	ComponentCache      = "cache"
)

// Etcd is the store as this host sees it.
type Etcd struct {
	Endpoints []string `json:"endpoints"`
	Prefix    string   `json:"prefix"`
	CAFile    string   `json:"ca_file,omitempty"`
	CertFile  string   `json:"cert_file,omitempty"`
	KeyFile   string   `json:"key_file,omitempty"`
	Username  string   `json:"username,omitempty"`
	Connected bool     `json:"connected"`
	Revision  int64    `json:"revision"`
	Traffic   Traffic  `json:"traffic"`
}

// Traffic is what this process has exchanged with etcd.
type Traffic struct {
	// Requests are calls and messages sent on streams, Failures those that
	// came to nothing.
	Requests      uint64 `json:"requests"`
	Failures      uint64 `json:"failures"`
	Streams       uint64 `json:"streams"`
	BytesSent     uint64 `json:"bytes_sent"`
	BytesReceived uint64 `json:"bytes_received"`
}

// Config is the network config in force.
type Config struct {
	Revision    int64    `json:"revision"`
	Networks    []string `json:"networks"`
	SubnetLens  []int    `json:"subnet_lens"`
	BackendType string   `json:"backend_type"`
	Unknown     []string `json:"unknown_keys,omitempty"`
}

// Uplink is the interface that carries encapsulated traffic.
type Uplink struct {
	Name   string   `json:"name"`
	MTU    int      `json:"mtu"`
	Addrs  []string `json:"addresses"`
	Public []string `json:"public_addresses"`
}

// Lease is this host's lease.
type Lease struct {
	Subnet      string    `json:"subnet"`
	State       string    `json:"state"`
	Since       time.Time `json:"since"`
	Reason      string    `json:"reason,omitempty"`
	Reservation bool      `json:"reservation"`
	TTLSeconds  float64   `json:"ttl_seconds"`
	Expires     time.Time `json:"expires,omitzero"`
}

// DataPath is how the data path stands.
type DataPath string

// The states of the data path. It is pending until this process has applied it,
// though what an earlier one left may carry traffic; withdrawn as long as the
// subnet is another's.
const (
	PathPending   DataPath = "pending"
	PathApplied   DataPath = "applied"
	PathWithdrawn DataPath = "withdrawn"
)

// Backend is the encapsulation in use.
type Backend struct {
	Type     string   `json:"type"`
	DataPath DataPath `json:"data_path,omitempty"`
	Devices  []string `json:"devices"`
	// Direct: packets of peers also come in plainly, by the uplink.
	Direct   bool              `json:"direct,omitempty"`
	MTU      int               `json:"mtu"`
	Port     int               `json:"port"`
	Counters map[string]uint64 `json:"counters,omitempty"`
	// Queues and Offloads are those of a data path in user space: how many, and
	// by name whether it is on.
	Queues   int             `json:"queues,omitempty"`
	Offloads map[string]bool `json:"offloads,omitempty"`
}

// Peer is another host.
type Peer struct {
	Subnet   string `json:"subnet"`
	PublicIP string `json:"public_ip"`
	Node     string `json:"node,omitempty"`
	// Error is why there is no path to it.
	Error string `json:"error,omitempty"`
}

// BadKey is a key that is no lease, and why.
type BadKey struct {
	Key   string `json:"key"`
	Error string `json:"error"`
}

// SharedAddress is one address that several owners claim to be reached at: a
// host that was installed anew, or two that were given one address.
type SharedAddress struct {
	PublicIP string   `json:"public_ip"`
	Holders  []Holder `json:"holders"`
}

// Holder is one owner with its subnet.
type Holder struct {
	Subnet string `json:"subnet"`
	Node   string `json:"node,omitempty"`
}

// Sync is the loop's work.
type Sync struct {
	LastRun     time.Time `json:"last_run,omitzero"`
	LastSeconds float64   `json:"last_seconds"`
	Runs        uint64    `json:"runs"`
	Failures    uint64    `json:"failures"`
	Put         uint64    `json:"entries_put"`
	Deleted     uint64    `json:"entries_deleted"`
}

// Docker is this host's.
type Docker struct {
	// Version is empty as long as it is not known.
	Version string `json:"version,omitempty"`
	Running bool   `json:"running"`
	// Firewall is where its rules are: "iptables", "iptables+firewalld" or
	// "nftables".
	Firewall string `json:"firewall,omitempty"`
	// Bridge is its default bridge, with what it really has; MTU is 0 where
	// that cannot be told.
	Bridge    string   `json:"bridge,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
	MTU       int      `json:"mtu,omitempty"`
	// Differs are how that is not as this host's subnet wants it, and Hint what
	// to type.
	Differs []string `json:"differs,omitempty"`
	Hint    string   `json:"hint,omitempty"`
	// Network is the one that is kept in place of the bridge.
	Network string `json:"network,omitempty"`
}

// File is a file kept for the container daemon.
type File struct {
	Path string `json:"path"`
	// State is "written", "withdrawn" (it is gone as long as the subnet is not
	// ours) or "failed".
	State string `json:"state"`
	Error string `json:"error,omitempty"`
}

// Board holds the current Status. Its methods are safe for concurrent use.
type Board struct {
	now func() time.Time

	mu       sync.Mutex
	status   Status
	problems map[string]Problem
	changed  chan struct{}
	// list makes the peers; nil: they are made.
	list func() []Peer
}

// NewBoard returns a board in StateStarting.
func NewBoard(now func() time.Time, initial Status) *Board {
	initial.State = StateStarting
	initial.Started = now()
	return &Board{now: now, status: initial, problems: map[string]Problem{}, changed: make(chan struct{}, 1)}
}

// Update changes the status under the board's lock. f must replace slices and
// maps, not write into them: copies of the old ones are in use.
func (b *Board) Update(f func(*Status)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(&b.status)
	b.notify()
}

// UpdatePeers changes how many peers there are, and which: list makes them, in any
// goroutine, if somebody asks before the next change.
func (b *Board) UpdatePeers(count int, list func() []Peer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status.Peers, b.status.PeerCount, b.list = nil, count, list
	b.notify()
}

// Report sets the problem of a component. Since is kept while the component
// stays in trouble.
func (b *Board) Report(p Problem) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old, had := b.problems[p.Component]
	p.Since = b.now()
	if had {
		p.Since = old.Since
	}
	b.problems[p.Component] = p
	b.notify()
}

// Clear ends the problem of a component, if it has one.
func (b *Board) Clear(component string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, had := b.problems[component]; had {
		delete(b.problems, component)
		b.notify()
	}
}

// Changed is signalled after every change; signals coalesce.
func (b *Board) Changed() <-chan struct{} { return b.changed }

// Snapshot returns the status with its problems.
func (b *Board) Snapshot() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.list != nil {
		b.status.Peers, b.list = b.list(), nil
	}
	return b.snapshot()
}

// Glance is Snapshot, but for the list of peers.
func (b *Board) Glance() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.snapshot()
}

func (b *Board) snapshot() Status {
	s := b.status
	s.Problems = slices.SortedFunc(maps.Values(b.problems), func(x, y Problem) int {
		if c := x.Since.Compare(y.Since); c != 0 {
			return c
		}
		return strings.Compare(x.Component, y.Component)
	})
	blocked := slices.ContainsFunc(s.Problems, func(p Problem) bool { return p.Blocking })
	s.Ready = s.Ready && !blocked
	if s.State == StateRunning && len(s.Problems) > 0 {
		s.State = StateDegraded
	}
	return s
}

func (b *Board) notify() {
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

// Line is the status in one line, as systemctl status shows it.
func (s Status) Line() string {
	var parts []string
	if s.Lease.Subnet != "" {
		parts = append(parts, fmt.Sprintf("%s %s by %s, %d peers", s.State, s.Lease.Subnet, s.Backend.Type, max(s.PeerCount, len(s.Peers))))
	} else {
		parts = append(parts, string(s.State))
	}
	for _, p := range s.Problems {
		parts = append(parts, p.Component+": "+strings.ReplaceAll(p.Message, "\n", ", "))
	}
	return strings.Join(parts, "; ")
}
