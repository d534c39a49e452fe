package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
)

// aliveFor is how old the loop's last round may be for /healthz: rounds are at
// most resyncEvery apart, and one may hang on a slow kernel or etcd.
const aliveFor = 90 * time.Second

// health answers for the process; it reads the board only.
type health struct {
	board *status.Board
	// beat is the uptime at which the loop last finished a round, now the present one.
	beat, now func() time.Duration
}

func (h health) alive() error {
	if age := h.now() - h.beat(); age > aliveFor {
		return fmt.Errorf("the loop has not finished a round for %s", age.Round(time.Second))
	}
	return nil
}

// mux serves /healthz and /readyz. Both say why not, in one line each.
func (h health) mux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if err := h.alive(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		s := h.board.Snapshot()
		if s.Ready {
			fmt.Fprintln(w, "ok")
			if s.Docker != nil && len(s.Docker.Differs) > 0 {
				fmt.Fprintf(w, "%s: %s\n", status.ComponentDocker, strings.Join(s.Docker.Differs, "; "))
			}
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintf(w, "%s\n", s.State)
		for _, p := range s.Problems {
			fmt.Fprintf(w, "%s: %s\n", p.Component, strings.ReplaceAll(p.Message, "\n", "; "))
		}
	})
	return mux
}

// statusMux serves the whole status as JSON, for flannelctl.
func (h health) statusMux() *http.ServeMux {
	mux := h.mux()
	mux.HandleFunc("GET "+status.Path, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		// A client that went away is nobody to report to.
		_ = json.NewEncoder(w).Encode(h.board.Snapshot())
	})
	return mux
}

// listeners are what the daemon serves on.
type listeners struct {
	socket, healthz, metrics net.Listener
}

// listen opens everything that opts ask for, or nothing.
func listen(opts options) (ls listeners, err error) {
	defer func() {
		if err != nil {
			ls.close()
		}
	}()
	if ls.socket, err = listenUnix(opts.socket); err != nil {
		return ls, err
	}
	if opts.healthz != "" {
		if ls.healthz, err = net.Listen("tcp", opts.healthz); err != nil {
			return ls, fmt.Errorf("--healthz-ip, --healthz-port: %w", err)
		}
	}
	if opts.metricsListen != "" {
		if ls.metrics, err = net.Listen("tcp", opts.metricsListen); err != nil {
			return ls, fmt.Errorf("--metrics-listen: %w", err)
		}
	}
	return ls, nil
}

func (ls listeners) close() {
	for _, l := range []net.Listener{ls.socket, ls.healthz, ls.metrics} {
		if l != nil {
			l.Close()
		}
	}
}

// listenUnix opens the status socket for root only. A socket that nobody
// answers on is a dead daemon's and is replaced; one that answers belongs to a
// daemon that runs.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("--socket: %w", err)
	}
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("--socket: %s: another flanneld-go answers there: stop it first, since it holds this host's lease", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("--socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("--socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("--socket: %w", err)
	}
	return l, nil
}

// serve answers on all listeners until ctx ends.
func (ls listeners) serve(ctx context.Context, h health, registry *prometheus.Registry) error {
	metrics := http.NewServeMux()
	metrics.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	group, ctx := errgroup.WithContext(ctx)
	for _, s := range []struct {
		listener net.Listener
		handler  http.Handler
	}{{ls.socket, h.statusMux()}, {ls.healthz, h.mux()}, {ls.metrics, metrics}} {
		if s.listener == nil {
			continue
		}
		server := &http.Server{Handler: s.handler, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute}
		group.Go(func() error {
			if err := server.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve %s: %w", s.listener.Addr(), err)
			}
			return nil
		})
		group.Go(func() error {
			<-ctx.Done()
			return server.Close()
		})
	}
	return group.Wait()
}
