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
	// Settle is for how long a ready host may not be what it says: it is read
	// part by part.
	Settle time.Duration
	// Stop is how long a daemon may take to end when it is asked to, and Release
	// how much longer one that gives its lease up.
	Stop, Release time.Duration
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

	// Noise is in which part of a run the machine itself may lose packets, and
	// for how long in a short one. All pairs are excused then.
	Noise     float64
	NoiseLast time.Duration

	// Window is in how much time what a daemon uses is judged, besides the run
	// as a whole.
	Window time.Duration
	// Requests to etcd, the CPU's seconds and the log's lines that a daemon may
	// cost, in every window and in the run.
	Requests, CPU, LogLines Budget
}

// noise is for how long the machine may lose packets in a run.
func (b Bounds) noise(run time.Duration) time.Duration {
	return max(b.NoiseLast, time.Duration(b.Noise*float64(run)))
}

// afterSilence is for how long a silence of etcd may show in what a host routes. It hears
// of etcd within Heal, holds on to what is deleted in another minute or TTL, and lets go
// within React of the end of that.
func (b Bounds) afterSilence() time.Duration {
	return b.Heal + min(b.TTL, time.Minute) + b.TTL + b.React
}

// Budget is how much of something one daemon may use in a time.
type Budget struct {
	PerMinute float64
	// Burst is what may come at once.
	Burst float64
	// PerFault is added for every fault that strains the host, PerStart for
	// every process that starts.
	PerFault, PerStart float64
}

// of is the budget for a time.
func (b Budget) of(d time.Duration, faults, starts int) float64 {
	return b.PerMinute*d.Minutes() + b.Burst + b.PerFault*float64(faults) + b.PerStart*float64(starts)
}

// DefaultBounds are the bounds for leases of a given TTL.
func DefaultBounds(ttl time.Duration) Bounds {
	return Bounds{
		TTL:   ttl,
		Lag:   2 * time.Second,
		React: 5 * time.Second,
		// Four samples, and it says so when a round is over, not before.
		Settle: time.Second,
		// What is under way is given up at once; etcd has 5 s to hear that a lease
		// is released.
		Stop:    3 * time.Second,
		Release: 5 * time.Second,
		Heal:    10 * time.Second,
		Hold:    2 * time.Second,
		Request: 10 * time.Second,
		Grace:   10 * time.Second,
		Transit: time.Second,
		// Then nine tenths of all losses are seen. A machine that does nothing
		// else loses none at all; five moments are what a short run may be unlucky
		// enough to meet.
		Noise:     0.1,
		NoiseLast: 10 * time.Second,
		Window:    10 * time.Second,
		// A keeper in trouble asks every TTL/12 at the most, two requests at a
		// time; that is four times what renewals take. Watch and view need less
		// than one request a second. A fault makes the hosts that it strains
		// load and watch anew, a start loads, leases and watches. With a TTL of
		// 5 s a window of 10 s has 58, and costs 16 where nothing happens and up
		// to 40 where six faults meet.
		Requests: Budget{PerMinute: 60 + 2*float64(time.Minute)/float64(max(ttl/12, 250*time.Millisecond)), PerFault: 10, PerStart: 60},
		// 3 % of a core, a burst for the firewall that is read at each change of it,
		// and a second for a start: a loop that keeps a core busy for as little as a
		// second shows, unless faults explain it.
		CPU: Budget{PerMinute: 1.8, Burst: 0.3, PerFault: 0.1, PerStart: 1},
		// 20 a minute is what an outage may cost; a fault changes the state of
		// lease, watch and components once and back, and others say what they
		// think of the key that it is about. The most talkative one drives a host
		// out of a full pool: it withdraws in 13 lines, and moves in 14.
		LogLines: Budget{PerMinute: 20, Burst: 10, PerFault: 30, PerStart: 40},
	}
}
