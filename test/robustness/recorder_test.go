package robustness

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// recorded is a lab under a recorder, with its daemons not yet started.
type recorded struct {
	t *testing.T
	*lab.Lab
	*recorder
	cluster *lab.Cluster
}

func newRecorded(t *testing.T, hosts, members int) *recorded {
	t.Helper()
	if err := lab.CheckRoot(); err != nil {
		t.Skip(err)
	}
	b := newBuilder(t)
	ctx := within(t, 3*time.Minute)
	daemon, err := b.build(ctx, "flanneld-go", "cmd/flanneld-go")
	if err != nil {
		t.Fatal(err)
	}
	self, err := b.build(ctx, "flannel-lab", "cmd/flannel-lab")
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(ctx, lab.Options{Hosts: hosts, Daemon: daemon, Self: self})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
	c, err := l.StartCluster(ctx, lab.ClusterOptions{Members: members})
	if err != nil {
		t.Fatal(err)
	}
	o := recorderOptions{Seed: 1, TTL: time.Hour}
	for _, h := range l.Hosts {
		o.Hosts = append(o.Hosts, Host{Name: fmt.Sprintf("h%d", h.Number), Node: subnet.NodeID(h.NodeID()), Addr: h.Addrs[0].Addr()})
	}
	r := &recorded{t, l, newRecorder(l, c, o), c}
	r.must(r.start(ctx))
	t.Cleanup(func() { r.history.close() })
	return r
}

// within is a context for one step.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), d, fmt.Errorf("not within %s", d))
	t.Cleanup(cancel)
	return ctx
}

func (r *recorded) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// put is what the run's own hands do.
func (r *recorded) put(key, value string) {
	r.t.Helper()
	resp, err := r.Client().Put(within(r.t, time.Minute), lab.Prefix+"/"+key, value)
	r.must(err)
	r.operator(resp.Header.Revision)
}

// launch starts or restarts a host's daemon.
func (r *recorded) launch(h *lab.Host) {
	r.t.Helper()
	r.must(h.StartDaemon("--docker-config=" + dockerConfig(h)))
	r.began(h, h.Daemon)
}

// ready waits until every daemon knows all others.
func (r *recorded) ready() {
	r.t.Helper()
	r.must(r.Each(within(r.t, time.Minute), func(ctx context.Context, h *lab.Host) error {
		_, err := h.WaitReady(ctx, len(r.Hosts)-1)
		return err
	}))
}

// connect waits for leases, starts containers and begins their pings.
func (r *recorded) connect() {
	r.t.Helper()
	ctx := within(r.t, time.Minute)
	r.ready()
	r.must(errors.Join(r.StartContainers(ctx), r.WaitMesh(ctx)))
	for _, h := range r.Hosts {
		r.must(r.retarget(ctx, h))
	}
}

// await waits until a sample that was begun after the call is as wanted.
func (r *recorded) await(host, what string, wanted func(Sample) bool) time.Duration {
	r.t.Helper()
	since := r.now()
	for ctx := within(r.t, time.Minute); ; pause(r.t, 10*time.Millisecond) {
		r.mu.Lock()
		at := slices.IndexFunc(r.samples, func(s Sample) bool { return s.Host == host && s.From >= since && wanted(s) })
		r.mu.Unlock()
		if at >= 0 {
			return r.now()
		}
		if ctx.Err() != nil {
			r.t.Fatalf("%s: no sample shows %s", host, what)
		}
	}
}

func pause(t *testing.T, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
	}
}

// lease is the subnet of a host, from its file.
func (r *recorded) lease(h *lab.Host) netip.Prefix {
	r.t.Helper()
	env, err := h.ReadSubnet()
	r.must(err)
	return env.Subnets[subnet.IPv4].Masked()
}

// What is done to hosts is in the record: the daemons' runs, their ends, what
// their kernels and files hold, and the pings that a partition swallows.
func TestRecordOfHosts(t *testing.T) {
	for backend, config := range map[string]string{
		"vxlan":   `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`,
		"host-gw": `{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}`,
		"udp":     `{"Network":"10.5.0.0/16"}`,
	} {
		t.Run(backend, func(t *testing.T) { testRecordOfHosts(t, backend, config) })
	}
}

func testRecordOfHosts(t *testing.T, backend, config string) {
	r := newRecorded(t, 3, 1)
	first, second, third := r.Hosts[0], r.Hosts[1], r.Hosts[2]
	// A route then shows no more than the number of its nexthop object.
	r.must(first.Do(func() error { return writeSysctl("net/ipv4/nexthop_compat_mode", "0") }))
	r.put("config", config)
	for _, h := range r.Hosts {
		r.launch(h)
	}
	r.connect()
	full := func(s Sample) bool {
		return len(s.Routes) == 2 && s.Status != nil && s.Status.Ready && s.DockerConfig.Exists
	}
	for _, h := range []string{"h1", "h2", "h3"} {
		r.await(h, "a whole network", full)
	}

	r.killed(second, syscall.SIGKILL)
	r.must(second.Daemon.Kill())
	dead := r.await("h2", "a dead daemon", func(s Sample) bool {
		return s.Status == nil && len(s.Routes) == 2 || backend == "udp" && s.Status == nil
	})
	r.launch(second)
	r.await("h2", "a daemon that lives again", full)

	r.must(third.Daemon.Signal(syscall.SIGSTOP))
	r.await("h3", "a daemon that is silent", func(s Sample) bool { return s.Status == nil })
	r.must(third.Daemon.Signal(syscall.SIGCONT))
	r.await("h3", "a daemon that goes on", full)

	cut := r.now()
	r.must(third.Partition(lab.Both))
	pause(t, 2*time.Second)
	r.must(third.Rejoin())
	joined := r.now()
	r.must(third.WaitPing(within(t, time.Minute), first.Addrs[0].Addr()))
	ended := r.now()
	r.must(third.Daemon.Signal(syscall.SIGTERM))
	_, err := third.Daemon.ExitCode(within(t, time.Minute))
	r.must(err)
	bounds := Bounds{Heal: time.Minute}
	if backend == "udp" {
		bounds.Heal = 10 * time.Second // Packets do not pass without its daemon: all of it is waited for.
	}
	r.must(r.finish(within(t, 2*time.Minute), r.now(), bounds))
	record, err := r.stop(within(t, time.Minute))
	r.must(err)

	e := expectation{t, record}
	e.epochs("start")
	e.config(config)
	e.runs("h1 alive", "h2 killed -1", "h3 ended 0", "h2 alive")
	if run := record.Runs[2]; run.Until < ended || !strings.Contains(run.Tail, "level=") {
		t.Errorf("h3's end was at %s, asked at %s, with the log %q", run.Until, ended, run.Tail)
	}
	e.samples(r, backend, dead)
	e.pairs(cut, joined)
	e.final("h1", "h2")
	if backend == "udp" {
		e.mesh("h1 -> h3", "h2 -> h3", "h3 -> h1", "h3 -> h2")
	} else {
		e.mesh()
	}
	for _, l := range record.Load {
		if l.CPU <= 0 || l.CPU > record.Duration || l.LogLines < 1 || l.Requests < 3 {
			t.Errorf("%s cost %s, %d requests and %d lines", l.Host, l.CPU, l.Requests, l.LogLines)
		}
	}
	e.courses()
	e.saved()
	var usage unix.Rusage
	r.must(unix.Getrusage(unix.RUSAGE_SELF, &usage))
	t.Logf("%d samples in %s; this process used %s in user mode and %s in the kernel", len(record.Samples), record.Duration,
		time.Duration(usage.Utime.Nano()), time.Duration(usage.Stime.Nano()))
}
