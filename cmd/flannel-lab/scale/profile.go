package scale

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page"
)

// Profile is where the CPU time of a start went, until the last route.
type Profile struct {
	Peers int
	// Samples are how many a part has, Kernel how many of them the kernel has.
	Samples map[part]int
	Kernel  map[part]int
}

// samplesPerSecond is odd, so that it does not go with any timer.
const samplesPerSecond = 4999

// perf is a run of perf(1), which samples every program of the machine while it is
// enabled: what starts a moment later cannot be named to it beforehand.
type perf struct {
	cmd  *exec.Cmd
	file string
	// control takes commands, acks tells that they are done.
	control, acks *os.File
	output        bytes.Buffer
}

// errNoPerf: there is no profile without that program.
var errNoPerf = errors.New("perf is not installed (Debian: linux-perf)")

// startPerf begins with sampling off.
func startPerf(ctx context.Context, folder string) (_ *perf, err error) {
	path, err := exec.LookPath("perf")
	if err != nil {
		return nil, errNoPerf
	}
	theirs, ours, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start perf: %w", err)
	}
	defer theirs.Close()
	said, says, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start perf: %w", err), ours.Close())
	}
	defer says.Close()
	p := &perf{file: filepath.Join(folder, "perf.data"), control: ours, acks: said}
	// Descriptors of ExtraFiles begin with 3.
	p.cmd = exec.CommandContext(ctx, path, "record", "--all-cpus", "--call-graph", "fp", "--freq", fmt.Sprint(samplesPerSecond),
		"--delay", "-1", "--control", "fd:3,4", "--output", p.file)
	p.cmd.ExtraFiles = []*os.File{theirs, says}
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start perf: %w", err), ours.Close(), said.Close())
	}
	return p, nil
}

// tell gives a command and waits until it is done.
func (p *perf) tell(command string) error {
	_, err := p.control.WriteString(command + "\n")
	if err == nil {
		_, err = p.acks.Read(make([]byte, 16)) // "ack"
	}
	if err != nil {
		return fmt.Errorf("perf: %s: %w", command, err)
	}
	return nil
}

// stop ends the sampling and returns the samples as text.
func (p *perf) stop(ctx context.Context) ([]byte, error) {
	err := errors.Join(p.tell("disable"), p.cmd.Process.Signal(os.Interrupt))
	// Its status is that of the signal.
	var signalled *exec.ExitError
	if ended := p.cmd.Wait(); ended != nil && !errors.As(ended, &signalled) {
		err = errors.Join(err, ended)
	}
	if err = errors.Join(err, p.control.Close(), p.acks.Close()); err != nil {
		return nil, fmt.Errorf("stop perf: %w: %s", err, strings.TrimSpace(p.output.String()))
	}
	var failed bytes.Buffer
	script := exec.CommandContext(ctx, p.cmd.Path, "script", "--input", p.file, "--fields", "comm,pid,ip")
	script.Stderr = &failed
	text, err := script.Output()
	if err != nil {
		return nil, fmt.Errorf("read samples: %w: %s", err, strings.TrimSpace(failed.String()))
	}
	return text, nil
}

// profileStart samples one start with all peers of p. It is none of those that are
// measured: samples cost time.
func profileStart(ctx context.Context, h *lab.Host, p *population) (_ *Profile, err error) {
	sampling, err := startPerf(ctx, h.Dir)
	if err != nil {
		return nil, err
	}
	if err := sampling.tell("enable"); err != nil {
		_, ended := sampling.stop(ctx)
		return nil, errors.Join(err, ended)
	}
	d, _, err := routed(ctx, h, p)
	text, ended := sampling.stop(ctx)
	if err = errors.Join(err, ended); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.stop(ctx)) }()
	symbols, err := readSymbols(h.Daemon.Spec.Path)
	if err != nil {
		return nil, err
	}
	profile := &Profile{Peers: p.count, Samples: map[part]int{}, Kernel: map[part]int{}}
	for sample := range readSamples(text) {
		if sample.pid == h.Daemon.PID() || sample.ofFirewall() {
			profile.add(sample, symbols)
		}
	}
	if len(profile.Samples) == 0 {
		return nil, errors.New("perf has no sample of the daemon")
	}
	return profile, nil
}

// add counts a sample.
func (p *Profile) add(s sample, symbols *symbols) {
	in := partPrograms
	if !s.ofFirewall() {
		in = partOf(symbols.frames(s.stack))
	}
	p.Samples[in]++
	if len(s.stack) > 0 && ofKernel(s.stack[0]) {
		p.Kernel[in]++
	}
}

// profileSection is where the table of a profile goes.
func profileSection() page.Section { return page.Section{Page: "scale.md", Name: "profile of a start"} }

// markdown is the table of a profile, the largest part first.
func (p *Profile) markdown() string {
	all := 0
	for _, n := range p.Samples {
		all += n
	}
	parts := Parts()
	slices.SortStableFunc(parts, func(a, b part) int { return p.Samples[b] - p.Samples[a] })
	percent := func(n int) string { return page.Number(100 * float64(n) / float64(all)) }
	var b strings.Builder
	fmt.Fprintf(&b, "| start with %d peers, of its CPU time until the last route | %% | of that in the kernel, %% |\n|---|---|---|\n", p.Peers)
	for _, in := range parts {
		if n := p.Samples[in]; n > 0 {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", in, percent(n), page.Number(100*float64(p.Kernel[in])/float64(n)))
		}
	}
	fmt.Fprintf(&b, "\n%d samples, %d a second of each core.\n", all, samplesPerSecond)
	return b.String()
}
