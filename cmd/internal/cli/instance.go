package cli

import (
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
)

// Instance is --instance: which of the daemons of this host is meant.
type Instance struct {
	kernel.Instance
	number int
}

// Register adds the flag.
func (i *Instance) Register(fs *pflag.FlagSet) {
	fs.IntVar(&i.number, "instance", 0, "`number` of the daemon on this host, 0 to 9, where it is in several networks: each has its own device, routes, rules and files")
}

// Take checks the number, after Parse. Flags that name a path and were not given have
// the instance's own then.
func (i *Instance) Take(fs *pflag.FlagSet, paths ...string) error {
	if i.number < 0 || i.number > int(kernel.MostInstance) {
		return Usagef("--instance: %d: must be between 0 and %d", i.number, kernel.MostInstance)
	}
	i.Instance = kernel.Instance(i.number) //nolint:gosec // within its bounds
	for _, name := range paths {
		f := fs.Lookup(name)
		if f.Changed {
			continue
		}
		if err := f.Value.Set(i.path(f.DefValue)); err != nil {
			return Usagef("--%s: %w", name, err)
		}
	}
	return nil
}

// path is the instance's own path, from that of the first: the number stands at the end
// of the name, before its suffix.
func (i *Instance) path(first string) string {
	suffix := filepath.Ext(first)
	return strings.TrimSuffix(first, suffix) + i.Suffix() + suffix
}

// Unit is the name of its unit in systemd.
func (i *Instance) Unit() string {
	if i.Instance == 0 {
		return "flanneld-go"
	}
	return "flanneld-go@" + i.Suffix()
}

// Cleanup is what removes all that it left on this host.
func (i *Instance) Cleanup() string {
	if i.Instance == 0 {
		return "flannelctl cleanup"
	}
	return "flannelctl cleanup --instance=" + i.Suffix()
}
