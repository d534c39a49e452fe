package main

import (
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/flanneld-go/flanneld-go/backend/uplink"
	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
	"github.com/flanneld-go/flanneld-go/daemonconfig/dockerd"
	"github.com/flanneld-go/flanneld-go/subnet"
)

const usage = `flanneld-go leases a subnet for this Docker host and connects its containers to
those of all other hosts. It reads the network config from etcd; put one with

  etcdctl put /coreos.com/network/config '{"Network":"10.5.0.0/16"}'

Usage: flanneld-go [flags]`

const defaultDockerConfig = "/etc/docker/daemon.json"

// options are the command line and the environment, checked.
type options struct {
	etcd     cli.Etcd
	instance cli.Instance
	node     string
	uplink   uplink.Options

	subnetFile    string
	stateDir      string
	socket        string
	dockerConfig  string
	dockerOptions string
	dockerRestart string
	dockerNetwork string
	dockerSocket  string // empty: Docker is not asked

	ipMasq         bool
	noFullyRandom  bool
	forwardRules   bool
	iptablesResync time.Duration
	blackholeRoute bool
	healthz        string // host:port; empty: off
	metricsListen  string
	leaseTTL       time.Duration
	renewMargin    time.Duration // 0: TTL/3 decides
	onConflict     subnet.OnConflict
	releaseOnExit  bool
	logLevel       slog.Level
	logFormat      string
	check, version bool
	ignored        []string // flags of flannel that have no effect here
}

// rawOptions are flags before they are checked.
type rawOptions struct {
	options
	canReach, publicIP, publicIPv6 string
	conflict                       string
	resyncSeconds, marginMinutes   int
	healthzIP                      string
	healthzPort                    int
	logLevel                       string
	verbosity                      int
	vmodule, backtrace             string
	netConfPath                    string
	kubernetes                     [5]string
	kubeSubnetMgr, kubeUnavailable bool
}

// parseOptions reads flags and environment. Help is printed to out.
func parseOptions(args []string, env cli.Env, out io.Writer) (options, error) {
	var r rawOptions
	fs := cli.NewFlagSet("flanneld-go", usage, out)
	r.register(fs)
	if err := cli.Parse(fs, args, env); err != nil {
		return options{}, err
	}
	if rest := fs.Args(); len(rest) > 0 {
		return options{}, cli.Usagef("%q: flanneld-go takes flags only (see --help)", rest[0])
	}
	if r.version {
		return r.options, nil
	}
	for _, check := range []func(*pflag.FlagSet) error{
		r.refuseKubernetes, r.checkInstance, r.checkEtcd, r.checkUplink, r.checkDocker, r.checkLease, r.checkListen, r.checkLog,
	} {
		if err := check(fs); err != nil {
			return options{}, err
		}
	}
	return r.options, nil
}

