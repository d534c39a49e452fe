package robustness

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/subnet"
)

const (
	// upWithin is how long the network may take to stand before the first
	// fault.
	upWithin = 90 * time.Second
	// knownFor is how long all is recorded before the first fault: of what happens at
	// once the record would not say what was there before, and nothing could be judged.
	knownFor = 3 * time.Second
	// healWithin is how long the run's own hands may take to heal a fault.
	healWithin = 60 * time.Second
	// settleWithin is how long hosts may take to be as they should after the
	// last fault until they are measured anyway: less than Bounds.Heal.
	settleWithin = 7 * time.Second
)

// hostPlan is what is particular about one host. The zero value is a host like
// any other.
type hostPlan struct {
	// Policy is its --on-conflict.
	Policy subnet.OnConflict
	// Foreign is a prefix that it routes elsewhere before the daemon starts.
	Foreign netip.Prefix
	// Reserved: a subnet is reserved for it before it starts.
	Reserved bool
	// SmallDisk: its state directory can be filled.
	SmallDisk bool
	// Releases: it gives its lease up when it is asked to end.
	Releases bool
	// NodeID is its --node-id; the lab's name of it when empty.
	NodeID string
}

// trialOptions describe one run. Daemon, Self and Ctl are the binaries of
// flanneld-go, flannel-lab and flannelctl.
type trialOptions struct {
	Seed    uint64
	Hosts   []hostPlan
	TTL     time.Duration
	Members int
	// Spare is how many subnets the pool has beyond one for each host.
	Spare int
	// InTurn: a host starts when the one before it has its subnet. Otherwise all
	// start at once.
	InTurn            bool
	Daemon, Self, Ctl string
	Steps             []Step
	// Quiet is how long the hosts are left alone and watched when the schedule
	// is over; at least until they are measured.
	Quiet time.Duration
	// Script, when set, is done in place of Steps.
	Script func(context.Context, *trial) error
	// Log, when set, is told what is done, by one goroutine at a time.
	Log func(format string, args ...any)
}

// trial is a run under way: a lab, what is done to it, and what is written down.
//
//	hands:     operator  --etcd's client-->  cluster
//	           chaos     --faults-->         members, proxies, hosts, clocks
//	           systemd   --starts-->         daemons that have ended
//	           Docker    --subnet.env-->     docker0, containers
//	recorder:  watches all of it
type trial struct {
	trialOptions
	lab     *lab.Lab
	cluster *lab.Cluster
	rec     *recorder
	hosts   []*host
	network network
	control control
	// recording: the recorder was started, and not stopped.
	recording bool
	// begun is when the schedule did, on the recorder's clock.
	begun time.Duration

	// docker is held while a container is made or removed: the recorder reads
	// those of all hosts then.
	docker sync.Mutex
	// exclusive are held by faults that claim etcd, its config and the pool.
	exclusive [3]sync.Mutex
	// telling is held while Log is called.
	telling sync.Mutex
	// tasks are the hands of systemd and Docker; ctx ends them.
	tasks *errgroup.Group
	ctx   context.Context
	end   context.CancelFunc

	mu sync.Mutex
	// The fields below are guarded by mu.

	// done are the faults so far, tried how often which was to be done.
	done  []deed
	tried map[FaultKind]attempts
	// ghosts is how many owners were invented.
	ghosts int
	// reserved is what flannelctl was asked to do.
	reserved []reserved
	// snapshot is who had which subnet when etcd was backed up.
	snapshot map[string]string
}

