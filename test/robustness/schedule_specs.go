package robustness

// claim is what a fault changes: of each host's, or of all there is, one.
type claim uint16

const (
	claimDaemon claim = 1 << iota
	claimLink
	claimKey
	claimClock
	claimDisk
	// claimEtcd: members, or their data. At most one such fault at a time, or
	// two that etcd survives would be one that it does not.
	claimEtcd
	claimConfig
	claimPool

	claimGlobal = claimEtcd | claimConfig | claimPool
)

// number is how many hosts a fault is done to.
type number uint8

const (
	nobody number = iota
	one
	// some are up to a third, many half or more.
	some
	many
)

// span is a range of durations, in TTLs.
type span struct{ least, most float64 }

// spec is one fault in one variant.
type spec struct {
	kind    FaultKind
	variant string
	whom    number
	claims  claim
	// lasts and amounts are ranges of which one is drawn, and then a value of it.
	lasts, amounts []span
	// stays: it lasts until all hosts must have followed, too.
	stays bool
	// long: only long runs have it.
	long bool
}

// specs are all faults. A host's lease outlives brief ones for certain, and
// long ones never: it is renewed every third of its TTL, and peers hold on to a
// deleted one for 2 s.
func specs() []spec {
	var (
		brief = span{0.05, 0.25}
		long  = span{1.3, 2}
		any   = span{0.3, 2}
		both  = []span{brief, long}
		ample = []span{{0.5, 2.5}}
		// Time to learn of a ghost, and a gap that a lease outlives.
		gap   = span{0.7, 0.9}
		moves = claimPool | claimEtcd | claimDaemon | claimLink
	)
	return []spec{
		{kind: FaultKill, whom: some, claims: claimDaemon, lasts: both},
		{kind: FaultStop, whom: some, claims: claimDaemon, lasts: both},
		{kind: FaultStop, variant: variantRelease, whom: one, claims: claimDaemon, lasts: both},
		{kind: FaultPause, whom: one, claims: claimDaemon, lasts: both},
		{kind: FaultPartition, variant: variantBoth, whom: one, claims: claimLink, lasts: both},
		{kind: FaultPartition, variant: variantIn, whom: one, claims: claimLink, lasts: both},
		{kind: FaultPartition, variant: variantOut, whom: one, claims: claimLink, lasts: both},
		{kind: FaultBlock, variant: variantBoth, whom: some, claims: claimLink, lasts: both},
		{kind: FaultBlock, variant: variantLong, whom: one, claims: claimLink, lasts: []span{{8, 9}}, long: true},
		{kind: FaultBlock, variant: variantIn, whom: one, claims: claimLink, lasts: both},
		{kind: FaultBlock, variant: variantOut, whom: one, claims: claimLink, lasts: both},
		{kind: FaultSlow, whom: some, claims: claimLink, lasts: ample, amounts: []span{{0.004, 0.08}}},
		{kind: FaultCut, whom: some, claims: claimLink, lasts: both},

		{kind: FaultMemberKill, variant: variantLeader, claims: claimEtcd, lasts: []span{any}},
		{kind: FaultMemberKill, variant: variantFollower, claims: claimEtcd, lasts: []span{any}},
		{kind: FaultMemberPause, variant: variantLeader, claims: claimEtcd, lasts: []span{any}},
		{kind: FaultMemberPause, variant: variantFollower, claims: claimEtcd, lasts: []span{any}},
		{kind: FaultMajority, claims: claimEtcd, lasts: ample},
		{kind: FaultDown, claims: claimEtcd, lasts: ample},
		{kind: FaultOffline, whom: many, claims: claimEtcd | claimDaemon, lasts: []span{{1, 2}}},
		{kind: FaultCompact},
		{kind: FaultDefragment, claims: claimEtcd},
		{kind: FaultNoSpace, claims: claimEtcd, lasts: ample},
		{kind: FaultWipe, claims: claimGlobal, lasts: []span{{0.02, 0.2}, long}},
		{kind: FaultRestore, claims: claimGlobal, lasts: []span{{1, 2.5}}},

		{kind: FaultRevoke, whom: one, claims: claimKey},
		{kind: FaultDelete, whom: some, claims: claimKey},
		{kind: FaultOverwrite, variant: variantForeign, whom: one, claims: claimKey, lasts: []span{any}},
		{kind: FaultOverwrite, variant: variantGarbage, whom: one, claims: claimKey, lasts: []span{any}},
		{kind: FaultOverwrite, variant: variantDetached, whom: one, claims: claimKey},
		{kind: FaultOverwrite, variant: variantFlannel, whom: one, claims: claimKey},
		{kind: FaultReserve, whom: one, claims: claimKey},
		{kind: FaultExhaust, whom: one, claims: claimKey | claimPool | claimConfig, lasts: []span{any}},
		{kind: FaultUsurp, whom: one, claims: claimGlobal | claimDaemon | claimLink | claimKey, lasts: []span{long}, stays: true},
		{kind: FaultMove, variant: variantAddress, whom: one, claims: moves, lasts: []span{gap}, stays: true},
		{kind: FaultMove, variant: variantMAC, whom: one, claims: moves, lasts: []span{gap}, stays: true},
		{kind: FaultConfig, variant: variantHarmless, claims: claimConfig, lasts: []span{any}},
		{kind: FaultConfig, variant: variantInvalid, claims: claimConfig, lasts: []span{any}},
		{kind: FaultConfig, variant: variantRange, claims: claimConfig, lasts: []span{any}},
		{kind: FaultNoConfig, claims: claimConfig, lasts: both},

		{kind: FaultClock, variant: variantWall, whom: one, claims: claimClock, amounts: []span{{-2000, -1}, {1, 2000}}},
		{kind: FaultClock, variant: variantBoot, whom: one, claims: claimClock, amounts: []span{{0.1, 0.6}, {1.1, 4}, {100, 20000}}},
		{kind: FaultDisk, whom: one, claims: claimDisk, lasts: []span{{1, 3}}},
	}
}
