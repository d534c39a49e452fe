package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page"
	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
)

// The forms of what a measurement found.
var outputs = []string{"table", "json"}

// mostSeconds and mostRounds keep a slip of the finger from lasting for days.
const mostSeconds, mostRounds = 600, 1000

// mostCalm is the longest wait for a calm machine.
const mostCalm = time.Hour

// measurement has the flags of every command that makes a lab, measures on it and
// tells what it found.
type measurement struct {
	self    string
	daemon  string
	name    string
	replace bool
	output  string
	docs    string
	calm    time.Duration
}

// report is what a measurement found.
type report interface {
	Markdown(out io.Writer) error
	JSON(out io.Writer) error
	// WriteDocs writes it into its section of the pages of a folder.
	WriteDocs(folder string) error
}

// parse adds the flags to those of a command, and reads and checks them.
func (m *measurement) parse(fs *pflag.FlagSet, args []string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own executable: %w", err)
	}
	m.self = self
	fs.StringVar(&m.output, "output", outputs[0], "`form`: "+strings.Join(outputs, ", "))
	fs.StringVar(&m.docs, "docs", "", "write what was found into the pages of this `folder`, too")
	fs.DurationVar(&m.calm, "calm", 0, "wait for at most this `time` until the machine is not busy")
	addLabFlags(fs, self, &m.daemon, &m.name, &m.replace)
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	if m.calm < 0 || m.calm > mostCalm {
		return cli.Usagef("--calm: %s: must be between 0 and %s", m.calm, mostCalm)
	}
	if !slices.Contains(outputs, m.output) {
		return cli.Usagef("--output: %q: must be one of %s", m.output, strings.Join(outputs, ", "))
	}
	return nil
}

// checkDocs says before a long run whether it can be written down: find is that of the
// report's section.
func (m *measurement) checkDocs(find func(folder string) error) error {
	if m.docs == "" {
		return nil
	}
	if err := find(m.docs); err != nil {
		return fmt.Errorf("--docs: %w", err)
	}
	return nil
}

// checkLab says before a long run whether a lab can be made. Hint is what to try
// without the right to.
func (m *measurement) checkLab(command, hint string) error {
	if err := lab.CheckRoot(); err != nil {
		return fmt.Errorf("%s %w (try: %s)", command, err, hint)
	}
	if err := lab.CheckBinary(m.daemon); err != nil {
		return fmt.Errorf("--daemon: %w (try: make build)", err)
	}
	return nil
}

// onLab makes a lab, measures on it and removes it.
func (m *measurement) onLab(ctx context.Context, hosts int, measure func(*lab.Lab) error) (err error) {
	l, err := openLab(ctx, lab.Options{Name: m.name, Hosts: hosts, Replace: m.replace, Daemon: m.daemon, Self: m.self})
	if err != nil {
		return err
	}
	defer func() { err = closeLab(ctx, l, err) }()
	return measure(l)
}

// tell writes down and shows what was found.
func (m *measurement) tell(r report, out io.Writer) error {
	if m.docs != "" {
		if err := r.WriteDocs(m.docs); err != nil {
			return err
		}
	}
	if m.output == "json" {
		return r.JSON(out)
	}
	return r.Markdown(out)
}

// judge says behind what was told which claims were missed: an error with a line for
// each, and the command ends with status 1. What is about time and was missed on a machine
// that was busy before proves nothing; it is said, and no error.
func judge(claims []page.Claim, on machine.Description, progress io.Writer) error {
	excused, missed := page.Missed(claims, on.Busy())
	for _, line := range excused {
		fmt.Fprintf(progress, "flannel-lab: %s, on a machine that was busy, which proves nothing: %s\n", page.ErrMissed, line)
	}
	return missed
}

// newFlags makes the flag set of a command for people. Help goes to out.
func newFlags(command string, out io.Writer) *pflag.FlagSet {
	fs := pflag.NewFlagSet(command, pflag.ContinueOnError)
	fs.SortFlags = false
	fs.SetOutput(out)
	fs.Usage = func() {
		fmt.Fprintf(out, "usage: flannel-lab %s [FLAGS]\n\n%s", command, fs.FlagUsagesWrapped(100))
	}
	return fs
}

// addLabFlags adds those of every command that makes a lab, which is named after it.
func addLabFlags(fs *pflag.FlagSet, self string, daemon, name *string, replace *bool) {
	fs.StringVar(daemon, "daemon", filepath.Join(filepath.Dir(self), "flanneld-go"), "`path` of the daemon")
	fs.StringVar(name, "name", fs.Name(), "`name` that everything of the lab begins with")
	fs.BoolVar(replace, "replace", false, "remove what a killed lab of that name left")
}

// parseFlags reads the flags of a command for people.
func parseFlags(fs *pflag.FlagSet, args []string) error {
	if err := fs.Parse(args); errors.Is(err, pflag.ErrHelp) {
		return cli.ErrHelp
	} else if err != nil {
		return cli.Usagef("%w (see flannel-lab %s --help)", err, fs.Name())
	}
	return flagsOnly(fs)
}

// flagsOnly returns a usage error for an argument that is no flag.
func flagsOnly(fs *pflag.FlagSet) error {
	if fs.NArg() > 0 {
		return cli.Usagef("%s: %q: takes flags only", fs.Name(), fs.Arg(0))
	}
	return nil
}
