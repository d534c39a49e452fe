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
	)
	return []spec{
		{FaultKill, "", some, claimDaemon, both, nil},
		{FaultStop, "", some, claimDaemon, both, nil},
		{FaultPause, "", one, claimDaemon, both, nil},
		{FaultPartition, variantBoth, one, claimLink, both, nil},
		{FaultPartition, variantIn, one, claimLink, both, nil},
		{FaultPartition, variantOut, one, claimLink, both, nil},
		{FaultBlock, variantBoth, some, claimLink, both, nil},
		{FaultBlock, variantIn, one, claimLink, both, nil},
		{FaultBlock, variantOut, one, claimLink, both, nil},
		{FaultSlow, "", some, claimLink, ample, []span{{0.004, 0.08}}},
		{FaultCut, "", some, claimLink, both, nil},

		{FaultMemberKill, variantLeader, nobody, claimEtcd, []span{any}, nil},
		{FaultMemberKill, variantFollower, nobody, claimEtcd, []span{any}, nil},
		{FaultMemberPause, variantLeader, nobody, claimEtcd, []span{any}, nil},
		{FaultMemberPause, variantFollower, nobody, claimEtcd, []span{any}, nil},
		{FaultMajority, "", nobody, claimEtcd, ample, nil},
		{FaultDown, "", nobody, claimEtcd, ample, nil},
		{FaultOffline, "", many, claimEtcd | claimDaemon, []span{{1, 2}}, nil},
		{FaultCompact, "", nobody, 0, nil, nil},
		{FaultDefragment, "", nobody, claimEtcd, nil, nil},
		{FaultNoSpace, "", nobody, claimEtcd, ample, nil},
		{FaultWipe, "", nobody, claimGlobal, []span{{0.02, 0.2}, long}, nil},
		{FaultRestore, "", nobody, claimGlobal, []span{{1, 2.5}}, nil},

		{FaultRevoke, "", one, claimKey, nil, nil},
		{FaultDelete, "", some, claimKey, nil, nil},
		{FaultOverwrite, variantForeign, one, claimKey, []span{any}, nil},
		{FaultOverwrite, variantGarbage, one, claimKey, []span{any}, nil},
		{FaultOverwrite, variantDetached, one, claimKey, nil, nil},
		{FaultOverwrite, variantFlannel, one, claimKey, nil, nil},
		{FaultReserve, "", one, claimKey, nil, nil},
		{FaultExhaust, "", one, claimKey | claimPool | claimConfig, []span{any}, nil},
		{FaultConfig, variantHarmless, nobody, claimConfig, []span{any}, nil},
		{FaultConfig, variantInvalid, nobody, claimConfig, []span{any}, nil},
		{FaultConfig, variantRange, nobody, claimConfig, []span{any}, nil},
		{FaultNoConfig, "", nobody, claimConfig, both, nil},

		{FaultClock, variantWall, one, claimClock, nil, []span{{-2000, -1}, {1, 2000}}},
		{FaultClock, variantBoot, one, claimClock, nil, []span{{0.1, 0.6}, {1.1, 4}, {100, 20000}}},
		{FaultDisk, "", one, claimDisk, []span{{1, 3}}, nil},
	}
}
