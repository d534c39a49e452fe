package robustness

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func writeSysctl(name, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644)
}

// expectation compares a record with what was done.
type expectation struct {
	t *testing.T
	*Record
}

// epochs compares why they began, and that etcd's revisions rise in each.
func (e expectation) epochs(want ...string) {
	e.t.Helper()
	var got []string
	for _, epoch := range e.Epochs {
		got = append(got, epoch.Why)
		for i, event := range epoch.Events {
			if i > 0 && event.Revision < epoch.Events[i-1].Revision {
				e.t.Errorf("revision %d follows %d", event.Revision, epoch.Events[i-1].Revision)
			}
			if event.At < epoch.Began || event.At > e.Duration {
				e.t.Errorf("revision %d was received at %s, in an epoch from %s on", event.Revision, event.At, epoch.Began)
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		e.t.Errorf("epochs (-want +got):\n%s", diff)
	}
}

// config looks for the operator's put of the config, and for nobody else's.
func (e expectation) config(text string) {
	e.t.Helper()
	for _, epoch := range e.Epochs {
		var puts int
		for _, event := range epoch.Events {
			if event.Operator != (event.Key == "config") {
				e.t.Errorf("%s: by the operator is %v", event.Key, event.Operator)
			}
			if event.Key == "config" && event.Value == text && !event.Deleted {
				puts++
			}
		}
		if puts != 1 {
			e.t.Errorf("the config was put %d times in the epoch of the %s, want once", puts, epoch.Why)
		}
	}
}

// runs compares the runs in short.
func (e expectation) runs(want ...string) {
	e.t.Helper()
	var got []string
	for _, run := range e.Runs {
		text := run.Host
		switch {
		case run.Until == 0:
			text += " alive"
		case run.Killed:
			text += fmt.Sprintf(" killed %d", run.Status)
		default:
			text += fmt.Sprintf(" ended %d", run.Status)
		}
		if run.Until != 0 && run.Until < run.From || run.Killed && run.Tail != "" {
			e.t.Errorf("%s: from %s until %s, with the log %q", text, run.From, run.Until, run.Tail)
		}
		got = append(got, text)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		e.t.Errorf("runs (-want +got):\n%s", diff)
	}
}

// samples compares the last whole sample before a time with the hosts' files and
// the lab's plan.
func (e expectation) samples(r *recorded, backend string, before time.Duration) {
	e.t.Helper()
	leases := map[string]netip.Prefix{}
	for i, h := range r.Hosts {
		leases[e.Hosts[i].Name] = r.lease(h)
	}
	for _, h := range e.Hosts {
		at := slices.IndexFunc(e.Samples, func(s Sample) bool {
			return s.Host == h.Name && s.Until <= before && s.Status != nil && s.Status.Ready && len(s.Routes) == len(e.Hosts)-1
		})
		if at < 0 {
			e.t.Errorf("%s: no sample before %s shows a whole network", h.Name, before)
			continue
		}
		s := e.Samples[at]
		var own []netip.Prefix
		if backend != "host-gw" {
			own = []netip.Prefix{netip.PrefixFrom(leases[h.Name].Addr(), 32)}
		}
		if diff := cmp.Diff(own, s.Own, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
			e.t.Errorf("%s: own addresses (-want +got):\n%s", h.Name, diff)
		}
		for _, other := range e.Hosts {
			if other.Name != h.Name && !slices.ContainsFunc(s.Routes, func(r Route) bool {
				return r.Subnet == leases[other.Name] && r.Via == other.Addr && (r.MAC != "") == (backend == "vxlan")
			}) {
				e.t.Errorf("%s: no route to %s by %s among %v", h.Name, leases[other.Name], other.Addr, s.Routes)
			}
		}
		if s.Status.Subnet != leases[h.Name] || !s.Status.Connected || s.Status.PID == 0 {
			e.t.Errorf("%s: the status is %+v, want %s", h.Name, s.Status, leases[h.Name])
		}
		text := strings.TrimSuffix(leases[h.Name].String(), "0/24") + "1/24"
		if !strings.Contains(s.SubnetEnv.Text, "FLANNEL_SUBNET="+text) || !strings.Contains(s.DockerConfig.Text, text) {
			e.t.Errorf("%s: the files are %+v and %+v, want %s", h.Name, s.SubnetEnv, s.DockerConfig, text)
		}
		if s.Until < s.From {
			e.t.Errorf("%s: sampled from %s until %s", h.Name, s.From, s.Until)
		}
	}
}

// pairs expects that what was lost was lost in a time, and only with h3.
func (e expectation) pairs(from, until time.Duration) {
	e.t.Helper()
	if len(e.Pairs) < 6 {
		e.t.Errorf("%d pairs, want all 6 at least", len(e.Pairs))
	}
	lost := map[bool]int{}
	for _, p := range e.Pairs {
		third := p.From == "h3" || p.To == "h3"
		for _, at := range p.Lost {
			if at >= from-p.Interval && at <= until+p.Interval {
				lost[third]++
			}
		}
		if p.Interval != 20*time.Millisecond {
			e.t.Errorf("an interval of %s", p.Interval)
		}
		if most := int((p.Ended-p.Began)/p.Interval) + 1; p.Sent > most || p.Ended > e.Duration {
			e.t.Errorf("%d requests from %s to %s", p.Sent, p.Began, p.Ended)
		}
	}
	// 4 pairs, 100 requests each, and fewer of a process that is given no time.
	if lost[true] < 20 || lost[false] > 0 {
		e.t.Errorf("while h3 was cut off its pairs lost %d and the others %d requests", lost[true], lost[false])
	}
}

// courses expects that what a host cost was looked at all the time, and only grew.
func (e expectation) courses() {
	e.t.Helper()
	for _, l := range e.Load {
		total := Cost{At: e.Duration, Requests: l.Requests, CPU: l.CPU, LogLines: l.LogLines}
		var last Cost
		for _, c := range append(l.Course, total) {
			if c.Requests < last.Requests || c.CPU < last.CPU || c.LogLines < last.LogLines || c.At <= last.At {
				e.t.Errorf("%s: %+v follows %+v", l.Host, c, last)
			}
			last = c
		}
		if len(l.Course) < 2 || total.At-l.Course[len(l.Course)-1].At > 5*time.Second {
			e.t.Errorf("%s: its course has %d steps", l.Host, len(l.Course))
		}
	}
}

// final expects that the hosts named, and no others, were well in the end.
func (e expectation) final(hosts ...string) {
	e.t.Helper()
	var leased, ready []string
	for h, took := range e.Final.Leased {
		if took >= 0 {
			leased = append(leased, h)
		}
	}
	for h, took := range e.Final.Ready {
		if took >= 0 {
			ready = append(ready, h)
		}
	}
	slices.Sort(leased)
	slices.Sort(ready)
	if diff := cmp.Diff([][]string{hosts, hosts}, [][]string{leased, ready}); diff != "" {
		e.t.Errorf("leased and ready (-want +got):\n%s", diff)
	}
}

// mesh expects that all containers talked in the end but for some pairs.
func (e expectation) mesh(silent ...string) {
	e.t.Helper()
	slices.Sort(e.Final.Silent)
	if diff := cmp.Diff(silent, e.Final.Silent); diff != "" || (e.Final.Mesh < 0) != (len(silent) > 0) {
		e.t.Errorf("the mesh took %s; silent (-want +got):\n%s", e.Final.Mesh, diff)
	}
}

// saved writes the record and reads it again.
func (e expectation) saved() {
	e.t.Helper()
	dir := e.t.TempDir()
	if err := e.Save(dir); err != nil {
		e.t.Fatal(err)
	}
	got, err := LoadRecord(dir)
	if err != nil {
		e.t.Fatal(err)
	}
	if diff := cmp.Diff(e.Record, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); diff != "" {
		e.t.Errorf("after loading (-want +got):\n%s", diff)
	}
}