func (r *rawOptions) register(fs *pflag.FlagSet) {
	r.etcd.Register(fs)
	r.instance.Register(fs)
	fs.StringArrayVar(&r.uplink.Ifaces, "iface", nil, "`interface` (name or IP) for traffic between hosts; repeatable, the first that exists is taken (default: that of the default route)")
	fs.StringArrayVar(&r.uplink.Regexes, "iface-regex", nil, "`regexp` that the interface's name or IP must match; repeatable, tried after --iface")
	fs.StringVar(&r.canReach, "iface-can-reach", "", "take the interface by which the kernel would reach this `IP`")
	fs.StringVar(&r.publicIP, "public-ip", "", "`IP` that other hosts send to (default: the interface's)")
	fs.StringVar(&r.publicIPv6, "public-ipv6", "", "`IPv6` address that other hosts send to (default: the interface's)")
	fs.StringVar(&r.node, "node-id", "", "`name` of this host, which owns its lease (default: derived from /etc/machine-id)")
	fs.StringVar(&r.subnetFile, "subnet-file", "/run/flannel/subnet.env", "`file` that tells subnet and MTU to others")
	fs.StringVar(&r.stateDir, "state-dir", "/var/lib/flanneld-go", "`folder` for what must outlive a restart")
	fs.StringVar(&r.socket, "socket", "/run/flannel/flanneld-go.sock", "unix `socket` that flannelctl asks")
	fs.StringVar(&r.dockerConfig, "docker-config", "", "Docker's config `file` to keep bip and mtu in, or none (default: "+defaultDockerConfig+" where dockerd is installed, for instance 0)")
	fs.StringVar(&r.dockerOptions, "docker-options", "", "write Docker's options to this environment `file` instead, as mk-docker-opts.sh does")
	fs.StringVar(&r.dockerRestart, "docker-restart", "never", "restart Docker when its subnet or MTU must change: never or on-change (`when`)")
	fs.StringVar(&r.dockerNetwork, "docker-network", "", "keep a Docker bridge network of this `name` on our subnet, and leave docker0 as Docker makes it")
	fs.BoolVar(&r.ipMasq, "ip-masq", false, "masquerade traffic that leaves the network")
	fs.BoolVar(&r.noFullyRandom, "ip-masq-fully-random-disable", false, "masquerade without --random-fully")
	fs.BoolVar(&r.forwardRules, "iptables-forward-rules", true, "accept forwarded traffic between our subnet and the network")
	fs.IntVar(&r.resyncSeconds, "iptables-resync", 5, "`seconds` between checks of the firewall rules")
	fs.BoolVar(&r.blackholeRoute, "ip-blackhole-route", false, "add a blackhole route for our subnet, so that packets to addresses without a container do not leave the host")
	fs.DurationVar(&r.leaseTTL, "subnet-lease-ttl", 24*time.Hour, "`time` after which a silent host's subnet is free again")
	fs.IntVar(&r.marginMinutes, "subnet-lease-renew-margin", 60, "renew at the latest so many `minutes` before the lease ends (1 to 1439)")
	fs.StringVar(&r.conflict, "on-conflict", "renumber", "when another host holds our subnet: renumber, fence or keep (`action`)")
	fs.BoolVar(&r.releaseOnExit, "release-on-exit", false, "on a signal withdraw the data path and give the lease back, for hosts that do not come back")
	fs.StringVar(&r.healthzIP, "healthz-ip", "0.0.0.0", "`IP` for /healthz and /readyz")
	fs.IntVar(&r.healthzPort, "healthz-port", 0, "`port` for /healthz and /readyz; 0: off")
	fs.StringVar(&r.metricsListen, "metrics-listen", "", "`address` (host:port) for Prometheus metrics; empty: off")
	fs.StringVar(&r.logLevel, "log-level", "info", "`level`: debug, info, warn or error")
	fs.StringVar(&r.logFormat, "log-format", "text", "`format`: text or json")
	fs.BoolVar(&r.check, "check", false, "plan everything, say it, write nothing (etcd included), and exit")
	fs.BoolVar(&r.version, "version", false, "print the version and exit")
	r.registerCompat(fs)
}

// registerCompat adds flannel's flags that are refused or have no effect.
func (r *rawOptions) registerCompat(fs *pflag.FlagSet) {
	fs.IntVarP(&r.verbosity, "v", "v", 0, "flannel's log `level`: 4 and more mean --log-level=debug")
	fs.StringVar(&r.vmodule, "vmodule", "", "flannel's, ignored")
	fs.StringVar(&r.backtrace, "log_backtrace_at", "", "flannel's, ignored")
	fs.StringVar(&r.netConfPath, "net-config-path", "", "flannel's, ignored: the network config is read from etcd")
	fs.BoolVar(&r.kubeSubnetMgr, "kube-subnet-mgr", false, "")
	fs.BoolVar(&r.kubeUnavailable, "set-node-network-unavailable", false, "")
	for i, name := range []string{"kube-api-url", "kube-annotation-prefix", "kubeconfig-file"} {
		fs.StringVar(&r.kubernetes[i], name, "", "")
	}
	for _, name := range []string{"vmodule", "log_backtrace_at", "net-config-path"} {
		fs.Lookup(name).Hidden = true
	}
	for _, name := range kubernetesFlags {
		fs.Lookup(name).Hidden = true
	}
}

