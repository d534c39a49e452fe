package firewalld

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/nftables"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
)

// patience is how long firewalld may take for one Apply or Cleanup: a reload takes
// two seconds, and it answers nobody else meanwhile.
const patience = 15 * time.Second

// ErrNotRunning: firewalld is there and says that something is wrong with it.
var ErrNotRunning = errors.New("firewalld has failed")

// ErrUnsaved says which settings a reload would lose, which we therefore do not do.
type ErrUnsaved struct{ Settings []string }

func (e *ErrUnsaved) Error() string {
	return "firewalld needs a reload to let the overlay through, and would lose settings made at run time only, in " +
		strings.Join(e.Settings, ", ") + ": see firewall-cmd --runtime-to-permanent, --reload"
}

// ErrForeign: there is a policy or an ipset of our name that is not ours.
type ErrForeign struct{ Kind, Name string }

func (e *ErrForeign) Error() string {
	return fmt.Sprintf("firewalld's %s %s has our name and is not ours", e.Kind, e.Name)
}

// ErrMasquerade: firewalld rewrites the source of what we send to peers.
type ErrMasquerade struct{ Zone, Interface string }

func (e *ErrMasquerade) Error() string {
	return fmt.Sprintf("firewalld's zone %s masquerades what leaves by %s, sources in the network too", e.Zone, e.Interface)
}

// Options are what a Client is made of. The zero value is for a real host.
type Options struct {
	// Instance is who we are: whose policies and sets are ours.
	Instance kernel.Instance
	// Log is told what had to be changed; nil: slog.Default.
	Log *slog.Logger
	// Connect returns a connection of our own to the system bus; nil: to the
	// bus that DBUS_SYSTEM_BUS_ADDRESS names, or the usual one.
	Connect func(ctx context.Context) (*dbus.Conn, error)
	// Here reports whether firewalld's table is in the network namespace of
	// the calling thread; nil: ask nf_tables.
	Here func() (bool, error)
	// Config is the folder of permanent objects; empty: /etc/firewalld.
	Config string
}

// Client keeps our policies in firewalld. Its methods are safe for concurrent use;
// Apply and Cleanup run one after the other.
type Client struct {
	owner   owner
	log     *slog.Logger
	connect func(ctx context.Context) (*dbus.Conn, error)
	here    func() (bool, error)
	config  string
	// patience is that of the package; tests have more.
	patience time.Duration

	mu sync.Mutex
	// reloaded is the firewalld that we made reload for the sake of what it
	// lacked, and what that was. It is not made to do so twice.
	reloaded string
}

// New returns a Client that has not acted yet.
func New(o Options) *Client {
	c := &Client{owner: owner(o.Instance), log: o.Log, connect: o.Connect, here: o.Here, config: cmp.Or(o.Config, "/etc/firewalld"), patience: patience}
	if c.log == nil {
		c.log = slog.Default()
	}
	if c.connect == nil {
		c.connect = systemBus
	}
	if c.here == nil {
		c.here = hasTable
	}
	return c
}

func systemBus(ctx context.Context) (*dbus.Conn, error) {
	return dbus.ConnectSystemBus(dbus.WithContext(ctx))
}

// isAbsent reports whether an error of connecting says that there is no bus.
func isAbsent(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)
}

func hasTable() (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nf_tables: %w", err)
	}
	_, err = conn.ListTableOfFamily("firewalld", nftables.TableFamilyINet)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.EAFNOSUPPORT):
		return false, nil // the last ones: no nf_tables, or none of that family
	}
	return false, fmt.Errorf("look for firewalld's table: %w", err)
}

