package robustness

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/subnet"
)

const (
	storyTTL    = 10 * time.Second
	storySample = 500 * time.Millisecond
	storyConfig = `{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.9.0","Backend":{"Type":"vxlan"}}`
	storyMTU    = 1450
)

// story is a record made by hand: the world in which all goes well by itself, and
// what a test makes of it. Hosts h1, h2, ... have nodes n1, n2, ..., addresses
// 198.18.0.1, .2, ... and lease 10.5.1.0/24, 10.5.2.0/24, ...; their samples show
// what etcd holds at the moment.
type story struct {
	*Record
	t     testing.TB
	now   time.Duration
	rev   subnet.Revision
	lease subnet.LeaseID
	keys  map[string]Event
	// readable is what was last put of each key that can be read.
	readable map[string]Event
	// processes count those of each host; hands says who writes.
	processes map[string]int
	operator  bool
	// shown is each host's last sample, frozen hosts show no other. hooks
	// change the samples of their hosts.
	shown  map[string]Sample
	frozen map[string]bool
	hooks  map[string]func(*Sample)
	// absent hosts wait to be started by the test.
	absent []string
}

// narrate begins a story with a number of running hosts that have their leases, and
// goes to its 20th second.
func narrate(t testing.TB, hosts int, change ...func(*story)) *story {
	s := &story{
		Record: &Record{Seed: 1, TTL: storyTTL, Epochs: []Epoch{{Why: "start"}}},
		t:      t, keys: map[string]Event{}, readable: map[string]Event{}, processes: map[string]int{},
		shown: map[string]Sample{}, frozen: map[string]bool{}, hooks: map[string]func(*Sample){},
	}
	for i := 1; i <= hosts; i++ {
		s.Hosts = append(s.Hosts, Host{
			Name: fmt.Sprintf("h%d", i), Node: subnet.NodeID(fmt.Sprintf("n%d", i)),
			Addr: netip.AddrFrom4([4]byte{198, 18, 0, byte(i)}),
		})
	}
	for _, f := range change {
		f(s)
	}
	s.byOperator(func() { s.put("config", storyConfig) })
	for i, h := range s.Hosts {
		if slices.Contains(s.absent, h.Name) {
			continue
		}
		s.start(h.Name)
		s.create(h.Name, home(i+1))
	}
	s.to(20 * time.Second)
	return s
}

// home is the key that host i has.
func home(i int) string { return fmt.Sprintf("subnets/10.5.%d.0-24", i) }

func (s *story) host(name string) Host {
	i := slices.IndexFunc(s.Hosts, func(h Host) bool { return h.Name == name })
	if i < 0 {
		s.t.Fatalf("no host %s in this story", name)
	}
	return s.Hosts[i]
}

// attrs is what the present process of a host writes.
func (s *story) attrs(host string) subnet.Attrs {
	h := s.host(host)
	var a subnet.Attrs
	a.PublicIP[subnet.IPv4] = h.Addr
	a.BackendType = "vxlan"
	a.BackendData[subnet.IPv4] = subnet.RawJSON(fmt.Sprintf(`{"VNI":1,"VtepMAC":"aa:00:00:00:00:%02x"}`, h.Addr.As4()[3]))
	a.Owner = h.Node
	a.Instance = fmt.Sprintf("%s#%d", host, s.processes[host])
	return a
}

