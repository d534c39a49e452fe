package robustness

import (
	"net/netip"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// Record is everything that one run saw.
type Record struct {
	Seed uint64
	// TTL is that of the leases, Duration how long the run took.
	TTL, Duration time.Duration
	Hosts         []Host
	// Epochs are what etcd went through: one, and one more for every time
	// that its data was lost or replaced by older ones.
	Epochs []Epoch
	// Faults are in the order in which they began.
	Faults []Fault
	// Samples are in the order of their times, all hosts' together.
	Samples []Sample
	// Runs are the daemons' processes in the order in which they began.
	Runs  []Run
	Pairs []Pair
	// Final is what was measured after the last fault had been healed.
	Final Final
	// Load is what the run cost, per host.
	Load []Load
}

// Host is one host, and what does not change of it.
type Host struct {
	Name string
	Node subnet.NodeID
	// Addr is its PublicIP.
	Addr netip.Addr
	// Foreign are prefixes inside Network that the host routes elsewhere; no
	// subnet of its own may overlap them.
	Foreign []netip.Prefix
	// Policy is its --on-conflict.
	Policy subnet.OnConflict
	// Releases: it gives its lease up when it is asked to end.
	Releases bool
}

// Epoch is one life of etcd's data.
type Epoch struct {
	Began time.Duration
	// Why: "start", "wipe", "restore".
	Why string
	// Base is the state that a restored epoch began with, as puts of its
	// revisions; empty for the others.
	Base []Event
	// Events are all changes below the prefix, in order of their revisions,
	// deletions by expiry included.
	Events []Event
}

// Event is one key's change.
type Event struct {
	// At is when the recorder received it: not before it happened.
	At       time.Duration
	Revision subnet.Revision
	// Key is relative to the prefix: "config", "subnets/10.5.3.0-24",
	// "flanneld-go/store".
	Key     string
	Deleted bool
	Value   string
	// Lease is the etcd lease that the key hangs on; 0: none.
	Lease subnet.LeaseID
	// Created is the revision of the key's creation.
	Created subnet.Revision
	// Operator: the run's own hands did it, not a daemon.
	Operator bool
}

// FaultKind says what a fault is; schedule.go lists them.
type FaultKind string

// Fault is one thing that was done.
type Fault struct {
	Kind FaultKind
	// From is when it was begun and Until when it was healed; equal where
	// there is nothing to heal (a kill, a deleted key). Until is 0 where it
	// never was.
	From, Until time.Duration
	// To are the names of those it was done to, by the schedule; not all of them
	// need notice.
	To []string
	// Hosts are the names of those touched: traffic from and to them may
	// suffer. Every: all of them.
	Hosts []string
	Every bool
	// Unreachable are the hosts whose daemons could not count on reading and
	// writing etcd meanwhile: cut off, or stopped by a signal; all of them
	// where a member is silent, the quorum is lost or there is no space.
	// Nobody asks of them to follow anything, until a while after Until.
	Unreachable []string
	// Detail says what exactly was done, for people.
	Detail string
	// Err is set when it could not be done.
	Err string
}

// Run is one process of a daemon.
type Run struct {
	Host string
	// From is when it was started, Until when it had ended; 0: it outlived
	// the record.
	From, Until time.Duration
	// Killed: it was the schedule that ended it. Asked is when it did so by a
	// signal that a daemon can answer, SIGTERM; 0: it did not.
	Killed bool
	Asked  time.Duration
	// Status is its exit status, -1 where a signal ended it.
	Status int
	// Tail is the end of its log when nobody had asked it to end.
	Tail string
}

// Sample is one host's state at a moment.
type Sample struct {
	Host string
	// From and Until enclose the moment: it was read in between.
	From, Until time.Duration
	// Own are the addresses on the tunnel's device, with the lengths that the
	// kernel has. Host-gw has no such device.
	Own []netip.Prefix
	// Routes are those of this host's own protocol number or into the
	// tunnel: to where packets for a subnet are sent. Via is the address
	// of the host that gets them, by neighbour and FDB entry. Those of udp are
	// what its daemon says, none when it does not answer.
	Routes []Route
	// SubnetEnv and DockerConfig are the files' contents.
	SubnetEnv, DockerConfig File
	// Status is nil when the daemon did not answer within 200 ms, or was not
	// asked, since it was not there or stopped by a signal.
	Status *HostStatus
}

// Route is where one subnet's packets go.
type Route struct {
	Subnet netip.Prefix
	// Via is invalid where the kernel does not know it: no neighbour, no FDB
	// entry.
	Via netip.Addr
	// MAC is that of the neighbour, in lower case: inside the tunnel the
	// packets go to it. Empty where the tunnel knows none (host-gw).
	MAC string
}

// File is one file's content.
type File struct {
	Exists bool
	Text   string
}

// HostStatus is what the daemon says of itself.
type HostStatus struct {
	PID    int
	Ready  bool
	Subnet netip.Prefix
	// LeaseState, Reason and Reservation are those of the lease.
	LeaseState, Reason string
	Reservation        bool
	Connected          bool
	Problems           []string
}

// Pair is traffic between two containers: requests at a fixed interval.
type Pair struct {
	From, To string
	// Began and Ended enclose the requests, all of them.
	Began, Ended, Interval time.Duration
	Sent                   int
	// Lost are the times at which the lost requests were sent.
	Lost []time.Duration
}

// Final is the end of a run, from Healed on.
type Final struct {
	// Healed is when the last fault was over.
	Healed time.Duration
	// Leased is how long after Healed each host whose daemon ran had a proven
	// lease of its own in etcd, Ready how long until its daemon said so; -1: not
	// before it was overdue.
	Leased, Ready map[string]time.Duration
	// Mesh is how long after Healed all pairs of containers had talked; -1:
	// not all of them did. Silent are the pairs that did not, as "h1 -> h2",
	// those of a host without a container among them.
	Mesh   time.Duration
	Silent []string
}

// Load is what one host's daemon cost over the run.
type Load struct {
	Host string
	// Requests are those to etcd, streams' messages included. They and the CPU
	// are from the last sample of each process.
	Requests int
	CPU      time.Duration
	LogLines int
	// Course is how that came to be, about once a second.
	Course []Cost
}

// Cost is what a host's daemon had cost by a time, all its processes together.
type Cost struct {
	At       time.Duration
	Requests int
	CPU      time.Duration
	LogLines int
}
