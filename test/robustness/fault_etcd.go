package robustness

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"syscall"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// beginMembers: without a leader nothing is renewed, and nothing expires.
func (t *trial) beginMembers(ctx context.Context, s Step, f *deed) (healing, error) {
	f.Unreachable = t.everybody()
	switch s.Kind {
	case FaultMemberKill:
		return t.killMember(ctx, s, f)
	case FaultMemberPause:
		m, err := t.member(ctx, s.Variant)
		if err != nil {
			return nil, err
		}
		return t.backAfter(func(context.Context) error { return m.Resume() }), m.Pause()
	case FaultMajority:
		var errs []error
		for _, m := range t.cluster.Members[:len(t.cluster.Members)/2+1] {
			errs = append(errs, m.Kill())
		}
		return t.backAfter(t.cluster.Start), errors.Join(errs...)
	case FaultDown:
		return t.backAfter(t.cluster.Start), t.cluster.Stop(ctx)
	default: // FaultOffline
		return t.restartOffline(ctx, s, f)
	}
}

// backAfter heals by something after which etcd is whole again.
func (t *trial) backAfter(heal func(context.Context) error) healing {
	return func(ctx context.Context, _ *deed) error {
		return errors.Join(heal(ctx), t.cluster.WaitHealthy(ctx))
	}
}

// member is a leader or not.
func (t *trial) member(ctx context.Context, variant string) (*lab.Member, error) {
	leader, err := t.cluster.Leader(ctx)
	if err != nil || variant == variantLeader || len(t.cluster.Members) == 1 {
		return leader, err
	}
	others := slices.DeleteFunc(slices.Clone(t.cluster.Members), func(m *lab.Member) bool { return m == leader })
	return others[0], nil
}

// killMember: the hosts are without etcd only until there is a leader.
func (t *trial) killMember(ctx context.Context, s Step, f *deed) (healing, error) {
	m, err := t.member(ctx, s.Variant)
	if err != nil {
		return nil, err
	}
	if err := m.Kill(); err != nil {
		return nil, err
	}
	_, err = t.cluster.Leader(ctx)
	elected := *f
	elected.Until = t.rec.now()
	t.note(elected)
	f.Unreachable = nil
	return t.backAfter(m.Start), err
}

// restartOffline: daemons that start while etcd is away live on what they
// remember.
func (t *trial) restartOffline(ctx context.Context, s Step, f *deed) (healing, error) {
	hosts := t.chosen(s)
	// Who releases takes its data path down, though etcd does not hear of it.
	f.Hosts = append(t.misfits(hosts), releasing(hosts)...)
	err := t.cluster.Stop(ctx)
	err = errors.Join(err, each(hosts, func(h *host) error { return h.hold(ctx, syscall.SIGTERM) }))
	return t.backAfter(t.cluster.Start), errors.Join(err, each(hosts, (*host).release))
}

// beginData: what becomes of etcd's data.
func (t *trial) beginData(ctx context.Context, s Step, f *deed) (healing, error) {
	switch s.Kind {
	case FaultCompact:
		return nil, t.compact(ctx)
	case FaultDefragment:
		return nil, t.defragment(ctx)
	case FaultNoSpace:
		f.Unreachable = t.everybody()
		disarm := func(ctx context.Context, _ *deed) error { return t.alarm(ctx, pb.AlarmRequest_DEACTIVATE) }
		return disarm, t.alarm(ctx, pb.AlarmRequest_ACTIVATE)
	case FaultWipe:
		f.Unreachable = t.everybody()
		// Whom it touches when it lasts is a consequence: see forgotten.
		f.Hosts = t.misfits(t.hosts)
		return t.putConfig, t.replaceData(ctx, whyWipe)
	default: // FaultRestore
		f.Unreachable = t.everybody()
		err := t.backup(ctx)
		first := *f
		first.Kind, first.Until = faultBackup, t.rec.now()
		t.note(first)
		return t.restore, err
	}
}

// compact forgets everything but the present.
func (t *trial) compact(ctx context.Context) error {
	return t.operate(ctx, func(ctx context.Context) error {
		resp, err := t.cluster.Client().Get(ctx, configKey)
		if err != nil {
			return err
		}
		_, err = t.cluster.Client().Compact(ctx, resp.Header.Revision)
		if errors.Is(err, rpctypes.ErrCompacted) {
			return nil // Nothing was written since the last time.
		}
		return err
	})
}

// defragment makes one member after the other stand still for a moment.
func (t *trial) defragment(ctx context.Context) error {
	for _, m := range t.cluster.Members {
		if _, err := m.Client().Defragment(ctx, m.URL()); err != nil {
			return fmt.Errorf("defragment %s: %w", m.Name, err)
		}
	}
	return nil
}

// alarm makes every member believe that it has no space left, or takes it back.
func (t *trial) alarm(ctx context.Context, action pb.AlarmRequest_AlarmAction) error {
	for _, m := range t.cluster.Members {
		status, err := m.Client().Status(ctx, m.URL())
		if err != nil {
			return fmt.Errorf("ask %s for its number: %w", m.Name, err)
		}
		request := &pb.AlarmRequest{MemberID: status.Header.MemberId, Action: action, Alarm: pb.AlarmType_NOSPACE}
		if _, err := pb.NewMaintenanceClient(m.Client().ActiveConnection()).Alarm(ctx, request); err != nil {
			return fmt.Errorf("raise or end the alarm of %s: %w", m.Name, err)
		}
	}
	return nil
}

// replaceData wipes or restores etcd between two epochs of the record.
func (t *trial) replaceData(ctx context.Context, why string) error {
	if err := t.rec.endEpoch(ctx); err != nil {
		return err
	}
	replace := t.cluster.Wipe
	if why == whyRestore {
		replace = t.cluster.Restore
	}
	if err := replace(ctx); err != nil {
		return err
	}
	return t.rec.beginEpoch(ctx, why)
}

// backup makes a snapshot of etcd, and notes who has which subnet in it.
func (t *trial) backup(ctx context.Context) error {
	if err := t.cluster.Backup(ctx); err != nil {
		return err
	}
	holders, err := t.holders(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.snapshot = holders
	return err
}

// restore puts the snapshot back. Whoever has moved since meets its past; the
// ghosts that had been driven out since are there again.
func (t *trial) restore(ctx context.Context, f *deed) error {
	f.From = t.rec.now()
	now, err := t.holders(ctx)
	if err != nil {
		return err
	}
	t.mu.Lock()
	before := t.snapshot
	t.mu.Unlock()
	for _, h := range t.hosts {
		if !slices.Equal(subnetsOf(now, h.name), subnetsOf(before, h.name)) {
			f.Hosts = append(f.Hosts, h.name)
		}
	}
	if err := t.replaceData(ctx, whyRestore); err != nil {
		return err
	}
	return t.exorcise(ctx)
}

// subnetsOf are the keys whose holder has a name, sorted.
func subnetsOf(holders map[string]string, name string) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(holders)), func(key string) bool { return holders[key] != name })
}
