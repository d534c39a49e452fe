package main

import (
	"context"
	"io"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/server/v3/storage/wal"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore/etcdtest"
)

// logSegment is what etcd allocates for each piece of its log, in bytes. Its own
// 64 MB, twice per member, would be most of what a backup copies.
const logSegment = 4 << 20

// runEtcd is one member of an etcd that serves until ctx ends. Its log goes to
// stderr.
func runEtcd(ctx context.Context, args []string, stderr io.Writer) error {
	var o etcdtest.Options
	fs := pflag.NewFlagSet(lab.EtcdCommand, pflag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.Dir, "dir", "", "`folder` of the data")
	fs.StringVar(&o.Listen, "listen", "", "`URL` for clients")
	fs.StringVar(&o.Name, "name", "", "`name` of the member")
	fs.StringVar(&o.Peer, "peer", "", "`URL` for other members")
	fs.StringVar(&o.Cluster, "cluster", "", "all `members`: NAME=URL,...")
	fs.DurationVar(&o.Heartbeat, "heartbeat", 0, "`interval` of heartbeats")
	fs.Int64Var(&o.QuotaBytes, "quota", 0, "`bytes` of the database that raise NOSPACE")
	if err := fs.Parse(args); err != nil {
		return cli.Usagef("etcd: %w", err)
	}
	if o.Dir == "" || o.Listen == "" || fs.NArg() > 0 {
		return cli.Usagef("etcd: needs --dir and --listen, and takes flags only")
	}
	o.Log = stderr
	wal.SegmentSizeBytes = logSegment
	server, err := etcdtest.Start(ctx, o)
	if err != nil {
		return err
	}
	<-ctx.Done()
	return server.Close()
}
