package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
)

// runEtcd is an etcd of one member that serves until ctx ends.
func runEtcd(ctx context.Context, args []string, stderr io.Writer) error {
	fs := pflag.NewFlagSet(lab.EtcdCommand, pflag.ContinueOnError)
	fs.SetOutput(stderr)
	dir := fs.String("dir", "", "`folder` of the data")
	listen := fs.String("listen", "", "`URL` for clients")
	if err := fs.Parse(args); err != nil {
		return cli.Usagef("etcd: %w", err)
	}
	client, err := url.Parse(*listen)
	if err != nil || client.Host == "" || *dir == "" {
		return cli.Usagef("etcd: needs --dir and --listen URL")
	}
	cfg := embed.NewConfig()
	cfg.Dir = *dir
	cfg.LogLevel = "warn"
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	// One member has no peers: any free port of its namespace's loopback.
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	// A lab does not outlive the machine.
	cfg.UnsafeNoFsync = true
	server, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	defer server.Close()
	select {
	case <-ctx.Done():
		return nil
	case err := <-server.Err():
		return fmt.Errorf("serve etcd: %w", err)
	case <-server.Server.StopNotify():
		return errors.New("serve etcd: it stopped by itself")
	}
}
