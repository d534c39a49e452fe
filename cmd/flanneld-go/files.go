package main

import (
	"context"

	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/daemonconfig"
)

// fileState is what was told to others.
type fileState struct {
	// stale: the files are those of another subnet, which this host had.
	stale bool
}

// env is the content of subnet.env.
func (l *loop) env() daemonconfig.Env {
	e := daemonconfig.Env{Subnets: l.lease.own.Subnet, MTU: l.backend.MTU(l.uplink), IPMasq: l.opts.ipMasq}
	for f, r := range l.config.current.Ranges {
		e.Networks[f] = r.Network
	}
	return e
}

// writeFiles keeps subnet.env. It runs after the first whole Apply, so that the
// file says that the data path works.
func (l *loop) writeFiles(context.Context) error {
	e := l.env()
	changed, err := daemonconfig.Write(l.opts.subnetFile, e.Format(), daemonconfig.WriteOptions{DirPerm: 0o755})
	l.setFile(l.opts.subnetFile, fileWritten, err)
	if changed {
		l.log.Info("subnet file written", "path", l.opts.subnetFile, "subnet", l.lease.own.Subnet, "mtu", e.MTU, "ip_masq", e.IPMasq)
	}
	return err
}

// What becomes of a file when that succeeds.
const (
	fileWritten   = "written"
	fileWithdrawn = "withdrawn"
)

// setFile puts a file's state on the board.
func (l *loop) setFile(path, state string, err error) {
	file := status.File{Path: path, State: state}
	if err != nil {
		file.State, file.Error = "failed", err.Error()
	}
	l.board.Update(func(s *status.Status) {
		files := make([]status.File, 0, len(s.Files)+1)
		for _, f := range s.Files {
			if f.Path != path {
				files = append(files, f)
			}
		}
		s.Files = append(files, file)
	})
}
