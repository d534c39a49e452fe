package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/daemonconfig/dockerd"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// dockerLook is how long what Docker said is good: rounds are more frequent
// than Docker changes.
const dockerLook = 5 * time.Second

// dockerSeen is the Docker of this host as it was seen last.
type dockerSeen struct {
	// at is the uptime then; 0: never.
	at time.Duration
	// up: it answers.
	up     bool
	engine dockerd.Engine
	// capabilities outlive a Docker that is down; their version is zero until
	// it is known.
	capabilities dockerd.Capabilities
	// given are dockerd's flags.
	given []dockerd.Given
	// process is the dockerd that runs; zero: not known.
	process dockerd.Process
	// networks are Docker's; nil: it does not say.
	networks []dockerd.Network
	// rootless is the process id of a rootless dockerd, where no other runs.
	rootless int
}

// bridge is Docker's network on docker0; nil: there is none.
func (s *dockerSeen) bridge() *dockerd.Network {
	i := slices.IndexFunc(s.networks, func(n dockerd.Network) bool { return n.Name == "bridge" })
	if i < 0 {
		return nil
	}
	return &s.networks[i]
}

// dockerPlaces are where dockerds leave traces; the zero value is nowhere.
type dockerPlaces struct {
	// pidFile is of the host's own, rootless the pattern for those of users.
	pidFile, rootless string
	// proc is where procfs is mounted.
	proc string
}

// held reports that docker0 cannot get another address now, restart or not.
func (s *dockerSeen) held() bool {
	return s.up && s.engine.Info.LiveRestore && s.engine.Info.ContainersRunning > 0
}

// client returns a client of this host's Docker.
func (l *loop) dockerClient() *dockerd.Client {
	socket := dockerd.Socket(l.docker.seen.given)
	if socket == dockerd.DefaultSocket {
		socket = l.opts.dockerSocket
	}
	return dockerd.NewClient(socket)
}

// lookAtDocker finds out what Docker is and has, if that is not known by now. A
// Docker that cannot be asked is no problem of ours: what it has in the kernel
// is looked at all the same.
func (l *loop) lookAtDocker(ctx context.Context) {
	s := &l.docker.seen
	if l.opts.dockerSocket == "" || s.at != 0 && l.clock.Uptime()-s.at < dockerLook {
		return
	}
	s.at = l.clock.Uptime()
	ctx, cancel := context.WithTimeout(ctx, dockerAnswer)
	defer cancel()
	s.process, s.rootless = dockerd.Process{}, 0
	if process, err := dockerd.Running(l.places.pidFile, l.places.proc); err == nil {
		s.given, s.process = process.Given, process
	}
	engine, err := dockerd.Engine{}, dockerd.ErrDown
	if !l.dockerAsleep(ctx) {
		engine, err = l.dockerClient().Ask(ctx)
	}
	if err != nil {
		if s.up || s.capabilities.Version == (dockerd.Version{}) {
			l.lookAtStopped(ctx)
		}
		s.up, s.engine, s.networks = false, dockerd.Engine{}, nil
		s.rootless = l.findRootless()
		if !errors.Is(err, dockerd.ErrDown) {
			l.log.Debug("docker cannot be asked", "error", err)
		}
		return
	}
	if !s.up || s.engine.Name != engine.Name {
		l.log.Info("docker found", "version", engine.Name, "api", engine.API, "firewall", dockerd.CapabilitiesOf(engine.Version, engine.Info).Firewall.String())
	}
	s.up, s.engine = true, engine
	s.capabilities = dockerd.CapabilitiesOf(engine.Version, engine.Info)
	if s.networks, err = l.dockerClient().Networks(ctx); err != nil {
		l.log.Debug("docker networks cannot be listed", "error", err)
	}
}

// dockerAsleep reports that systemd has Docker's socket, and Docker is not there to
// answer: whoever connects waits until it is, and has it started. At a boot it waits for
// us to be ready in turn.
func (l *loop) dockerAsleep(ctx context.Context) bool {
	if s := &l.docker.seen; s.up && s.process.PID != 0 {
		return false
	}
	unit, err := l.units.Outcome(ctx)
	return err == nil && unit.Loaded && unit.State != "active" && unit.State != "reloading"
}

// findRootless returns the process id of a dockerd that a user runs; 0: none.
func (l *loop) findRootless() int {
	files, err := filepath.Glob(l.places.rootless)
	if err != nil {
		return 0 // the pattern is our own
	}
	for _, file := range files {
		if process, err := dockerd.Running(file, l.places.proc); err == nil {
			return process.PID
		}
	}
	return 0
}

// lookAtStopped finds out what would start: the program's version, and the
// flags of its unit.
func (l *loop) lookAtStopped(ctx context.Context) {
	s := &l.docker.seen
	if binary, err := exec.LookPath("dockerd"); err == nil {
		if v, err := dockerd.BinaryVersion(ctx, binary); err == nil {
			s.capabilities.Version = v
		}
	}
	if unit, err := l.units.Unit(ctx); err == nil {
		s.given = unit.Flags()
	}
	// Which firewall it will use it cannot be asked now, but is told, or used before.
	var info dockerd.Info
	info.FirewallBackend.Driver = cmp.Or(l.dockerOption("firewall-backend"), s.capabilities.Firewall.String())
	s.capabilities = dockerd.CapabilitiesOf(s.capabilities.Version, info)
}

