package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

const (
	// stepWithin bounds each wait of the demo.
	stepWithin = 30 * time.Second
	// transferSize is what one container sends to another, in bytes.
	transferSize = 100 << 20
	// wantPings is how many requests a mesh is made of, if possible with at
	// least minPings and at most maxPings per pair.
	wantPings, minPings, maxPings = 1500, 3, 50
)

// errLoss: packets were lost where none may be.
var errLoss = errors.New("packets were lost")

// demo shows every backend on a lab of its own.
func demo(ctx context.Context, o demoOptions, out io.Writer) error {
	if err := lab.CheckRoot(); err != nil {
		return fmt.Errorf("demo %w (try: sudo make demo)", err)
	}
	if err := lab.CheckBinary(o.daemon); err != nil {
		return fmt.Errorf("--daemon: %w (try: make build)", err)
	}
	begin := time.Now()
	for _, backend := range o.backends {
		if err := demoBackend(ctx, o, backend, out); err != nil {
			return fmt.Errorf("%s: %w", backend, err)
		}
	}
	if !o.keep {
		fmt.Fprintf(out, "0 %% loss between %d containers over %s, in %.1f s\n", o.hosts, strings.Join(o.backends, ", "), time.Since(begin).Seconds())
	}
	return nil
}

func demoBackend(ctx context.Context, o demoOptions, backend string, out io.Writer) (err error) {
	l, err := openLab(ctx, lab.Options{
		Name: o.name, Hosts: o.hosts, Replace: o.replace,
		Daemon: o.daemon, DaemonArgs: []string{"--ip-masq"},
	})
	if err != nil {
		return err
	}
	defer func() { err = closeLab(ctx, l, err) }()
	config := fmt.Sprintf(`{"Network":"10.5.0.0/16","Backend":{"Type":%q}}`, backend)
	fmt.Fprintf(out, "%s   %s\n\n", backend, config)
	if err := bringUp(ctx, l, config); err != nil {
		return err
	}
	if err := show(ctx, l, out); err != nil {
		return err
	}
	if o.keep {
		showAround(o, l, out)
		<-ctx.Done()
	}
	return nil
}

// openLab makes a lab, or says what to do about the one in the way.
func openLab(ctx context.Context, o lab.Options) (*lab.Lab, error) {
	l, err := lab.New(ctx, o)
	switch {
	case errors.Is(err, lab.ErrStale):
		return nil, fmt.Errorf("%w (remove it with --replace, or choose another --name)", err)
	case errors.Is(err, lab.ErrRunning):
		return nil, fmt.Errorf("%w (choose another --name)", err)
	}
	return l, err
}

// closeLab removes a lab whose use ended with err. Unless that was on request, the
// logs are kept.
func closeLab(ctx context.Context, l *lab.Lab, err error) error {
	if err != nil && ctx.Err() == nil {
		l.KeepFiles()
		err = fmt.Errorf("%w\nlogs are kept in %s", err, l.Dir)
	}
	return errors.Join(err, l.Close(ctx))
}

// bringUp takes a lab from bare hosts to containers that talk.
func bringUp(ctx context.Context, l *lab.Lab, config string) error {
	ctx, cancel := context.WithTimeout(ctx, stepWithin)
	defer cancel()
	if err := l.StartEtcd(ctx); err != nil {
		return err
	}
	if err := l.PutConfig(ctx, config); err != nil {
		return err
	}
	for _, h := range l.Hosts {
		if err := h.StartDaemon(); err != nil {
			return err
		}
	}
	if err := l.StartContainers(ctx); err != nil {
		return err
	}
	// A pair that never answers is for the mesh to show, as loss.
	if err := l.WaitMesh(ctx); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// show prints what the hosts got, and measures between the containers.
func show(ctx context.Context, l *lab.Lab, out io.Writer) error {
	if err := showHosts(l, out); err != nil {
		return err
	}
	pairs := len(l.Hosts) * (len(l.Hosts) - 1)
	count := min(max(wantPings/pairs, minPings), maxPings)
	mesh, err := l.Mesh(ctx, lab.PingOptions{Count: count})
	if err != nil {
		return err
	}
	lost, err := showMesh(l, mesh, count, out)
	if err != nil {
		return err
	}
	if lost > 0 {
		return fmt.Errorf("%w: %d of %d", errLoss, lost, count*pairs)
	}
	ctx, cancel := context.WithTimeout(ctx, stepWithin)
	defer cancel()
	from, to := l.Hosts[0].Container, l.Hosts[1].Container
	t, err := lab.Transfer(ctx, from.Node, to.Node, to.Addr(), transferSize)
	if err != nil {
		return err
	}
	showTransfer(from, to, t, out)
	if t.Source != from.Addr() {
		return fmt.Errorf("the receiver saw %s in place of the container's own address %s", t.Source, from.Addr())
	}
	return nil
}
