package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/cmd/internal/version"
	"github.com/flanneld-go/flanneld-go/daemonconfig/dockerd"
	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore"
)

// timeout bounds every command that asks etcd or the daemon.
const timeout = 10 * time.Second

type streams struct {
	in       io.Reader
	out, err io.Writer
}

// command is one verb. Register adds its flags; run does it, with what is left
// of the command line.
type command struct {
	name, args, help string
	takes            int // arguments
	register         func(*invocation, *pflag.FlagSet)
	run              func(context.Context, *invocation) error
}

// invocation is one call of a command.
type invocation struct {
	streams
	env      cli.Env
	etcd     cli.Etcd
	args     []string
	socket   string
	json     bool
	node     string
	publicIP string
	stateDir string
	instance cli.Instance
	docker   string
	yes      bool
}

// commands are all verbs, in the order of the help page.
func commands() []command {
	return []command{
		{name: "status", help: "what this host's daemon knows and what is wrong", register: jsonFlag, run: runStatus},
		{name: "config get", help: "print the network config", register: etcdFlags, run: runConfigGet},
		{name: "config set", args: "FILE|-|JSON", takes: 1, help: "check a network config and put it, if nobody else changed it meanwhile", register: etcdFlags, run: runConfigSet},
		{name: "config validate", args: "FILE|-|JSON", takes: 1, help: "check a network config and put nothing", run: runConfigValidate},
		{name: "leases", help: "list all leases with owner and remaining time", register: leasesFlags, run: runLeases},
		{name: "reserve", args: "SUBNET", takes: 1, help: "make a subnet one host's for ever: --node ID or --public-ip IP", register: reserveFlags, run: runReserve},
		{name: "release", args: "SUBNET", takes: 1, help: "end a reservation, or with --yes the lease of a host that is gone", register: releaseFlags, run: runRelease},
		{name: "docker network create", args: "NAME", takes: 1, help: "make a Docker network on this host's subnet, as the daemon does with --docker-network", register: dockerFlags, run: runNetworkCreate},
		{name: "cleanup", help: "remove devices, routes, rules and settings that the daemon left on this host", register: cleanupFlags, run: runCleanup},
	}
}

func jsonFlag(inv *invocation, fs *pflag.FlagSet) {
	fs.BoolVar(&inv.json, "json", false, "print JSON")
}

func etcdFlags(inv *invocation, fs *pflag.FlagSet) { inv.etcd.Register(fs) }

func leasesFlags(inv *invocation, fs *pflag.FlagSet) {
	etcdFlags(inv, fs)
	jsonFlag(inv, fs)
}

func dockerFlags(inv *invocation, fs *pflag.FlagSet) {
	fs.StringVar(&inv.docker, "docker-socket", dockerd.DefaultSocket, "Docker's unix `socket`")
}

func cleanupFlags(inv *invocation, fs *pflag.FlagSet) {
	fs.StringVar(&inv.stateDir, "state-dir", "/var/lib/flanneld-go", "`folder` that the daemon kept its state in")
	fs.BoolVar(&inv.yes, "yes", false, "do it; without, only say what would be done")
	dockerFlags(inv, fs)
}

// run finds the verb and calls it.
func run(ctx context.Context, s streams, args []string, env cli.Env) error {
	if len(args) == 0 {
		printHelp(s.err)
		return cli.Usagef("which command?")
	}
	switch args[0] {
	case "help", "-h", "--help", "-help":
		printHelp(s.out)
		return nil
	case "version", "--version", "-version":
		fmt.Fprintln(s.out, version.Line("flannelctl"))
		return nil
	}
	for _, c := range commands() {
		words := strings.Fields(c.name)
		if len(args) < len(words) || strings.Join(args[:len(words)], " ") != c.name {
			continue
		}
		return c.call(ctx, s, args[len(words):], env)
	}
	if strings.HasPrefix(args[0], "-") {
		// Not quoted: it may be a password.
		return cli.Usagef("flags come behind the command (see flannelctl help)")
	}
	words := args[:1]
	if len(args) > 1 && !strings.HasPrefix(args[1], "-") {
		words = args[:2]
	}
	return cli.Usagef("%q: no such command (see flannelctl help)", strings.Join(words, " "))
}

// usage is the command line.
func (c command) usage() string {
	return strings.TrimSpace("flannelctl " + c.name + " [flags] " + c.args)
}

