package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/firewall"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/cmd/internal/catalog"
	"github.com/flanneld-go/flanneld-go/cmd/internal/statedir"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/cmd/internal/version"
	"github.com/flanneld-go/flanneld-go/daemonconfig/dockerd"
	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore"
	"github.com/flanneld-go/flanneld-go/systemd"
)

// readyAnyway is when systemd is told READY although the host still waits:
// people start the service before they put the config, and a boot must not hang
// on it.
const readyAnyway = 30 * time.Second

// store is where leases are kept: etcd, or a test's memory.
type store interface {
	subnet.Store
	// Endpoints are those in use: none until they are discovered.
	Endpoints() []string
	Stats() etcdstore.Stats
	// Abandon ends the connections from an address that this host has no more.
	Abandon(local netip.Addr)
	Close() error
}

// daemon is the object graph: what lives as long as the process.
type daemon struct {
	opts     options
	log      *slog.Logger
	clock    subnet.Clock
	node     subnet.NodeID
	instance string
	dir      statedir.Dir
	board    *status.Board
	store    store
	firewall *firewall.Firewall
	notify   systemd.Notifier
	// inherited are the descriptors that systemd kept of an earlier process.
	inherited []*os.File
	units     units
	places    dockerPlaces
	// open and construct are the doors to the kernel: [kernel.Open] and the catalog's, or
	// a test's.
	open      func(kernel.Options) (openHost, error)
	construct backend.Constructor
}

// openHost is a kernel, until it is closed.
type openHost interface {
	kernel.Host
	io.Closer
}

func openKernel(o kernel.Options) (openHost, error) {
	host, err := kernel.Open(o)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return host, nil
}

// newDaemon builds the graph. It reads files that options name, and touches
// nothing else.
func newDaemon(opts options, log *slog.Logger) (*daemon, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("must run as root: it makes network devices, routes and firewall rules")
	}
	node, err := nodeID(opts.node, machineIDFile)
	if err != nil {
		return nil, err
	}
	storeOpts, err := opts.etcd.StoreOptions()
	if err != nil {
		return nil, err
	}
	storeOpts.ReadOnly, storeOpts.Log = opts.check, log
	store, err := etcdstore.New(storeOpts)
	if err != nil {
		return nil, err
	}
	clock := subnet.SystemClock{}
	return &daemon{
		opts:     opts,
		log:      log,
		clock:    clock,
		node:     node,
		instance: newInstance(),
		dir:      statedir.Dir(opts.stateDir),
		board:    status.NewBoard(clock.Now, initialStatus(opts, node)),
		store:    store,
		firewall: firewall.New(firewall.Options{Instance: opts.instance.Instance, Log: log}),
		units:    systemdUnits{},
		places:   dockerPlaces{pidFile: dockerd.PIDFile, rootless: dockerd.RootlessPIDFiles, proc: "/proc"},

		open:      openKernel,
		construct: catalog.New,
	}, nil
}

func initialStatus(opts options, node subnet.NodeID) status.Status {
	return status.Status{
		Version: version.String(),
		PID:     os.Getpid(),
		Node:    string(node),
		Etcd: status.Etcd{
			Endpoints: opts.etcd.Endpoints,
			Prefix:    opts.etcd.Prefix,
			CAFile:    opts.etcd.CAFile,
			CertFile:  opts.etcd.CertFile,
			KeyFile:   opts.etcd.KeyFile,
			Username:  opts.etcd.Username,
		},
		IPMasq: opts.ipMasq,
	}
}

// run works until ctx ends, which is no error, or something fails for good.
func (d *daemon) run(ctx context.Context) (err error) {
	var l *loop
	defer func() {
		if l != nil {
			l.endDataPath() // last of all: packets pass until then
		}
	}()
	defer func() { err = errors.Join(err, d.store.Close()) }()
	ls, err := listen(d.opts)
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(d.opts.socket) }() // its listener removes it too
	host, err := d.open(kernel.Options{Instance: d.opts.instance.Instance, OthersOnly: true})
	if err != nil {
		ls.close()
		return err
	}
	defer host.Close()
	d.log.Info("started", "version", version.String(), "node", d.node, "etcd", d.opts.etcd.Where(),
		"prefix", d.opts.etcd.Prefix, "docker", d.opts.docker())
	d.warn()

	d.inherited = append(d.inherited, d.notify.Kept()...)
	group, ctx := errgroup.WithContext(ctx)
	l = newLoop(d, host, group)
	group.Go(func() error { return ls.serve(ctx, health{d.board, l.beat.last, d.clock.Uptime}, newRegistry(d.board)) })
	group.Go(func() error { return d.announce(ctx, l.beat) })
	group.Go(func() error { return l.run(ctx) })
	err = group.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	l.depart(context.WithoutCancel(ctx), err)
	return err
}

// warn says, once, which options do not do what their owner may think.
func (d *daemon) warn() {
	for _, flag := range d.opts.ignored {
		d.log.Warn("flag has no effect", "flag", flag)
	}
	for _, risk := range d.opts.etcd.Risks() {
		d.log.Warn("access to etcd is not safe", "risk", risk)
	}
}

// announce tells systemd READY, the status line, and that we are alive.
func (d *daemon) announce(ctx context.Context, beat *heartbeat) error {
	patience := d.clock.Uptime() + readyAnyway
	late := d.clock.Timer(readyAnyway)
	defer func() { late.Stop() }()
	interval, err := d.notify.WatchdogInterval()
	d.complain(err)
	var watchdog <-chan time.Time
	if interval > 0 {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		watchdog = ticker.C
	}
	h := health{d.board, beat.last, d.clock.Uptime}
	said, hangs := "", false
	for told := false; ; {
		select {
		case <-ctx.Done():
			d.board.Update(func(s *status.Status) { s.State = status.StateStopping })
			d.complain(d.notify.Stopping(d.opts.stopping()))
			return nil
		case <-late.C:
			if left := patience - d.clock.Uptime(); left > 0 {
				late = d.clock.Timer(left)
				continue
			}
			if !told {
				d.complain(d.notify.Ready(d.board.Glance().Line()))
				told = true
			}
		case <-watchdog:
			// A loop that hangs gets no pings: systemd restarts us.
			err := h.alive()
			if err == nil {
				d.complain(d.notify.Ping())
			} else if !hangs {
				d.log.Error("the service manager is told nothing any more, so that it restarts this process", "error", err)
			}
			hangs = err != nil
		case <-d.board.Changed():
			s := d.board.Glance()
			if s.Ready && !told {
				d.complain(d.notify.Ready(s.Line()))
				told = true
				continue
			}
			if line := s.Line(); line != said {
				d.complain(d.notify.Status(line))
				said = line
			}
		}
	}
}

// complain logs what the service manager could not be told: it decides what
// comes of that.
func (d *daemon) complain(err error) {
	if err != nil {
		d.log.Warn("service manager not told", "error", err)
	}
}
