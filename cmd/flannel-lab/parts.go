package main

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/spf13/pflag"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/parts"
)

// runParts makes tables of what `go test` prints, which it reads from in and shows to
// progress.
func runParts(ctx context.Context, args []string, in io.Reader, out, progress io.Writer) error {
	var o measurement
	if err := o.parse(newFlags("parts", out), args); err != nil {
		return err
	}
	if err := o.checkDocs(parts.CheckDocs); err != nil {
		return err
	}
	// What is read from is started by whoever reads from us, and runs already.
	on, err := machine.Describe()
	if err != nil {
		return err
	}
	r, err := parts.Read(in, progress)
	if err != nil {
		return err
	}
	r.Machine = on
	return errors.Join(o.tell(r, out), judge(r.Claims(), r.Machine, progress), context.Cause(ctx))
}

// calmCommand waits for a calm machine, where what is to be read is started behind it.
const calmCommand = "calm"

// runCalm is that command.
func runCalm(ctx context.Context, args []string, stderr io.Writer) error {
	var within time.Duration
	fs := pflag.NewFlagSet(calmCommand, pflag.ContinueOnError)
	fs.DurationVar(&within, "within", 0, "the longest `time` to wait")
	if err := parsePlain(fs, args, stderr); err != nil {
		return err
	}
	return machine.Calm(ctx, within, stderr)
}
