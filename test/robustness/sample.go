package robustness

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

const (
	// samplers is how many hosts are read at once.
	samplers = 2
	// answerWithin is how long a daemon may take to say how it is.
	answerWithin = 200 * time.Millisecond
)

// sampler reads one host again and again.
type sampler struct {
	*watched
	now  func() time.Duration
	keep func(Sample)
	last Sample
}

// run takes a sample per tick, and no more at once than there are slots.
func (s *sampler) run(ctx context.Context, every, delay time.Duration, slots chan struct{}) error {
	first := time.NewTimer(delay)
	defer first.Stop()
	select {
	case <-first.C:
	case <-ctx.Done():
		return nil
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		sample, err := s.take(ctx)
		<-slots
		if err != nil {
			return fmt.Errorf("sample %s: %w", s.Name, err)
		}
		if ctx.Err() != nil {
			return nil // Its status was cut short.
		}
		s.last = share(s.last, sample)
		s.keep(s.last)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// take reads the host once.
func (s *sampler) take(ctx context.Context) (Sample, error) {
	out := Sample{Host: s.Name, From: s.now()}
	p, err := readPaths(s.host.Links())
	if err != nil {
		return out, err
	}
	out.Own, out.Routes = p.own(), p.to()
	if out.SubnetEnv, err = readFile(s.host.SubnetFile()); err != nil {
		return out, err
	}
	if out.DockerConfig, err = readFile(dockerConfig(s.host)); err != nil {
		return out, err
	}
	answers, err := s.look()
	if err != nil {
		return out, err
	}
	if answers {
		ctx, cancel := context.WithTimeout(ctx, answerWithin)
		defer cancel()
		if status, err := s.host.Status(ctx); err == nil {
			out.Status = statusOf(status)
			s.hear(status)
			if p.tun != 0 {
				out.Routes = peers(status)
			}
		}
	}
	out.Until = s.now()
	return out, s.meter()
}

// dockerConfig is the daemon.json that hosts' daemons are started with.
func dockerConfig(h *lab.Host) string { return filepath.Join(h.Dir, "daemon.json") }

// readFile reads one file of whatever is at the path at a moment: files are
// replaced, not rewritten.
func readFile(path string) (File, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return File{}, nil
	}
	if err != nil {
		return File{}, err
	}
	return File{Exists: true, Text: string(text)}, nil
}

func statusOf(s lab.Status) *HostStatus {
	out := &HostStatus{
		PID: s.PID, Ready: s.Ready, LeaseState: s.Lease.State, Reason: s.Lease.Reason,
		Reservation: s.Lease.Reservation, Connected: s.Etcd.Connected,
	}
	// A host without a lease has none.
	out.Subnet, _ = netip.ParsePrefix(s.Lease.Subnet)
	for _, p := range s.Problems {
		out.Problems = append(out.Problems, p.Component+": "+p.Message)
	}
	return out
}

// peers is where udp's daemon sends packets: its kernel has one route for all.
func peers(s lab.Status) []Route {
	var out []Route
	for _, p := range s.Peers {
		subnet, err := netip.ParsePrefix(p.Subnet)
		via, err2 := netip.ParseAddr(p.PublicIP)
		if err == nil && err2 == nil && p.Error == "" {
			out = append(out, Route{Subnet: subnet, Via: via})
		}
	}
	sortRoutes(out)
	return out
}

// share lets a sample use the memory of the one before if they show the same: a
// host rarely changes.
func share(last, now Sample) Sample {
	if !last.equal(now) {
		return now
	}
	last.From, last.Until = now.From, now.Until
	return last
}

// equal reports whether two samples show the same, at whatever times.
func (s Sample) equal(o Sample) bool {
	return s.Host == o.Host && slices.Equal(s.Own, o.Own) && slices.Equal(s.Routes, o.Routes) &&
		s.SubnetEnv == o.SubnetEnv && s.DockerConfig == o.DockerConfig && s.Status.equal(o.Status)
}

func (s *HostStatus) equal(o *HostStatus) bool {
	if s == nil || o == nil {
		return s == o
	}
	return s.PID == o.PID && s.Ready == o.Ready && s.Subnet == o.Subnet && s.LeaseState == o.LeaseState && s.Reason == o.Reason &&
		s.Reservation == o.Reservation && s.Connected == o.Connected && slices.Equal(s.Problems, o.Problems)
}