// execute makes a network, does what the options say to it, and hands what was
// seen to judge before all of it goes. When that is not as wanted, or could not
// be done, logs and record are kept, and the error says where.
func execute(ctx context.Context, o trialOptions, judge func(*Record) error) (err error) {
	l, err := lab.New(ctx, lab.Options{Hosts: len(o.Hosts), Daemon: o.Daemon, Self: o.Self})
	if err != nil {
		return err
	}
	t := &trial{trialOptions: o, lab: l, network: networkFor(len(o.Hosts) + o.Spare)}
	running, end := context.WithCancel(ctx)
	tasks, running := errgroup.WithContext(running)
	t.tasks, t.ctx, t.end = tasks, running, end
	defer func() {
		t.end()
		t.control.stop()
		err = errors.Join(err, t.tasks.Wait())
		if t.recording {
			_, stopped := t.rec.stop(ctx)
			err = errors.Join(err, stopped)
		}
		if err != nil {
			l.KeepFiles()
			err = fmt.Errorf("seed %d: %w\neverything that is left of it: %s", o.Seed, err, l.Dir)
		}
		err = errors.Join(err, l.Close(ctx))
	}()
	if err := t.start(ctx); err != nil {
		return fmt.Errorf("start the network: %w", err)
	}
	err = errors.Join(t.disturb(running), t.futile())
	if ctx.Err() != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	record, stopped := t.stop(ctx)
	if err = errors.Join(err, stopped); err == nil {
		err = judge(record)
	}
	if err != nil && record != nil {
		err = errors.Join(err, record.Save(l.Dir))
	}
	return err
}

// start brings etcd, daemons and containers up.
func (t *trial) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, upWithin, fmt.Errorf("not within %s", upWithin))
	defer cancel()
	var err error
	if t.cluster, err = t.lab.StartCluster(ctx, lab.ClusterOptions{Members: t.Members}); err != nil {
		return err
	}
	for i, h := range t.lab.Hosts {
		prepared, err := t.prepare(h, t.Hosts[i])
		if err != nil {
			return fmt.Errorf("prepare %s: %w", h.Name, err)
		}
		t.hosts = append(t.hosts, prepared)
	}
	t.rec = newRecorder(t.lab, t.cluster, recorderOptions{Seed: t.Seed, TTL: t.TTL, Hosts: t.described()})
	if err := t.rec.start(ctx); err != nil {
		return err
	}
	t.recording = true
	if err := t.furnish(ctx); err != nil {
		return err
	}
	for _, h := range t.hosts {
		if err := h.release(); err != nil { //nolint:contextcheck // the recorder watches it for longer
			return err
		}
		if !t.InTurn {
			continue
		}
		if _, err := h.WaitSubnet(ctx); err != nil {
			return err
		}
	}
	return t.connect(ctx)
}

// described are the hosts in the recorder's words.
func (t *trial) described() []Host {
	var all []Host
	for _, h := range t.hosts {
		d := Host{Name: h.name, Node: subnet.NodeID(h.node()), Addr: h.Addrs[0].Addr(), Policy: h.plan.Policy, Releases: h.plan.Releases}
		if h.plan.Foreign.IsValid() {
			d.Foreign = []netip.Prefix{h.plan.Foreign}
		}
		all = append(all, d)
	}
	return all
}

// furnish puts what the operator puts before the first host comes: reservations
// and the config.
func (t *trial) furnish(ctx context.Context) error {
	reserved := 0
	for _, h := range t.hosts {
		if !h.plan.Reserved {
			continue
		}
		value, err := subnet.Attrs{Owner: subnet.NodeID(h.node())}.MarshalJSON()
		if err != nil {
			return err
		}
		// From the end of the pool, where few hosts begin to look.
		reserved++
		key := subnetKey(t.network.pool[len(t.network.pool)-reserved])
		if err := t.commit(ctx, nil, clientv3.OpPut(key, string(value)+byHand)); err != nil {
			return err
		}
	}
	return t.putConfig(ctx, nil)
}

// connect gives every host a container and waits until all have talked; then the
// pings begin and Docker's hands take over.
func (t *trial) connect(ctx context.Context) error {
	if err := errors.Join(t.lab.StartContainers(ctx), t.lab.WaitMesh(ctx)); err != nil {
		return err
	}
	if err := t.startControl(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	for _, h := range t.hosts {
		if err := t.rec.retarget(ctx, h.Host); err != nil {
			return err
		}
	}
	for _, h := range t.hosts {
		env, err := h.ReadSubnet()
		if err != nil {
			return err
		}
		t.tasks.Go(func() error { return h.followSubnet(t.ctx, env) })
	}
	return nil
}

// disturb does the schedule or the script.
func (t *trial) disturb(ctx context.Context) error {
	if t.Script != nil {
		t.begun = t.rec.now()
		return t.Script(ctx, t)
	}
	after(ctx, knownFor)
	t.begun = t.rec.now()
	return t.performAll(ctx, t.Steps)
}

// performAll does steps, each at its time.
func (t *trial) performAll(ctx context.Context, steps []Step) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range steps {
		g.Go(func() error { return t.perform(ctx, s) })
	}
	return g.Wait()
}

