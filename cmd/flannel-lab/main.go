package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
)

func main() {
	// Further signals do not cut the cleaning up short.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	var usage *cli.UsageError
	switch {
	case err == nil, errors.Is(err, cli.ErrHelp):
		return
	case errors.As(err, &usage):
		fmt.Fprintln(os.Stderr, "flannel-lab:", err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "flannel-lab:", err)
		os.Exit(1)
	}
}
