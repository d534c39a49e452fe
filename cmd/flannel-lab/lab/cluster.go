package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
)

// ClusterOptions describe an etcd of several members. The zero value is three
// with etcd's own quota.
type ClusterOptions struct {
	Members int
	// QuotaBytes is the size of a member's database that raises NOSPACE.
	QuotaBytes int64
}

// defaultMembers is the smallest cluster that survives the loss of a member.
const defaultMembers = 3

// memberHeartbeat makes an election last 1 s, and the smallest TTL 2 s: members
// share a busy machine and must not lose their leader to a late goroutine.
const memberHeartbeat = 100 * time.Millisecond

// askWithin bounds one question to one member, which may be paused.
const askWithin = time.Second

// Cluster is the lab's etcd. Its methods may be called concurrently with those
// of its members, but only one of Stop, Start, Wipe, Backup and Restore at a time.
type Cluster struct {
	// Members are ordered by number.
	Members []*Member

	lab    *Lab
	opts   ClusterOptions
	client *clientv3.Client
}

// StartCluster starts an etcd of several members, each in a namespace of its own
// behind the switch, and waits until all of them answer. It takes the place of
// StartEtcd.
func (l *Lab) StartCluster(ctx context.Context, o ClusterOptions) (*Cluster, error) {
	if o.Members == 0 {
		o.Members = defaultMembers
	}
	if o.Members < 1 || o.Members > MaxMembers {
		return nil, fmt.Errorf("start etcd: members: %d: must be between 1 and %d", o.Members, MaxMembers)
	}
	if l.Cluster() != nil {
		return nil, errors.New("start etcd: the lab has one")
	}
	var members []*Member
	for number := 1; number <= o.Members; number++ {
		m, err := l.addMember(number)
		if err != nil {
			return nil, err
		}
		members = append(members, m)
	}
	c, err := l.newCluster(members, o)
	if err != nil {
		return nil, err
	}
	return c, c.Start(ctx)
}

func (l *Lab) addMember(number int) (*Member, error) {
	role := fmt.Sprintf("e%d", number)
	node, err := l.addNode(role)
	if err != nil {
		return nil, err
	}
	addrs := l.plan.member(number)
	return &Member{Node: node, Number: number, Addr: addrs[0].Addr()}, l.bridge.plug(role, node, addrs, nil)
}

// newCluster completes the members and makes their clients. Nothing runs yet.
func (l *Lab) newCluster(members []*Member, o ClusterOptions) (*Cluster, error) {
	c := &Cluster{Members: members, lab: l, opts: o}
	l.mu.Lock()
	l.cluster = c
	l.mu.Unlock()
	for _, m := range members {
		m.cluster = c
		m.dir = filepath.Join(l.Dir, m.name())
		var err error
		m.client, err = newClient([]*Member{m}, func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
			return l.Switch.Dial(ctx, addr)
		})
		if err != nil {
			return nil, err
		}
	}
	var err error
	c.client, err = newClient(members, c.dial)
	return c, err
}

// dial makes a connection for the client of all members.
func (c *Cluster) dial(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	for _, m := range c.Members {
		if m.Addr == addr.Addr() {
			return m.dialShared(ctx)
		}
	}
	return nil, fmt.Errorf("dial etcd: no member has the address %s", addr)
}

// Client speaks to all members: a request to one that is killed or paused fails,
// and the next goes to another.
func (c *Cluster) Client() *clientv3.Client { return c.client }

// URL is what clients are given: all members, joined by commas.
func (c *Cluster) URL() string {
	var urls []string
	for _, m := range c.Members {
		urls = append(urls, m.URL())
	}
	return strings.Join(urls, ",")
}

// initial is etcd's --initial-cluster.
func (c *Cluster) initial() string {
	var all []string
	for _, m := range c.Members {
		all = append(all, m.name()+"="+m.peerURL())
	}
	return strings.Join(all, ",")
}

// each runs f for every member concurrently and returns the first error.
func (c *Cluster) each(ctx context.Context, f func(context.Context, *Member) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, m := range c.Members {
		g.Go(func() error { return f(ctx, m) })
	}
	return g.Wait()
}

// Start starts every member that does not run, and waits until all answer.
func (c *Cluster) Start(ctx context.Context) error {
	for _, m := range c.Members {
		if m.Running() {
			continue
		}
		if err := m.Start(ctx); err != nil {
			return err
		}
	}
	return c.WaitHealthy(ctx)
}

