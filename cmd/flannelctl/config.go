package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/flanneld-go/flanneld-go/cmd/internal/catalog"
	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore"
)

func runConfigGet(ctx context.Context, inv *invocation) error {
	return inv.inWorld(ctx, readOnly, func(_ context.Context, _ *etcdstore.Store, world subnet.World) error {
		if world.Config.Modified == 0 {
			return errNoConfig
		}
		fmt.Fprintln(inv.out, strings.TrimRight(world.Config.Text, "\n"))
		return nil
	})
}

var errNoConfig = errors.New(`there is no network config yet: flannelctl config set '{"Network":"10.5.0.0/16"}'`)

func runConfigValidate(_ context.Context, inv *invocation) error {
	_, err := inv.readConfig()
	if err == nil {
		fmt.Fprintln(inv.out, "valid")
	}
	return err
}

func runConfigSet(ctx context.Context, inv *invocation) error {
	text, err := inv.readConfig()
	if err != nil {
		return err
	}
	return inv.inWorld(ctx, readWrite, func(ctx context.Context, store *etcdstore.Store, world subnet.World) error {
		if world.Config.Text == text {
			fmt.Fprintln(inv.out, "unchanged")
			return nil
		}
		doc, err := store.PutConfig(ctx, text, world)
		if errors.Is(err, subnet.ErrConfigChanged) {
			return fmt.Errorf("somebody else changed the config meanwhile, nothing was put: look at it (flannelctl config get) and set yours again: %w", err)
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(inv.out, "put at revision %d\n", doc.Modified)
		if len(world.Leases) > 0 && world.Config.Modified != 0 {
			fmt.Fprintf(inv.out, "hosts with leases: %d; a change of Network, SubnetLen or Backend takes effect on each at its restart\n", len(world.Leases))
		}
		return nil
	})
}

// readConfig reads the argument: JSON itself, a file, or standard input. An
// unknown key is an error here: whoever types it can still correct it.
func (inv *invocation) readConfig() (string, error) {
	arg := inv.args[0]
	var data []byte
	var err error
	switch {
	case strings.HasPrefix(strings.TrimSpace(arg), "{"):
		data = []byte(arg)
	case arg == "-":
		data, err = io.ReadAll(inv.in)
	default:
		data, err = os.ReadFile(arg)
	}
	if err != nil {
		return "", fmt.Errorf("read config: %w", err)
	}
	text := string(data)
	cfg, err := catalog.Parse(text)
	if err != nil {
		return "", cli.Usagef("invalid network config:\n%w", err)
	}
	if len(cfg.Unknown) > 0 {
		return "", cli.Usagef("invalid network config: unknown keys: %s", strings.Join(cfg.Unknown, ", "))
	}
	return text, nil
}
