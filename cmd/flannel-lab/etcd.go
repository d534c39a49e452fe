package main

import (
	"context"
	"io"

	"github.com/spf13/pflag"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
)

// runEtcd is an etcd of one member that serves until ctx ends. Its log goes to
// stderr.
func runEtcd(ctx context.Context, args []string, stderr io.Writer) error {
	var o etcdtest.Options
	fs := pflag.NewFlagSet(lab.EtcdCommand, pflag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.Dir, "dir", "", "`folder` of the data")
	fs.StringVar(&o.Listen, "listen", "", "`URL` for clients")
	if err := fs.Parse(args); err != nil {
		return cli.Usagef("etcd: %w", err)
	}
	if o.Dir == "" || o.Listen == "" || fs.NArg() > 0 {
		return cli.Usagef("etcd: takes --dir and --listen")
	}
	o.Log = stderr
	server, err := etcdtest.Start(ctx, o)
	if err != nil {
		return err
	}
	<-ctx.Done()
	return server.Close()
}