func (c command) call(ctx context.Context, s streams, args []string, env cli.Env) error {
	inv := &invocation{streams: s, env: env}
	fs := cli.NewFlagSet(c.name, fmt.Sprintf("Usage: %s\n\n%s.", c.usage(), c.help), s.out)
	inv.instance.Register(fs)
	fs.StringVar(&inv.socket, "socket", "/run/flannel/flanneld-go.sock", "the daemon's unix `socket`")
	if c.register != nil {
		c.register(inv, fs)
	}
	if err := cli.Parse(fs, args, env); err != nil {
		return err
	}
	paths := []string{"socket"}
	if fs.Lookup("state-dir") != nil {
		paths = append(paths, "state-dir")
	}
	if err := inv.instance.Take(fs, paths...); err != nil {
		return err
	}
	inv.args = fs.Args()
	if len(inv.args) != c.takes {
		return cli.Usagef("%d arguments given, must be %d: %s", len(inv.args), c.takes, c.usage())
	}
	return c.run(ctx, inv)
}

func printHelp(out io.Writer) {
	fmt.Fprint(out, "flannelctl looks after the hosts of a flannel network.\n\nUsage: flannelctl COMMAND [flags]\n\nCommands:\n")
	for _, c := range commands() {
		fmt.Fprintf(out, "  %-28s %s\n", strings.TrimSpace(c.name+" "+c.args), c.help)
	}
	fmt.Fprintf(out, "  %-28s %s\n\nflannelctl COMMAND --help lists a command's flags.\n", "version", "print the version")
}

// access says whether a command writes to etcd.
type access bool

const (
	readOnly  access = true
	readWrite access = false
)

// openStore opens etcd. What neither flags nor environment say, the daemon on
// this host knows. Where none runs, flannel's defaults are asked, and said: they
// need not be what the daemon would use.
func (inv *invocation) openStore(ctx context.Context, a access) (*etcdstore.Store, error) {
	opts, err := inv.etcd.StoreOptions()
	if err != nil {
		return nil, err
	}
	opts.ReadOnly = bool(a)
	if inv.etcd.Given("etcd-endpoints") || opts.DiscoverySRV != "" {
		return etcdstore.New(opts)
	}
	s, err := inv.fetchStatus(ctx)
	switch {
	case err == nil:
		err = inv.learn(&opts, s.Etcd)
	case isRefused(err) || errors.Is(err, os.ErrNotExist):
		fmt.Fprintf(inv.err, "flannelctl: %v; asking etcd at %s, prefix %s (--etcd-endpoints and --etcd-prefix say otherwise)\n",
			err, strings.Join(opts.Endpoints, ","), opts.Prefix)
		err = nil
	default:
		// One runs, and only it knows which etcd it uses.
		err = fmt.Errorf("where is etcd? %w; or give --etcd-endpoints", err)
	}
	if err != nil {
		return nil, err
	}
	return etcdstore.New(opts)
}

// learn takes over what the daemon knows of its etcd, where nothing else is said.
func (inv *invocation) learn(opts *etcdstore.Options, known status.Etcd) error {
	if opts.Endpoints = known.Endpoints; len(opts.Endpoints) == 0 {
		return cli.Usagef("the daemon knows no etcd endpoints yet: give --etcd-endpoints or --etcd-discovery-srv")
	}
	if !inv.etcd.Given("etcd-prefix") {
		opts.Prefix = known.Prefix
	}
	if opts.CAFile == "" && opts.CertFile == "" {
		opts.CAFile, opts.CertFile, opts.KeyFile = known.CAFile, known.CertFile, known.KeyFile
	}
	if opts.Username == "" && known.Username != "" {
		return cli.Usagef("etcd wants user %s: give --etcd-username and --etcd-password-file", known.Username)
	}
	return nil
}

// inWorld opens etcd, reads everything at once, and calls do, all within the
// timeout.
func (inv *invocation) inWorld(ctx context.Context, a access, do func(context.Context, *etcdstore.Store, subnet.World) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	store, err := inv.openStore(ctx, a)
	if err != nil {
		return err
	}
	defer store.Close()
	world, err := store.Load(ctx)
	if err != nil {
		return err
	}
	return do(ctx, store, world)
}

// fetchStatus asks the daemon.
func (inv *invocation) fetchStatus(ctx context.Context) (status.Status, error) {
	s, err := status.Fetch(ctx, inv.socket)
	if err != nil {
		return s, explainSocket(inv.socket, inv.instance.Unit(), err)
	}
	return s, nil
}

// socketError is a socket that does not answer, in words of its own.
type socketError struct {
	text  string
	cause error
}

// Error returns the words.
func (e *socketError) Error() string { return e.text }

// Unwrap returns the cause.
func (e *socketError) Unwrap() error { return e.cause }

// explainSocket says what an operator can do about a socket that does not
// answer.
func explainSocket(socket, unit string, err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return &socketError{fmt.Sprintf("no daemon here: %s does not exist: systemctl status %s, or give --socket", socket, unit), err}
	case errors.Is(err, os.ErrPermission):
		return &socketError{fmt.Sprintf("%s is for root only: run flannelctl as root", socket), err}
	case isRefused(err):
		return &socketError{fmt.Sprintf("the daemon is gone: nobody answers on %s: systemctl status %s", socket, unit), err}
	}
	return fmt.Errorf("%s: %w", socket, err)
}