var kubernetesFlags = [...]string{"kube-subnet-mgr", "kube-api-url", "kube-annotation-prefix", "kubeconfig-file", "set-node-network-unavailable"}

// refuseKubernetes refuses what asks for Kubernetes. A flag given its
// off-value asks for nothing.
func (r *rawOptions) refuseKubernetes(fs *pflag.FlagSet) error {
	for _, name := range kubernetesFlags {
		f := fs.Lookup(name)
		if f.Value.String() != "" && f.Value.String() != "false" {
			return cli.Usagef("--%s: flanneld-go keeps leases in etcd and does not work with Kubernetes: use flannel there, or remove the flag", name)
		}
	}
	for _, name := range []string{"vmodule", "log_backtrace_at", "net-config-path"} {
		if fs.Lookup(name).Value.String() != "" {
			r.ignored = append(r.ignored, name)
		}
	}
	return nil
}

func (r *rawOptions) checkInstance(fs *pflag.FlagSet) error {
	return r.instance.Take(fs, "subnet-file", "state-dir", "socket")
}

func (r *rawOptions) checkEtcd(*pflag.FlagSet) error { return r.etcd.Validate() }

func (r *rawOptions) checkUplink(*pflag.FlagSet) error {
	for _, flag := range []struct {
		name, value string
		into        *netip.Addr
	}{
		{"iface-can-reach", r.canReach, &r.uplink.CanReach},
		{"public-ip", r.publicIP, &r.uplink.Public[subnet.IPv4]},
		{"public-ipv6", r.publicIPv6, &r.uplink.Public[subnet.IPv6]},
	} {
		if flag.value == "" {
			continue
		}
		addr, err := netip.ParseAddr(flag.value)
		if err != nil {
			return cli.Usagef("--%s: %q: must be an IP address", flag.name, flag.value)
		}
		*flag.into = addr.Unmap()
	}
	if err := r.uplink.Validate(); err != nil {
		return &cli.UsageError{Err: err}
	}
	return nil
}

func (r *rawOptions) checkDocker(fs *pflag.FlagSet) error {
	if r.dockerConfig != "" && r.dockerConfig != "none" && r.dockerOptions != "" {
		return cli.Usagef("--docker-config and --docker-options exclude each other: dockerd refuses an option that it is given twice")
	}
	if r.dockerRestart != "never" && r.dockerRestart != "on-change" {
		return cli.Usagef("--docker-restart: %q: must be never or on-change", r.dockerRestart)
	}
	r.dockerSocket = dockerd.DefaultSocket
	if r.dockerNetwork != "" {
		if err := dockerd.CheckName(r.dockerNetwork); err != nil {
			return cli.Usagef("--docker-network: %w", err)
		}
		if r.dockerOptions != "" {
			return cli.Usagef("--docker-network and --docker-options exclude each other: both give our subnet to a bridge of Docker's")
		}
	}
	switch {
	case r.dockerConfig == "none" || r.dockerOptions != "":
		r.dockerConfig = ""
	case r.dockerConfig == "" && r.instance.Instance == 0:
		// There is one docker0, and it is the first instance's.
		if _, err := exec.LookPath("dockerd"); err == nil {
			r.dockerConfig = defaultDockerConfig
		}
	}
	for _, name := range []string{"subnet-file", "state-dir", "socket"} {
		if p := fs.Lookup(name).Value.String(); !filepath.IsAbs(p) {
			return cli.Usagef("--%s: %q: must be an absolute path", name, p)
		}
	}
	return nil
}