// dockerOption is an option of dockerd's, by its command line or else its file;
// empty: neither says.
func (l *loop) dockerOption(name string) string {
	for _, g := range l.docker.seen.given {
		if g.Name == name {
			return cmp.Or(g.Value, "true")
		}
	}
	text, err := daemonconfig.DockerConfig{Path: l.dockerFile()}.Get(name)
	if err != nil {
		return "" // whoever writes the file says what is wrong with it
	}
	return strings.Trim(text, `"`)
}

// dockerFile is the file that dockerd reads, as far as that is known: else ours.
func (l *loop) dockerFile() string {
	path, flag := dockerd.ConfigFile(l.docker.seen.given)
	if flag == nil && l.docker.seen.process.PID == 0 && l.opts.dockerConfig != "" {
		return l.opts.dockerConfig
	}
	return path
}

// knowsNetworkOpts reports whether Docker's file may say which MTU later
// networks get. Of a Docker whose version is not known, the file as it is knows.
func (l *loop) knowsNetworkOpts() bool {
	c := l.docker.seen.capabilities
	if c.Version != (dockerd.Version{}) {
		return c.NetworkOpts
	}
	return l.wroteKey("default-network-opts")
}

// wroteKey reports whether a key of Docker's file is ours by now.
func (l *loop) wroteKey(key string) bool {
	memory, err := daemonconfig.LoadMemory(l.memoryPath())
	if err != nil {
		return false
	}
	_, ok := memory.Keys[key]
	return ok && memory.Path == l.opts.dockerConfig
}

// bridgeState is docker0 as the kernel has it.
type bridgeState struct {
	link  kernel.Link
	addrs []netip.Prefix
}

// lookAtBridge returns docker0; nil: there is none.
func (l *loop) lookAtBridge(ctx context.Context) (*bridgeState, error) {
	link, err := l.host.LinkByName(ctx, dockerBridge)
	if errors.Is(err, kernel.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", dockerBridge, err)
	}
	list, err := l.host.Addrs(link.Index).List(ctx)
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", dockerBridge, err)
	}
	b := &bridgeState{link: link}
	for _, a := range list {
		b.addrs = append(b.addrs, a.Prefix)
	}
	return b, nil
}

// dockerDiffers says how docker0, if there is one, differs from what Docker was
// told.
func (l *loop) dockerDiffers(ctx context.Context) ([]string, error) {
	want := l.hostAddr()
	bridge, err := l.lookAtBridge(ctx)
	if err != nil || bridge == nil || !want.IsValid() {
		return nil, err
	}
	var differs []string
	if l.isMarkStale() {
		differs = append(differs, markStale)
	}
	if !slices.Contains(bridge.addrs, want) {
		differs = append(differs, fmt.Sprintf("%s has not %s, this host's subnet", dockerBridge, want))
	}
	if have := l.bridgeMTU(bridge); have != 0 && have != l.backend.MTU(l.uplink) {
		differs = append(differs, fmt.Sprintf("%s has mtu %d and not %d", dockerBridge, have, l.backend.MTU(l.uplink)))
	}
	if n := l.docker.seen.bridge(); n != nil {
		masquerade, known := n.Masquerade()
		// An options file always says it, daemon.json only with --ip-masq.
		said := l.opts.ipMasq || l.opts.dockerOptions != ""
		if known && said && masquerade == l.opts.ipMasq {
			differs = append(differs, map[bool]string{
				true:  "Docker masquerades what leaves the host's subnet, as we do",
				false: "Docker does not masquerade what leaves the host's subnet, and neither do we",
			}[masquerade])
		}
	}
	return differs, nil
}

// bridgeMTU is what Docker gives to containers on docker0; 0: not known. Docker
// says it. Of the device it can be told only with a container on it: before, older
// Dockers leave it as the kernel made it.
func (l *loop) bridgeMTU(b *bridgeState) int {
	if n := l.docker.seen.bridge(); n != nil {
		return n.MTU()
	}
	if b.link.Type == "bridge" && b.link.Running {
		return b.link.MTU
	}
	return 0
}

// showDocker puts Docker on the board.
func (l *loop) showDocker(ctx context.Context) {
	s := &l.docker.seen
	d := &status.Docker{Running: s.up, Network: l.opts.dockerNetwork}
	if s.up {
		d.Version, d.Firewall = s.engine.Name, s.capabilities.Firewall.String()
	} else if v := s.capabilities.Version; v != (dockerd.Version{}) {
		d.Version = v.String()
	}
	if b, err := l.lookAtBridge(ctx); err == nil && b != nil {
		d.Bridge, d.MTU = dockerBridge, l.bridgeMTU(b)
		for _, a := range b.addrs {
			if a.Addr().Is4() || l.lease.own.Subnet[subnet.IPv6].IsValid() {
				d.Addresses = append(d.Addresses, a.String())
			}
		}
	}
	if l.opts.dockerNetwork == "" {
		if differs, err := l.dockerDiffers(ctx); err == nil && len(differs) > 0 {
			d.Differs = differs
			var h *hintError
			if asHint(l.differsProblem(differs), &h) {
				d.Hint = h.hint
			}
		}
	}
	l.board.Update(func(st *status.Status) { st.Docker = d })
}
