package scale

import "github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page"

// The keys of figures.
const (
	keyStart     = "start_seconds"
	keyStartCPU  = "start_cpu_seconds"
	keyQuietCPU  = "settled_cpu_seconds"
	keyMemory    = "memory_mb"
	keyFloor     = "iproute2_seconds"
	keyFallback  = "fallback_seconds"
	keySingle    = "single_p50_ms"
	keySingle99  = "single_p99_ms"
	keyChurn     = "churn_p50_ms"
	keyChurn99   = "churn_p99_ms"
	keyChurnCPU  = "churn_cpu_percent"
	keyChurnRate = "churn_rate"
)

// figure is one thing that is measured.
type figure struct{ key, title, unit string }

// startFigures are measured of each number of peers.
func startFigures() []figure {
	return []figure{
		{keyStart, "process start to the last route", "s"},
		{keyFloor, "the same entries by `bridge -batch` and `ip -batch`", "s"},
		{keyFallback, "the same entries as the daemon writes them without nexthop objects", "s"},
		{keyStartCPU, "CPU of the daemon until the last route", "s"},
		{keyQuietCPU, "CPU of the daemon until 2 s after it was ready", "s"},
		{keyMemory, "memory of the daemon, at most", "MB"},
	}
}

// changeFigures are measured of one number of peers.
func changeFigures() []figure {
	return []figure{
		{keySingle, "one change at a time, commit to kernel, median", "ms"},
		{keySingle99, "the same, 99 of 100", "ms"},
		{keyChurn, "changes at a rate, commit to kernel, median", "ms"},
		{keyChurn99, "the same, 99 of 100", "ms"},
		{keyChurnRate, "changes that were made", "1/s"},
		{keyChurnCPU, "CPU of the daemon meanwhile, of one core", "%"},
	}
}

// claim is something that is to be shown (#6).
type claim struct {
	title string
	// peers is the number of peers that it is about, key the figure.
	peers int
	key   string
	// below is what the figure must stay under.
	below float64
	unit  string
}

func claims() []claim {
	return []claim{
		{"10,000 peers, process start to the last route", 10_000, keyStart, 0.6, "s"},
		{"10,000 peers, CPU until the last route", 10_000, keyStartCPU, 0.5, "s"},
		{"10,000 peers, memory", 10_000, keyMemory, 64, "MB"},
		{"50,000 peers, process start to the last route", 50_000, keyStart, 4, "s"},
		{"50,000 peers, memory", 50_000, keyMemory, 256, "MB"},
		{"one change among 10,000 peers, median", 10_000, keySingle, 5, "ms"},
		{"one change among 10,000 peers, 99 of 100", 10_000, keySingle99, 50, "ms"},
		{"100 changes a second among 10,000 peers, CPU of one core", 10_000, keyChurnCPU, 10, "%"},
	}
}

// Claims are what the run was to show, and what it found.
func (r Report) Claims() []page.Claim {
	var all []page.Claim
	for _, c := range claims() {
		all = append(all, page.Claim{
			Title: c.title, Found: page.Median(r.values(c.peers, c.key)), Unit: c.unit, Bound: page.Under(c.below),
			Timed: c.key != keyMemory,
		})
	}
	return all
}