// value is the JSON of what the present process of a host writes, changed.
func (s *story) value(host string, change ...func(*subnet.Attrs)) string {
	a := s.attrs(host)
	for _, f := range change {
		f(&a)
	}
	text, err := json.Marshal(a)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

// start begins a process.
func (s *story) start(host string) {
	s.processes[host]++
	s.Runs = append(s.Runs, Run{Host: host, From: s.now})
}

// end ends the process of a host.
func (s *story) end(host string, change func(*Run)) {
	for i := range s.Runs {
		if r := &s.Runs[i]; r.Host == host && r.Until == 0 {
			r.Until = s.now
			change(r)
		}
	}
	s.frozen[host] = true
}

func killed(r *Run) { r.Killed = true }

// restart ends a process and begins another after a while.
func (s *story) restart(host string, after time.Duration) {
	s.end(host, killed)
	s.to(s.now + after)
	s.start(host)
	s.frozen[host] = false
}

// byOperator marks what is written meanwhile.
func (s *story) byOperator(f func()) {
	s.operator = true
	f()
	s.operator = false
}

// event appends one, with what etcd would say of the key.
func (s *story) event(e Event) {
	s.rev++
	e.At, e.Revision, e.Operator = s.now, s.rev, s.operator
	old, existed := s.keys[e.Key]
	switch {
	case e.Deleted:
		e.Lease = 0
		delete(s.keys, e.Key)
		delete(s.readable, e.Key)
	case existed:
		e.Created = old.Created
	default:
		e.Created = s.rev
	}
	if !e.Deleted {
		s.keys[e.Key] = e
		if _, readable := attrsOf(e.Value); readable {
			s.readable[e.Key] = e
		}
	}
	last := &s.Epochs[len(s.Epochs)-1]
	last.Events = append(last.Events, e)
}

// put writes a value and keeps the lease that the key hangs on.
func (s *story) put(key, value string) {
	s.event(Event{Key: key, Value: value, Lease: s.keys[key].Lease})
}

// putLeased writes a value under a new lease.
func (s *story) putLeased(key, value string) {
	s.lease++
	s.event(Event{Key: key, Value: value, Lease: s.lease})
}

// putBare writes a value under no lease.
func (s *story) putBare(key, value string) { s.event(Event{Key: key, Value: value}) }

func (s *story) del(key string) { s.event(Event{Key: key, Deleted: true}) }

// create is what a daemon does without a lease, take what it does with one of its
// own, move both.
func (s *story) create(host, key string) { s.putLeased(key, s.value(host)) }
func (s *story) take(host, key string)   { s.put(key, s.value(host)) }

// wipe empties etcd and begins an epoch; restore begins one with keys of now.
func (s *story) wipe() {
	s.keys = map[string]Event{}
	s.rev = 0
	s.Epochs = append(s.Epochs, Epoch{Began: s.now, Why: "wipe"})
}

func (s *story) restore(keys map[string]Event, rev subnet.Revision) {
	e := Epoch{Began: s.now, Why: "restore"}
	for _, key := range sortedKeys(keys) {
		event := keys[key]
		event.At = s.now
		e.Base = append(e.Base, event)
	}
	s.keys, s.rev = cloneKeys(keys), rev
	for key, e := range s.keys {
		if _, readable := attrsOf(e.Value); readable {
			s.readable[key] = e
		}
	}
	s.Epochs = append(s.Epochs, e)
}

func cloneKeys(keys map[string]Event) map[string]Event {
	out := map[string]Event{}
	for k, v := range keys {
		out[k] = v
	}
	return out
}

func sortedKeys(keys map[string]Event) []string {
	var out []string
	for k := range keys {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// fault adds one that begins now and lasts for a while.
func (s *story) fault(d time.Duration, f Fault) {
	f.From, f.Until = s.now, s.now+d
	s.Faults = append(s.Faults, f)
}

// cutOff keeps hosts from etcd for a while.
func (s *story) cutOff(d time.Duration, hosts ...string) {
	s.fault(d, Fault{Kind: "cut", Unreachable: hosts})
}

// to goes on in time, and takes the samples that fall due.
func (s *story) to(when time.Duration) {
	for next := s.now.Truncate(storySample) + storySample; next <= when; next += storySample {
		s.now = next
		for _, h := range s.Hosts {
			s.sample(h)
		}
	}
	s.now = when
}

// then goes on for a while.
func (s *story) then(d time.Duration) { s.to(s.now + d) }

func (s *story) sample(h Host) {
	now := s.show(h)
	if s.frozen[h.Name] {
		now = s.shown[h.Name]
		now.Status = nil
		if last := s.shown[h.Name].Status; s.Runs != nil && last != nil && s.alive(h.Name) {
			now.Status = last
		}
	}
	now.From, now.Until = s.now, s.now+20*time.Millisecond
	if hook := s.hooks[h.Name]; hook != nil {
		now.Routes = slices.Clone(now.Routes)
		hook(&now)
	}
	if !s.frozen[h.Name] {
		s.shown[h.Name] = now
	}
	s.Samples = append(s.Samples, now)
}

func (s *story) alive(host string) bool {
	return slices.ContainsFunc(s.Runs, func(r Run) bool { return r.Host == host && r.Until == 0 })
}

// show is what a host that follows etcd at once looks like.
func (s *story) show(h Host) Sample {
	last := s.shown[h.Name]
	out := Sample{Host: h.Name, SubnetEnv: last.SubnetEnv, DockerConfig: last.DockerConfig, Own: last.Own, Status: &HostStatus{LeaseState: "conflict", Connected: true}}
	if last.Status != nil {
		out.Status.Subnet = last.Status.Subnet
	}
	for _, key := range sortedKeys(s.keys) {
		name, ours := strings.CutPrefix(key, "subnets/")
		x, err := subnet.ParseSubnet(name)
		if !ours || err != nil {
			continue
		}
		p, e := x[subnet.IPv4], s.keys[key]
		known := s.readable[key]
		a, readable := attrsOf(known.Value)
		own := a.Owner == h.Node || a.Owner == "" && a.PublicIP[subnet.IPv4] == h.Addr
		switch {
		case own && e == known:
			out.Own = []netip.Prefix{netip.PrefixFrom(p.Addr(), 32)}
			out.SubnetEnv, out.DockerConfig = envOf(p), dockerOf(p)
			out.Status = &HostStatus{Ready: true, LeaseState: "valid", Subnet: p, Connected: true, Reservation: e.Lease == 0}
		case !own && readable:
			var data struct{ VtepMAC string }
			_ = json.Unmarshal([]byte(a.BackendData[subnet.IPv4]), &data)
			out.Routes = append(out.Routes, Route{Subnet: p, Via: a.PublicIP[subnet.IPv4], MAC: data.VtepMAC})
		}
	}
	return out
}

// attrsOf reads a value.
func attrsOf(value string) (a subnet.Attrs, readable bool) {
	err := json.Unmarshal([]byte(value), &a)
	return a, err == nil
}

func envOf(p netip.Prefix) File {
	e := daemonconfig.Env{MTU: storyMTU}
	e.Networks[0], e.Subnets[0] = netip.MustParsePrefix("10.5.0.0/16"), p
	return File{Exists: true, Text: string(e.Format())}
}

func dockerOf(p netip.Prefix) File {
	return File{Exists: true, Text: fmt.Sprintf("{\n  \"bip\": %q,\n  \"mtu\": %d\n}\n", daemonconfig.HostAddr(p), storyMTU)}
}

// record ends the story.
func (s *story) record() *Record {
	s.Duration = s.now
	return s.Record
}

// judge is what all validators say, each in a line: name, host, time.
func judge(r *Record) []string {
	var out []string
	for _, v := range Validate(r, Validators(DefaultBounds(r.TTL))).Violations() {
		out = append(out, strings.Join(strings.Fields(fmt.Sprintf("%s %s %s", v.Validator, v.Host, v.At)), " "))
	}
	slices.Sort(out)
	return out
}
