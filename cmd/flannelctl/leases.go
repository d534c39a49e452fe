package main

import (
	"context"
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// concurrentTTLs bounds the requests for remaining times that are under way.
const concurrentTTLs = 32

// leaseRow is one lease as it is printed.
type leaseRow struct {
	Subnet   string `json:"subnet"`
	PublicIP string `json:"public_ip"`
	// Backend is empty for a reservation that nobody has taken up.
	Backend     string `json:"backend"`
	Owner       string `json:"owner,omitempty"`
	Reservation bool   `json:"reservation"`
	// RemainingSeconds is absent for reservations and where it is not known.
	RemainingSeconds *float64 `json:"remaining_seconds,omitempty"`
	Error            string   `json:"error,omitempty"`
}

func runLeases(ctx context.Context, inv *invocation) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	store, err := inv.openStore(ctx, readOnly)
	if err != nil {
		return err
	}
	defer store.Close()
	loadCtx, cancelLoad := context.WithTimeout(ctx, timeout)
	defer cancelLoad()
	world, err := store.Load(loadCtx)
	if err != nil {
		return err
	}
	rows := make([]leaseRow, len(world.Leases), len(world.Leases)+len(world.Bad))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(concurrentTTLs)
	for i, l := range world.Leases {
		rows[i] = newLeaseRow(l)
		if l.Reservation() {
			continue
		}
		group.Go(func() error {
			remaining, _, err := store.TTL(groupCtx, l.ID)
			if err != nil {
				rows[i].Error = err.Error()
				return nil // one lease's time is not worth the others'
			}
			seconds := remaining.Seconds()
			rows[i].RemainingSeconds = &seconds
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, bad := range world.Bad {
		rows = append(rows, leaseRow{Subnet: bad.Key, Error: bad.Err.Error()})
	}
	if inv.json {
		enc := json.NewEncoder(inv.out)
		enc.SetIndent("", "  ")
		return enc.Encode(rows)
	}
	return printLeases(inv, rows)
}

func newLeaseRow(l subnet.Lease) leaseRow {
	row := leaseRow{Subnet: l.Subnet.String(), Owner: string(l.Attrs.Owner), Backend: l.Attrs.BackendType, Reservation: l.Reservation()}
	// A process of ours leaves its name in a lease, and flannel makes an ordinary
	// lease of a reservation: this one nobody has taken up.
	untaken := l.Reservation() && l.Attrs.Instance == ""
	if row.Backend == "" && !untaken {
		row.Backend = "udp"
	}
	for _, addr := range l.Attrs.PublicIP {
		if addr.IsValid() {
			row.PublicIP = addr.String()
			break
		}
	}
	return row
}

func printLeases(inv *invocation, rows []leaseRow) error {
	w := tabwriter.NewWriter(inv.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SUBNET\tPUBLIC IP\tBACKEND\tREMAINING\tOWNER")
	for _, r := range rows {
		remaining := "?"
		switch {
		case r.Error != "":
			remaining = r.Error
		case r.Reservation:
			remaining = "reserved"
		case r.RemainingSeconds != nil:
			remaining = time.Duration(*r.RemainingSeconds * float64(time.Second)).Round(time.Second).String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.Subnet, orDash(r.PublicIP), orDash(r.Backend), remaining, orDash(r.Owner))
	}
	return w.Flush()
}