// stop waits until the network is whole again, measures it, watches it for as
// long as is wanted, and ends the record.
func (t *trial) stop(ctx context.Context) (*Record, error) {
	healed := t.rec.now()
	err := t.tidy(ctx)
	t.settle(ctx, healed+settleWithin)
	// From here on nobody touches the lab.
	t.end()
	err = errors.Join(err, t.tasks.Wait(), t.rec.finish(ctx, healed, DefaultBounds(t.TTL)))
	// A mesh that is whole does not yet say that nobody uses what is another's.
	after(ctx, healed+t.Quiet-t.rec.now())
	t.control.stop()
	lost, uncounted := t.control.lost(t.rec.at)
	t.account(lost)
	record, stopped := t.rec.stop(ctx)
	t.recording = false
	if record != nil {
		attribute(record, t.reserved)
	}
	return record, errors.Join(err, uncounted, stopped)
}

// attribute marks the operator's writes that were not told the recorder: those of
// flannelctl, and those whose answers got lost.
func attribute(r *Record, deeds []reserved) {
	for i := range r.Epochs {
		events := r.Epochs[i].Events
		for j, e := range events {
			if e.Key == keyConfig || strings.HasSuffix(e.Value, byHand) {
				events[j].Operator = true
			}
		}
		for _, deed := range deeds {
			if first := slices.IndexFunc(events, deed.did); first >= 0 {
				events[first].Operator = true
			}
		}
	}
}

// tidy removes what faults that were refused half-way have left.
func (t *trial) tidy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healWithin)
	defer cancel()
	if err := t.cluster.WaitHealthy(ctx); err != nil {
		return err
	}
	resp, err := t.cluster.Client().Get(ctx, configKey)
	if err == nil && (len(resp.Kvs) == 0 || string(resp.Kvs[0].Value) != t.network.config()) {
		err = t.putConfig(ctx, nil)
	}
	return errors.Join(err, t.exorcise(ctx))
}

// settle waits until every container has the subnet of its host's daemon, which
// is ready, or a time on the recorder's clock.
func (t *trial) settle(ctx context.Context, until time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, until-t.rec.now())
	defer cancel()
	for _, h := range t.hosts {
		_ = poll(ctx, func() bool { return h.settled(ctx) }) // Those that do not are measured as they are.
	}
}

// account adds the faults to the record, what followed from them, and what the
// control lost.
func (t *trial) account(lost []time.Duration) {
	for _, f := range blips(lost) {
		t.rec.addFault(f)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range mute(t.control.kernel.slow, t.everybody()) {
		t.rec.addFault(f)
	}
	deeds := slices.Concat(t.done, starved(t.control.etcd.slow, t.done, t.everybody(), t.control.etcd.tooLong))
	for _, d := range deeds {
		t.rec.addFault(d.Fault)
	}
	for _, f := range consequences(deeds, t.everybody(), t.TTL) {
		t.rec.addFault(f)
	}
}

// names are the hosts' of some numbers.
func (t *trial) names(numbers []int) []string {
	var names []string
	for _, n := range numbers {
		names = append(names, t.hosts[n-1].name)
	}
	return names
}

// everybody are the names of all hosts.
func (t *trial) everybody() []string {
	var names []string
	for _, h := range t.hosts {
		names = append(names, h.name)
	}
	return names
}

// pollEvery is how often the run looks at what has no events.
const pollEvery = 50 * time.Millisecond

// poll looks until look reports true, or returns the context's error.
func poll(ctx context.Context, look func() bool) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for !look() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// after waits, and reports whether it did to the end.
func after(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
