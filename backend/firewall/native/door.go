package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// door leads to nf_tables. A wait for an answer ends with ctx.
type door interface {
	// read returns our table of a family, normalized.
	read(ctx context.Context, f subnet.Family) (table, error)
	// generation tells one state of nf_tables from any other. What is read
	// afterwards is of this one or of a later one.
	generation(ctx context.Context) (Generation, error)
	// write does all changes or none.
	write(ctx context.Context, changes subnet.ByFamily[change]) error
	// probe returns nil if the kernel has the feature.
	probe(ctx context.Context, f subnet.Family, x Feature) error
	// counters returns the packets that were counted, by name.
	counters(ctx context.Context, f subnet.Family) (map[string]uint64, error)
}

// netlinkDoor is the real one, in the network namespace of the thread that
// calls it.
type netlinkDoor struct{ table string }

const (
	// answerWithin ends the wait for a kernel that does not answer at all: it
	// answers before the send returns.
	answerWithin = 30 * time.Second
	// socketBuffer holds the largest transaction: it is one message to the
	// socket, and a peer takes 20 bytes of it, or 44.
	socketBuffer = 64 << 20
	// keysPerMessage: a list of keys is one attribute, which ends at 64 KiB.
	keysPerMessage = 1000
)

// use runs f with a connection that opens a socket per exchange.
func (*netlinkDoor) use(ctx context.Context, f func(*nftables.Conn) error) error {
	w := waits{ctx: ctx}
	defer w.end()
	conn, err := nftables.New(nftables.WithSockOptions(w.prepare))
	if err != nil {
		return fmt.Errorf("open nfnetlink: %w", err)
	}
	if err = f(conn); errors.Is(err, os.ErrDeadlineExceeded) {
		return noAnswer(ctx, answerWithin)
	}
	return err
}

// waits are those of the sockets of one use, which end with ctx.
type waits struct {
	ctx   context.Context // that of the use
	stops []func() bool
}

// prepare sets what a connection needs for the largest transaction, and for a
// kernel that does not answer.
func (w *waits) prepare(c *netlink.Conn) error {
	if err := c.SetDeadline(time.Now().Add(answerWithin)); err != nil {
		return err
	}
	w.stops = append(w.stops, context.AfterFunc(w.ctx, func() {
		_ = c.SetDeadline(time.Now()) // one that was closed meanwhile needs none
	}))
	if err := c.SetWriteBuffer(socketBuffer); err != nil {
		return err
	}
	return c.SetReadBuffer(socketBuffer)
}

func (w *waits) end() {
	for _, stop := range w.stops {
		stop()
	}
}

func (*netlinkDoor) generation(ctx context.Context) (Generation, error) {
	return CurrentGeneration(ctx)
}

func (k *netlinkDoor) read(ctx context.Context, f subnet.Family) (table, error) {
	var out table
	there := false
	err := k.use(ctx, func(conn *nftables.Conn) error {
		t, err := k.ours(conn, f)
		if err != nil || t == nil {
			return err
		}
		there, out.strange = true, t.Flags != 0
		if err := errors.Join(readCounters(conn, t, &out), readSets(conn, t, &out), readChains(conn, t, f, &out)); err != nil {
			return fmt.Errorf("read %s table %s: %w", f, k.table, err)
		}
		return nil
	})
	if err != nil || !there {
		return table{}, err
	}
	if out.empty() {
		// A table with nothing in it is not ours yet.
		out.strange = true
	}
	out.normalize()
	return out, nil
}

// ours returns our table, or nil if there is none, or no nf_tables.
func (k *netlinkDoor) ours(conn *nftables.Conn, f subnet.Family) (*nftables.Table, error) {
	tables, err := conn.ListTablesOfFamily(family(f))
	switch {
	case errors.Is(err, syscall.EPROTONOSUPPORT), errors.Is(err, syscall.EAFNOSUPPORT),
		errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.EINVAL):
		return nil, nil //nolint:nilnil // there is none
	case err != nil:
		return nil, fmt.Errorf("list %s tables: %w", f, err)
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == k.table && t.Family == family(f) })
	if i < 0 {
		return nil, nil //nolint:nilnil // there is none
	}
	return tables[i], nil
}

func readCounters(conn *nftables.Conn, t *nftables.Table, out *table) error {
	objects, err := conn.GetObjects(t)
	if err != nil {
		return fmt.Errorf("list counters: %w", err)
	}
	for _, o := range objects {
		if c, ok := o.(*nftables.CounterObj); ok {
			out.counters = append(out.counters, c.Name)
		}
	}
	return nil
}

func readSets(conn *nftables.Conn, t *nftables.Table, out *table) error {
	sets, err := conn.GetSets(t)
	if err != nil {
		return fmt.Errorf("list sets: %w", err)
	}
	for _, s := range sets {
		if s.Anonymous {
			continue // goes with its rule
		}
		elements, err := conn.GetSetElements(s)
		if err != nil {
			return fmt.Errorf("list set %s: %w", s.Name, err)
		}
		odd := s.IsMap || s.Interval || s.Constant || s.Dynamic || s.HasTimeout || s.Size != 0
		read := set{name: s.Name, key: typeOf(s.KeyType, odd), keys: make([]string, 0, len(elements))}
		for _, e := range elements {
			read.keys = append(read.keys, string(e.Key))
		}
		out.sets = append(out.sets, read)
	}
	return nil
}

