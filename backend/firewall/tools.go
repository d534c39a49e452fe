package firewall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-iptables/iptables"

	"github.com/flanneld-go/flanneld-go/backend/firewall/native"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// ErrNoTools: there is no iptables (or ip6tables) on this host.
var ErrNoTools = errors.New("iptables is not installed")

// Tools is the door to the firewall: what can be done with the programs of one
// variant. Exec is the real one.
type Tools interface {
	// Variants lists what is installed for a family, what the plain name
	// means first; ErrNoTools when that is nothing.
	Variants(ctx context.Context, f subnet.Family) ([]Variant, error)
	// Save returns all tables in the form of iptables-save. It changes
	// nothing.
	Save(ctx context.Context, v Variant) (string, error)
	// Stamp says which rules Save would return, without running a program:
	// stamps of a variant are equal only if the rules were the same. Those
	// that are saved after a stamp was taken are that old or newer.
	Stamp(ctx context.Context, v Variant) (Stamp, error)
	// Restore does the lines of one table, in the form of iptables-restore
	// with --noflush, all or nothing.
	Restore(ctx context.Context, v Variant, script string) error
	// RemoveTable deletes a table of the nf_tables variant together with
	// its chains if all of them are built in and empty; one that is not
	// empty stays, which is no failure.
	RemoveTable(ctx context.Context, v Variant, table string) error
	// HasChain reports whether a chain of the nf_tables variant exists. Those
	// that are built in do from their first use on.
	HasChain(ctx context.Context, v Variant, table, chain string) (bool, error)
	// RemoveChain deletes a chain of the nf_tables variant that is empty; one
	// that is not stays, which is no failure.
	RemoveChain(ctx context.Context, v Variant, table, chain string) error
	// Changes yields a value after tables of any variant or family have been
	// changed by anybody, until ctx ends; the channel is closed then. Several
	// changes may be one value. An error says what is not told; the channel
	// is good all the same.
	Changes(ctx context.Context) (<-chan struct{}, error)
}

// Variant is one implementation of iptables for one family.
type Variant struct {
	Family subnet.Family
	// Command is the program's name: "iptables-nft", "ip6tables-legacy",
	// or the plain name where there is only one.
	Command string
	// NFT: tables live in nf_tables, where they can be removed.
	NFT bool
	// RandomFully: --random-fully is known. Since the same version restore
	// knows --wait.
	RandomFully bool
}

// Stamp stands for all rules of a variant. It is not zero.
type Stamp struct {
	// Generation is that of nf_tables.
	Generation native.Generation
	// Tables say what there is in the legacy variant.
	Tables string
}

// lockWait is how many seconds a program waits for the lock of the legacy
// variant, which Docker and others take too.
const lockWait = "5"

// Exec runs the programs found in PATH, in the network namespace of the calling
// thread. Its zero value is ready.
type Exec struct {
	// Instance is whose table of nf_tables Changes tells of, beside those of iptables.
	Instance kernel.Instance
	// LookPath finds a program; nil: exec.LookPath.
	LookPath func(name string) (string, error)

	mu sync.Mutex
	// probed is what was found out about a family.
	probed subnet.ByFamily[probe]
	// seed is of all hashes of legacy tables; zero before the first.
	seed maphash.Seed
	// wrote counts what was written to legacy tables, once it is there: see poller.run.
	wrote atomic.Uint64
}

// probe is what is known of a family's programs, as long as the plain name leads
// to the same file.
type probe struct {
	means    string
	variants []Variant
}

// Variants asks the programs only once, and again when the plain name has been
// pointed elsewhere (update-alternatives).
func (e *Exec) Variants(ctx context.Context, f subnet.Family) ([]Variant, error) {
	plain := "iptables"
	if f == subnet.IPv6 {
		plain = "ip6tables"
	}
	means := e.resolve(plain)
	e.mu.Lock()
	defer e.mu.Unlock()
	if p := e.probed[f]; len(p.variants) > 0 && p.means == means {
		return p.variants, nil
	}
	variants, err := e.probe(ctx, f, plain, means)
	if err != nil {
		return nil, err
	}
	e.probed[f] = probe{means, variants}
	return variants, nil
}

// probe asks every program there is for its version.
func (e *Exec) probe(ctx context.Context, f subnet.Family, plain, means string) ([]Variant, error) {
	var first Variant
	if means != "" {
		v, err := e.version(ctx, f, plain)
		if err != nil {
			return nil, err
		}
		first = v
	}
	var out []Variant
	for _, name := range []string{plain + "-nft", plain + "-legacy"} {
		if e.resolve(name) == "" {
			continue
		}
		v, err := e.version(ctx, f, name)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	switch {
	case len(out) == 0 && means == "":
		return nil, fmt.Errorf("%w: no %s in PATH", ErrNoTools, plain)
	case len(out) == 0:
		// Before version 1.8, and where only one variant is packaged.
		return []Variant{first}, nil
	case means != "" && out[0].NFT != first.NFT:
		slices.Reverse(out)
	}
	return out, nil
}

// version asks one program what it is.
func (e *Exec) version(ctx context.Context, f subnet.Family, name string) (Variant, error) {
	path, err := e.lookPath(name)
	if err != nil {
		return Variant{}, fmt.Errorf("%w: %w", ErrNoTools, err)
	}
	proto := iptables.ProtocolIPv4
	if f == subnet.IPv6 {
		proto = iptables.ProtocolIPv6
	}
	ipt, err := iptables.New(iptables.IPFamily(proto), iptables.Path(path))
	if err != nil {
		return Variant{}, fmt.Errorf("ask %s for its version: %w", path, err)
	}
	text, err := e.run(ctx, "", name, "--version")
	if err != nil {
		return Variant{}, err
	}
	return Variant{
		Family: f, Command: name,
		NFT:         strings.Contains(text, "(nf_tables)"),
		RandomFully: ipt.HasRandomFully(),
	}, nil
}

// Save runs iptables-save for all tables in use; it loads none.
func (e *Exec) Save(ctx context.Context, v Variant) (string, error) {
	return e.run(ctx, "", v.Command+"-save")
}

// Restore runs iptables-restore --noflush.
func (e *Exec) Restore(ctx context.Context, v Variant, script string) error {
	args := []string{"--noflush"}
	if v.RandomFully {
		args = append(args, "-w", lockWait)
	}
	_, err := e.run(ctx, script, v.Command+"-restore", args...)
	if !v.NFT {
		e.wrote.Add(1)
	}
	return err
}

// resolve returns the file that a name in PATH leads to, or nothing.
func (e *Exec) resolve(name string) string {
	path, err := e.lookPath(name)
	if err != nil {
		return ""
	}
	file, err := filepath.EvalSymlinks(path)
	if err != nil {
		return path
	}
	return file
}

func (e *Exec) lookPath(name string) (string, error) {
	if e.LookPath != nil {
		return e.LookPath(name)
	}
	return exec.LookPath(name)
}

// run returns what a program prints. An error has what it complained of.
func (e *Exec) run(ctx context.Context, stdin, name string, args ...string) (string, error) {
	path, err := e.lookPath(name)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoTools, err)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdin = strings.NewReader(stdin)
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("run %s: %w: %s", name, err, strings.Join(strings.Fields(stderr.String()), " "))
	}
	return stdout.String(), nil
}