// Stop ends all members at once, as a power cut does: there is nobody left to
// hand the lead to. What etcd acknowledged is kept.
func (c *Cluster) Stop(ctx context.Context) error {
	return c.each(ctx, func(ctx context.Context, m *Member) error { return m.kill(ctx) })
}

// WaitHealthy waits until every member answers a read that its leader confirms.
// It ends early when one of them does not run.
func (c *Cluster) WaitHealthy(ctx context.Context) error {
	err := c.each(ctx, func(ctx context.Context, m *Member) error { return m.waitServing(ctx) })
	if err != nil {
		return fmt.Errorf("wait for etcd: %w", err)
	}
	return nil
}

// Leader waits until a majority follows one member, and returns it.
func (c *Cluster) Leader(ctx context.Context) (*Member, error) {
	var leader *Member
	err := poll(ctx, func() (bool, error) {
		leader = c.followed(ctx)
		return leader != nil, nil
	})
	if err != nil {
		return nil, fmt.Errorf("wait for etcd's leader: %w", err)
	}
	return leader, nil
}

// followed is the member that a majority follows now; nil if there is none.
func (c *Cluster) followed(ctx context.Context) *Member {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	answers := make([]*clientv3.StatusResponse, len(c.Members))
	var asked sync.WaitGroup
	for i, m := range c.Members {
		// Without an answer there is no vote.
		asked.Go(func() { answers[i], _ = m.status(ctx) })
	}
	asked.Wait()
	if i := reigning(answers); i >= 0 {
		return c.Members[i]
	}
	return nil
}

// reigning is which of the members, nil for one that does not answer, a majority
// follows in one term, itself among it; -1 if there is none. A leader that was
// paused still takes itself for one.
func reigning(answers []*clientv3.StatusResponse) int {
	type reign struct{ leader, term uint64 }
	votes := make(map[reign]int)
	for _, a := range answers {
		if a != nil {
			votes[reign{a.Leader, a.RaftTerm}]++
		}
	}
	return slices.IndexFunc(answers, func(a *clientv3.StatusResponse) bool {
		return a != nil && a.Header.MemberId == a.Leader && votes[reign{a.Leader, a.RaftTerm}] > len(answers)/2
	})
}

// Wipe is a cluster that lost every disk: it starts again with the same addresses
// and flags, and so the same cluster id, without any data.
func (c *Cluster) Wipe(ctx context.Context) error {
	return c.replaceData(ctx, "wipe", func(m *Member) error { return os.RemoveAll(m.dir) })
}

// Backup keeps a copy of all data, taken while the cluster is stopped, in the
// place of an earlier one.
func (c *Cluster) Backup(ctx context.Context) error {
	return c.replaceData(ctx, "back up", func(m *Member) error {
		return errors.Join(os.RemoveAll(m.backup()), os.CopyFS(m.backup(), os.DirFS(m.dir)))
	})
}

// Restore puts the backup in the place of what was written since. The backup can
// be restored again.
func (c *Cluster) Restore(ctx context.Context) error {
	for _, m := range c.Members {
		if _, err := os.Stat(m.backup()); err != nil {
			return fmt.Errorf("restore etcd: %w", err)
		}
	}
	return c.replaceData(ctx, "restore", func(m *Member) error {
		return errors.Join(os.RemoveAll(m.dir), os.CopyFS(m.dir, os.DirFS(m.backup())))
	})
}

// replaceData does something to the members' data while none of them runs.
func (c *Cluster) replaceData(ctx context.Context, verb string, f func(*Member) error) error {
	if err := c.Stop(ctx); err != nil {
		return fmt.Errorf("%s etcd: %w", verb, err)
	}
	for _, m := range c.Members {
		if err := f(m); err != nil {
			return fmt.Errorf("%s etcd: %w", verb, err)
		}
	}
	return c.Start(ctx)
}

// closeClients gives the connections back.
func (c *Cluster) closeClients() error {
	var errs []error
	if c.client != nil {
		errs = append(errs, c.client.Close())
	}
	for _, m := range c.Members {
		if m.client != nil {
			errs = append(errs, m.client.Close())
		}
	}
	return errors.Join(errs...)
}
