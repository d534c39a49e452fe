package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
	"github.com/flanneld-go/flanneld-go/cmd/internal/version"
)

// The exit codes, which scripts and the unit file rely on.
const (
	exitOK    = 0
	exitFatal = 1
	exitUsage = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], cli.EnvOf(os.Environ()), os.Stdout, os.Stderr)
	stop()
	os.Exit(exitCode(err, os.Stderr))
}

// run is the whole program but for signals and the exit code.
func run(ctx context.Context, args []string, env cli.Env, stdout, stderr io.Writer) error {
	opts, err := parseOptions(args, env, stdout)
	if err != nil {
		return err
	}
	if opts.version {
		fmt.Fprintln(stdout, version.Line("flanneld-go"))
		return nil
	}
	paceGC(env)
	d, err := newDaemon(opts, newLogger(opts, stderr))
	if err != nil {
		return err
	}
	if opts.check {
		return d.check(ctx, stdout)
	}
	return d.run(ctx)
}

// exitCode prints what the operator must know of err.
func exitCode(err error, stderr io.Writer) int {
	var usage *cli.UsageError
	switch {
	case err == nil, errors.Is(err, cli.ErrHelp):
		return exitOK
	case errors.As(err, &usage):
		fmt.Fprintln(stderr, "flanneld-go:", err)
		return exitUsage
	default:
		fmt.Fprintln(stderr, "flanneld-go:", err)
		return exitFatal
	}
}
