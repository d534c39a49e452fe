package hosts

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"
)

// variant is where a host's firewall is.
type variant struct {
	name string
	// iptables is the alternative that the name iptables stands for, for dockerd
	// too.
	iptables string
	// native: the network config has EnableNFTables.
	native bool
}

func variants() []variant {
	return []variant{
		{name: "iptables-nft", iptables: "iptables-nft"},
		{name: "iptables-legacy", iptables: "iptables-legacy"},
		{name: "nftables", iptables: "iptables-nft", native: true},
	}
}

// setup is one line of the matrix: two machines, for all of its cells.
type setup struct {
	recipe  recipe
	walk    walk
	variant variant
}

func (s setup) String() string { return s.recipe.suite + "/" + s.walk.name + "/" + s.variant.name }

// config is the network config.
func (s setup) config() string {
	if s.variant.native {
		return strings.Replace(s.walk.config, "{", `{"EnableNFTables":true,`, 1)
	}
	return s.walk.config
}

// setups has every setup, or the slice of it that `make test` has time for:
// every version, backend and variant once.
func setups() []setup {
	versions, backends, firewalls := []recipe{bookworm(), trixie(), forky()}, walks(), variants()
	if !whole() {
		return []setup{
			{versions[0], backends[2], firewalls[1]},
			{versions[1], backends[0], firewalls[0]},
			{versions[2], backends[1], firewalls[2]},
		}
	}
	var all []setup
	for _, version := range versions {
		for _, backend := range backends {
			for _, firewall := range firewalls {
				all = append(all, setup{version, backend, firewall})
			}
		}
	}
	return all
}

// errNotThere is why a setup cannot have a cell.
type errNotThere string

func (e errNotThere) Error() string { return string(e) }

// TestMatrix runs every cell on every setup, and prints the table.
func TestMatrix(t *testing.T) {
	table := &table{cells: map[string]string{}}
	all := setups()
	t.Run("setups", func(t *testing.T) {
		for _, set := range all {
			t.Run(set.String(), func(t *testing.T) {
				t.Parallel()
				runSetup(t, set, table)
			})
		}
	})
	if err := table.publish(t, all); err != nil {
		t.Error(err)
	}
}

func runSetup(t *testing.T, set setup, table *table) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	s := newOverlay(ctx, t, set)
	table.put(set, "docker", s.version)
	for _, c := range cells() {
		t.Run(c.name, func(t *testing.T) {
			note, err := c.run(ctx, s)
			var notThere errNotThere
			switch {
			case errors.As(err, &notThere):
				table.put(set, c.name, "n/a: "+err.Error())
			case err != nil:
				table.put(set, c.name, "FAIL")
				t.Error(err)
			default:
				table.put(set, c.name, strings.TrimSpace("ok "+note))
			}
		})
	}
}

// table is what came of all cells.
type table struct {
	mu    sync.Mutex
	cells map[string]string
}

func (b *table) put(set setup, cell, result string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cells[set.String()+"/"+cell] = result
}

// get returns a result; a cell that was not come to has failed.
func (b *table) get(set setup, cell string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if result, ok := b.cells[set.String()+"/"+cell]; ok {
		return result
	}
	return "FAIL: not come to"
}

// publish publishes the table.
func (b *table) publish(t *testing.T, all []setup) error {
	var text bytes.Buffer
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "docker\tbackend\tfirewall")
	for _, c := range cells() {
		fmt.Fprint(w, "\t", c.name)
	}
	fmt.Fprintln(w)
	for _, set := range all {
		fmt.Fprintf(w, "%s\t%s\t%s", b.get(set, "docker"), set.walk.name, set.variant.name)
		for _, c := range cells() {
			fmt.Fprint(w, "\t", b.get(set, c.name))
		}
		fmt.Fprintln(w)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return publish(t, "real machines", text.String())
}

// publish logs a table, and adds it to the file $FLANNEL_TEST_MATRIX.
func publish(t *testing.T, title, table string) (err error) {
	t.Logf("%s:\n%s", title, table)
	path := os.Getenv("FLANNEL_TEST_MATRIX")
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = fmt.Fprintf(f, "%s:\n%s\n", title, table)
	return err
}
