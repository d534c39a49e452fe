package robustness

import "time"

// Bounds are what "soon" and "few" mean to the validators. A host is able while
// its daemon runs and no fault keeps it from etcd (see [Fault].Unreachable);
// only of able hosts anything is expected by a time.
type Bounds struct {
	// TTL is that of the leases: how long peers are kept after the store lost
	// its past or its config, and inside which a restart keeps the subnet.
	TTL time.Duration
	// Lag is by how much the recorder may hear of a change later than it
	// happened. It is longer only while members of etcd fail, when no host is
	// able.
	Lag time.Duration
	// React is how long an able host may take to follow a change in etcd:
	// kernel, files and status.
	React time.Duration
	// Heal is how long a host may take once it is able again, and all of them
	// after the last fault: to be connected, leased, and in the mesh.
	Heal time.Duration
	// Hold is how long a deleted lease stays in effect at its peers.
	Hold time.Duration
	// Request is how long a daemon may take from reading etcd to a write that
	// rests upon it: its requests are given up after that. Within this time an
	// operator's write may remain unseen.
	Request time.Duration
	// Grace is how long after its end a fault may cost packets of the hosts it
	// touched: they have Heal to mend everything.
	Grace time.Duration
	// Transit is how long a ping may be under way: one sent so long before a
	// fault may be lost by it.
	Transit time.Duration

	// Requests to etcd, the CPU's seconds and the log's lines that a daemon may
	// cost.
	Requests, CPU, LogLines Budget
}

// Budget is how much of something one daemon may use over a run.
type Budget struct {
	PerMinute float64
	// PerFault is added for every fault, PerStart for every process.
	PerFault, PerStart float64
}

// of is the budget for a run.
func (b Budget) of(d time.Duration, faults, starts int) float64 {
	return b.PerMinute*d.Minutes() + b.PerFault*float64(faults) + b.PerStart*float64(starts)
}

// DefaultBounds are the bounds for leases of a given TTL.
func DefaultBounds(ttl time.Duration) Bounds {
	return Bounds{
		TTL:     ttl,
		Lag:     2 * time.Second,
		React:   5 * time.Second,
		Heal:    10 * time.Second,
		Hold:    2 * time.Second,
		Request: 10 * time.Second,
		Grace:   10 * time.Second,
		Transit: time.Second,
		// A keeper in trouble asks every TTL/12 at the most, two requests at a
		// time; that is four times what renewals take. Watch and view need less
		// than one request a second. A fault makes everybody load and watch
		// anew, a start loads, leases and watches.
		Requests: Budget{PerMinute: 60 + 2*float64(time.Minute)/float64(max(ttl/12, 250*time.Millisecond)), PerFault: 20, PerStart: 60},
		// 3 % of a core, and a second for a start.
		CPU: Budget{PerMinute: 1.8, PerFault: 0.3, PerStart: 1},
		// 20 a minute is what an outage may cost; a fault changes the state of
		// lease, watch and components once and back.
		LogLines: Budget{PerMinute: 20, PerFault: 15, PerStart: 40},
	}
}
