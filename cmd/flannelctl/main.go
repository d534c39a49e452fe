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
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, streams{os.Stdin, os.Stdout, os.Stderr}, os.Args[1:], cli.EnvOf(os.Environ()))
	stop()
	var usage *cli.UsageError
	switch {
	case err == nil, errors.Is(err, cli.ErrHelp):
		return
	case errors.As(err, &usage):
		fmt.Fprintln(os.Stderr, "flannelctl:", err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "flannelctl:", err)
		os.Exit(1)
	}
}