// Apply makes our policies hold what d wants. See the package's contract. It
// reports whether it had firewalld reload, which empties iptables.
func (c *Client) Apply(ctx context.Context, d Desired) (reloaded bool, err error) {
	err = c.visit(ctx, func(ctx context.Context, fw *door) error {
		sets, err := fw.sets(ctx)
		if err != nil {
			return err
		}
		want := c.owner.compile(d, sets.have)
		made, err := c.ensure(ctx, fw, want, sets)
		reloaded = made.reloaded
		errs := []error{err}
		if reloaded {
			sets, err = fw.sets(ctx)
			errs = append(errs, err)
		}
		if !made.lack(want.forward) {
			errs = append(errs, c.converge(ctx, fw, want.forward))
		}
		for _, s := range want.sets {
			if made.lacks(s.name) {
				continue
			}
			if err := c.fill(ctx, fw, s, sets[s.name]); err != nil {
				errs = append(errs, err)
				made.missing = append(made.missing, s.name)
			}
		}
		if !made.lack(want.input) {
			errs = append(errs, c.converge(ctx, fw, want.input))
		}
		for _, name := range d.Interfaces {
			zone, err := fw.masquerading(ctx, name)
			if err == nil && zone != "" {
				err = &ErrMasquerade{zone, name}
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	return reloaded, err
}

// visit runs fn if a firewalld with nf_tables looks after our namespace.
func (c *Client) visit(ctx context.Context, fn func(context.Context, *door) error) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	here, err := c.here()
	if err != nil || !here {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	fw, err := c.enter(ctx)
	if err != nil || fw == nil {
		return err
	}
	defer func() { err = errors.Join(err, fw.close()) }()
	state, err := fw.state(ctx)
	if err != nil {
		return err
	}
	if state != "RUNNING" {
		return fmt.Errorf("%w: its state is %s", ErrNotRunning, state)
	}
	return fn(ctx, fw)
}

// made is what came of ensure.
type made struct {
	reloaded bool
	// missing are the names of what firewalld still lacks.
	missing []string
}

func (m made) lacks(name string) bool { return slices.Contains(m.missing, name) }

// lack reports whether a policy or a set that it speaks of is missing.
func (m made) lack(p policy) bool { return m.lacks(p.name) || slices.ContainsFunc(p.sets, m.lacks) }

// ensure makes sure that what has something to hold exists.
func (c *Client) ensure(ctx context.Context, fw *door, want content, sets entries) (made, error) {
	missing, err := c.makeMissing(ctx, fw, want, sets)
	if err != nil || len(missing) == 0 {
		if err == nil {
			c.reloaded = ""
		}
		return made{missing: missing}, err
	}
	names := strings.Join(missing, ", ")
	cause := fw.owner + " without " + names
	if c.reloaded == cause {
		return made{missing: missing}, fmt.Errorf("%w: %s after a reload", errAbsent, names)
	}
	if err := c.reload(ctx, fw); err != nil {
		return made{missing: missing}, err
	}
	c.reloaded = cause
	return made{reloaded: true}, nil
}

// makeMissing makes permanent what is not there at run time, and returns its names.
// What is foreign is missing, too.
func (c *Client) makeMissing(ctx context.Context, fw *door, want content, sets entries) (missing []string, err error) {
	var errs []error
	for _, p := range []policy{want.forward, want.input} {
		if len(p.rules) == 0 {
			continue
		}
		_, err := fw.rules(ctx, p.name)
		if err == nil {
			continue
		}
		missing = append(missing, p.name)
		if errors.Is(err, errAbsent) {
			err = makePermanent(ctx, fw, policyKind(), p.name, func() error { return fw.add(ctx, p) })
		}
		errs = append(errs, err)
	}
	for _, s := range want.sets {
		if sets.have(s.name) || len(s.entries) == 0 {
			continue
		}
		missing = append(missing, s.name)
		errs = append(errs, makePermanent(ctx, fw, setKind(), s.name, func() error { return fw.addSet(ctx, s) }))
	}
	return missing, errors.Join(errs...)
}

// makePermanent adds a permanent object that does not exist yet.
func makePermanent(ctx context.Context, fw *door, k kind, name string, add func() error) error {
	_, err := fw.permanent(ctx, k, name)
	if errors.Is(err, errAbsent) {
		return add()
	}
	return err
}

// reload reloads firewalld if nobody loses anything by that.
func (c *Client) reload(ctx context.Context, fw *door) error {
	settings, err := fw.unsaved(ctx)
	if err != nil {
		return err
	}
	if len(settings) > 0 {
		return &ErrUnsaved{settings}
	}
	c.log.InfoContext(ctx, "firewalld reloads, for policies or sets of ours to come or go")
	return fw.reload(ctx)
}

// converge makes one policy hold its rules and no others.
func (c *Client) converge(ctx context.Context, fw *door, p policy) error {
	have, err := fw.rules(ctx, p.name)
	if errors.Is(err, errAbsent) && len(p.rules) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	slices.Sort(have)
	want := slices.Sorted(slices.Values(p.rules))
	if slices.Equal(have, want) {
		return nil
	}
	// firewalld removes first, and a packet may come in between: two prefixes
	// that become one are both there until it is.
	both := slices.Compact(slices.Sorted(slices.Values(slices.Concat(have, want))))
	if len(both) > len(have) {
		err = fw.setRules(ctx, p.name, both)
	}
	if err == nil && len(both) > len(want) {
		err = fw.setRules(ctx, p.name, want)
	}
	if err != nil {
		return err
	}
	c.log.InfoContext(ctx, "firewall changed", "variant", "firewalld", "table", p.name, "operations", 2*len(both)-len(have)-len(want))
	return nil
}

// Cleanup removes our policies and sets. If a reload would lose settings of others,
// what is left until the next one are policies without a rule and sets without an
// address. Of a firewalld that does not run the permanent ones are removed.
func (c *Client) Cleanup(ctx context.Context) error {
	files, err := c.files()
	if err == nil && len(files) > 0 {
		var stopped bool
		if stopped, err = c.stopped(ctx); stopped {
			return removeAll(files)
		}
	}
	if err != nil {
		return err
	}
	return c.visit(ctx, func(ctx context.Context, fw *door) error {
		sets, err := fw.sets(ctx)
		if err != nil {
			return err
		}
		nothing := c.owner.compile(Desired{}, func(string) bool { return true })
		var errs []error
		gone := false
		for _, p := range []policy{nothing.forward, nothing.input} {
			there, err := c.removePolicy(ctx, fw, p)
			errs = append(errs, err)
			gone = gone || there
		}
		for _, s := range nothing.sets {
			there, err := c.removeSet(ctx, fw, s, sets)
			errs = append(errs, err)
			gone = gone || there
		}
		if err := errors.Join(errs...); err != nil || !gone {
			return err
		}
		c.reloaded = ""
		err = c.reload(ctx, fw)
		if unsaved := (*ErrUnsaved)(nil); errors.As(err, &unsaved) {
			c.log.InfoContext(ctx, "firewalld keeps policies and sets of ours, empty, until its next reload")
			return nil
		}
		return err
	})
}

// removePolicy reports whether a reload is needed for a policy to be gone.
func (c *Client) removePolicy(ctx context.Context, fw *door, p policy) (there bool, err error) {
	if err := removePermanent(ctx, fw, policyKind(), p.name); err != nil {
		return false, ignoreForeign(err)
	}
	if _, err = fw.rules(ctx, p.name); errors.Is(err, errAbsent) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, c.converge(ctx, fw, p)
}

// removeSet reports whether a reload is needed for a set to be gone.
func (c *Client) removeSet(ctx context.Context, fw *door, s peerSet, sets entries) (there bool, err error) {
	if err := removePermanent(ctx, fw, setKind(), s.name); err != nil {
		return false, ignoreForeign(err)
	}
	if !sets.have(s.name) {
		return false, nil
	}
	return true, c.fill(ctx, fw, s, sets[s.name])
}

// removePermanent removes a permanent object of ours, if there is one.
func removePermanent(ctx context.Context, fw *door, k kind, name string) error {
	path, err := fw.permanent(ctx, k, name)
	if errors.Is(err, errAbsent) {
		return nil
	}
	if err != nil {
		return err
	}
	return fw.call(ctx, path, k.config, "remove", nil)
}

func ignoreForeign(err error) error {
	if foreign := (*ErrForeign)(nil); errors.As(err, &foreign) {
		return nil
	}
	return err
}