func readChains(conn *nftables.Conn, t *nftables.Table, f subnet.Family, out *table) error {
	chains, err := conn.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	for _, c := range chains {
		if c.Table.Name != t.Name {
			continue
		}
		read := chain{name: c.Name}
		if c.Hooknum != nil && c.Priority != nil {
			read.hook = hook{c.Type, *c.Hooknum, *c.Priority, c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop}
		}
		found, err := conn.GetRules(t, c)
		if err != nil {
			return fmt.Errorf("list chain %s: %w", c.Name, err)
		}
		for _, r := range found {
			comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			text, err := encode(f, comment, r.Exprs)
			if err != nil {
				return err
			}
			read.rules = append(read.rules, rule{comment, r.Exprs, text})
		}
		out.chains = append(out.chains, read)
	}
	return nil
}

func (k *netlinkDoor) counters(ctx context.Context, f subnet.Family) (map[string]uint64, error) {
	out := map[string]uint64{}
	err := k.use(ctx, func(conn *nftables.Conn) error {
		t, err := k.ours(conn, f)
		if err != nil || t == nil {
			return err
		}
		objects, err := conn.GetObjects(t)
		if err != nil {
			return fmt.Errorf("list counters: %w", err)
		}
		for _, o := range objects {
			if c, ok := o.(*nftables.CounterObj); ok {
				out[c.Name] = c.Packets
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (k *netlinkDoor) write(ctx context.Context, changes subnet.ByFamily[change]) error {
	typeof := map[setID][]byte{}
	for _, f := range subnet.Families() {
		for _, s := range changes[f].addSets {
			typeof[setID{byte(family(f)), s.name}] = s.typeof
		}
	}
	conn, done, err := k.dialDescribing(ctx, typeof)
	if err != nil {
		return err
	}
	defer done()
	for _, f := range subnet.Families() {
		w := writer{conn: conn, table: k.handle(f)}
		if err := w.write(changes[f]); err != nil {
			return fmt.Errorf("write %s table %s: %w", f, k.table, err)
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("commit to nf_tables: %w", err)
	}
	return nil
}

// writer puts one family's change into a transaction.
type writer struct {
	conn  *nftables.Conn
	table *nftables.Table
	// made is the number of sets that the transaction makes.
	made uint32
}

func (w *writer) write(c change) error {
	if c.drop {
		w.conn.DelTable(w.table)
	}
	if c.create {
		w.conn.AddTable(w.table)
	}
	for _, name := range c.addCounters {
		w.conn.AddObj(&nftables.CounterObj{Table: w.table, Name: name})
	}
	if err := w.addSets(c); err != nil {
		return err
	}
	for _, add := range c.addChains {
		w.conn.AddChain(baseChain(w.table, add))
	}
	for _, r := range c.rewrite {
		w.rewrite(r)
	}
	for _, s := range c.delKeys {
		for keys := range slices.Chunk(s.keys, keysPerMessage) {
			if err := w.conn.SetDeleteElements(w.set(s), elements(keys)); err != nil {
				return fmt.Errorf("delete from set %s: %w", s.name, err)
			}
		}
	}
	w.remove(c)
	return nil
}

func (w *writer) addSets(c change) error {
	for _, s := range c.addSets {
		if err := w.conn.AddSet(w.set(s), nil); err != nil {
			return fmt.Errorf("add set %s: %w", s.name, err)
		}
	}
	for _, s := range c.addKeys {
		for keys := range slices.Chunk(s.keys, keysPerMessage) {
			if err := w.conn.SetAddElements(w.set(s), elements(keys)); err != nil {
				return fmt.Errorf("add to set %s: %w", s.name, err)
			}
		}
	}
	return nil
}

// set describes a set. Its number, which only says in a transaction which set a
// rule means that has none of that name yet, must not be zero: the library would
// count it up for the whole process.
func (w *writer) set(s set) *nftables.Set {
	w.made++
	return &nftables.Set{Table: w.table, ID: w.made, Name: s.name, KeyType: s.key.datatype()}
}

// rewrite replaces the rules of a chain, which is empty if it is new.
func (w *writer) rewrite(c chain) {
	at := &nftables.Chain{Table: w.table, Name: c.name}
	w.conn.FlushChain(at)
	for _, r := range c.rules {
		add := &nftables.Rule{Table: w.table, Chain: at, Exprs: r.exprs}
		if r.comment != "" {
			add.UserData = userdata.AppendString(nil, userdata.TypeComment, r.comment)
		}
		w.conn.AddRule(add)
	}
}

// remove empties all chains before it removes the first: they may jump to each
// other.
func (w *writer) remove(c change) {
	for _, gone := range c.delChains {
		w.conn.FlushChain(&nftables.Chain{Table: w.table, Name: gone.name})
	}
	for _, gone := range c.delChains {
		w.conn.DelChain(&nftables.Chain{Table: w.table, Name: gone.name})
	}
	for _, gone := range c.delSets {
		w.conn.DelSet(&nftables.Set{Table: w.table, Name: gone.name})
	}
	for _, name := range c.delCounters {
		w.conn.DeleteObject(&nftables.CounterObj{Table: w.table, Name: name})
	}
}

func elements(keys []string) []nftables.SetElement {
	out := make([]nftables.SetElement, len(keys))
	for i, k := range keys {
		out[i].Key = []byte(k)
	}
	return out
}

// baseChain describes a chain for the library.
func baseChain(t *nftables.Table, c chain) *nftables.Chain {
	out := &nftables.Chain{Table: t, Name: c.name}
	if c.hook != (hook{}) {
		policy := nftables.ChainPolicyAccept
		out.Type, out.Hooknum, out.Priority, out.Policy = c.hook.kind, &c.hook.number, &c.hook.priority, &policy
	}
	return out
}