func (r *rawOptions) checkLease(fs *pflag.FlagSet) error {
	if r.leaseTTL < 2*time.Second {
		return cli.Usagef("--subnet-lease-ttl: %s: must be at least 2s; 24h is usual", r.leaseTTL)
	}
	if r.marginMinutes < 1 || r.marginMinutes > 1439 {
		return cli.Usagef("--subnet-lease-renew-margin: %d: must be between 1 and 1439 minutes", r.marginMinutes)
	}
	if fs.Changed("subnet-lease-renew-margin") {
		r.renewMargin = time.Duration(r.marginMinutes) * time.Minute
		if r.renewMargin >= r.leaseTTL {
			return cli.Usagef("--subnet-lease-renew-margin: %d: must be shorter than the lease itself (--subnet-lease-ttl is %s)", r.marginMinutes, r.leaseTTL)
		}
	}
	var err error
	if r.onConflict, err = subnet.ParseOnConflict(r.conflict); err != nil {
		return cli.Usagef("--on-conflict: %w", err)
	}
	if r.resyncSeconds < 1 {
		return cli.Usagef("--iptables-resync: %d: must be at least 1 second", r.resyncSeconds)
	}
	r.iptablesResync = time.Duration(r.resyncSeconds) * time.Second
	return nil
}

func (r *rawOptions) checkListen(*pflag.FlagSet) error {
	if r.healthzPort < 0 || r.healthzPort > 65535 {
		return cli.Usagef("--healthz-port: %d: must be between 0 and 65535", r.healthzPort)
	}
	if r.healthzPort > 0 {
		if _, err := netip.ParseAddr(r.healthzIP); err != nil {
			return cli.Usagef("--healthz-ip: %q: must be an IP address", r.healthzIP)
		}
		r.healthz = net.JoinHostPort(r.healthzIP, strconv.Itoa(r.healthzPort))
	}
	if r.metricsListen != "" {
		if _, _, err := net.SplitHostPort(r.metricsListen); err != nil {
			return cli.Usagef("--metrics-listen: %q: must be host:port, such as 127.0.0.1:9094", r.metricsListen)
		}
	}
	return nil
}

func (r *rawOptions) checkLog(*pflag.FlagSet) error {
	if err := r.options.logLevel.UnmarshalText([]byte(r.logLevel)); err != nil || !validLevel(r.logLevel) {
		return cli.Usagef("--log-level: %q: must be debug, info, warn or error", r.logLevel)
	}
	if r.verbosity >= 4 {
		r.options.logLevel = slog.LevelDebug
	}
	if r.logFormat != "text" && r.logFormat != "json" {
		return cli.Usagef("--log-format: %q: must be text or json", r.logFormat)
	}
	return nil
}

func validLevel(s string) bool {
	switch strings.ToLower(s) {
	case "debug", "info", "warn", "error":
		return true
	}
	return false
}

// newLogger makes the logger that opts ask for.
func newLogger(opts options, out io.Writer) *slog.Logger {
	handlerOptions := &slog.HandlerOptions{Level: opts.logLevel}
	if opts.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(out, handlerOptions))
	}
	return slog.New(slog.NewTextHandler(out, handlerOptions))
}

// docker is what the daemon keeps for the container daemon, for the log.
func (o options) docker() string {
	switch {
	case o.dockerNetwork != "":
		return "network " + o.dockerNetwork
	case o.dockerOptions != "":
		return o.dockerOptions
	case o.dockerConfig != "":
		return o.dockerConfig
	}
	if o.instance.Instance != 0 {
		return "none (docker0 is instance 0's; --docker-network makes a network of our own)"
	}
	return "none (no dockerd found, or --docker-config=none)"
}

// stopping says what a signal leaves, for the service manager.
func (o options) stopping() string {
	if o.releaseOnExit {
		return "stopping; the data path is withdrawn and the lease released"
	}
	return "stopping; devices, routes and rules stay in place"
}
