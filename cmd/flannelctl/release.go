package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore"
)

func releaseFlags(inv *invocation, fs *pflag.FlagSet) {
	etcdFlags(inv, fs)
	fs.BoolVar(&inv.yes, "yes", false, "release it although it is a host's lease, or cannot be read")
}

// runRelease deletes the key of a subnet, if it is still what was read.
func runRelease(ctx context.Context, inv *invocation) error {
	return inv.inWorld(ctx, readWrite, func(ctx context.Context, store *etcdstore.Store, world subnet.World) error {
		key := inv.args[0]
		want, err := parseSubnet(key)
		if err == nil {
			key = want.Key()
		}
		// What cannot be read may have a name that is no subnet.
		if i := slices.IndexFunc(world.Bad, func(b subnet.BadKey) bool { return b.Key == key }); i >= 0 {
			return inv.releaseBad(ctx, store, world.Bad[i])
		}
		if err != nil {
			return err
		}
		i := slices.IndexFunc(world.Leases, func(l subnet.Lease) bool { return l.Subnet == want })
		if i < 0 {
			return notLeased(want, world)
		}
		return inv.releaseLease(ctx, store, world.Leases[i])
	})
}

func (inv *invocation) releaseLease(ctx context.Context, store *etcdstore.Store, l subnet.Lease) error {
	who := describe(l.Attrs)
	if !l.Reservation() && !inv.yes {
		return cli.Usagef("%s is leased by %s%s: a host that runs would have it again within a second; if that host is gone for good, --yes frees the subnet now",
			l.Subnet, who, remaining(ctx, store, l.ID))
	}
	if err := store.Release(ctx, l); err != nil {
		return overtaken(err)
	}
	if l.Reservation() {
		fmt.Fprintf(inv.out, "released %s, which was reserved for %s; if that host runs with it, it has it as an ordinary lease again within a second\n", l.Subnet, who)
		return nil
	}
	fmt.Fprintf(inv.out, "released %s of %s; if that host runs, it has it again within a second\n", l.Subnet, who)
	return nil
}

func (inv *invocation) releaseBad(ctx context.Context, store *etcdstore.Store, b subnet.BadKey) error {
	if !inv.yes {
		return cli.Usagef("key %s cannot be read, so nobody can say whose it is (%w): --yes deletes it", b.Key, b.Err)
	}
	if err := store.RemoveBad(ctx, b); err != nil {
		return overtaken(err)
	}
	fmt.Fprintf(inv.out, "released key %s, which could not be read: %v\n", b.Key, b.Err)
	return nil
}

// remaining says how long a lease will live; what cannot be found out is left
// out.
func remaining(ctx context.Context, store *etcdstore.Store, id subnet.LeaseID) string {
	left, _, err := store.TTL(ctx, id)
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" for %s more unless it is renewed", left.Round(time.Second))
}

// notLeased says what there is in place of want.
func notLeased(want subnet.Subnet, world subnet.World) error {
	var near []string
	for _, l := range world.Leases {
		if l.Subnet.Overlaps(want) {
			near = append(near, fmt.Sprintf("%s of %s", l.Subnet, describe(l.Attrs)))
		}
	}
	for _, b := range world.Bad {
		if b.Occupies.Overlaps(want) {
			near = append(near, fmt.Sprintf("%s, which cannot be read", b.Key))
		}
	}
	if len(near) > 0 {
		return fmt.Errorf("%s is neither leased nor reserved; what overlaps it is %s", want, strings.Join(near, "; "))
	}
	return fmt.Errorf("%s is neither leased nor reserved: flannelctl leases lists what is", want)
}

// overtaken explains the sentinels of a write: somebody else wrote meanwhile.
func overtaken(err error) error {
	for _, sentinel := range []error{subnet.ErrTaken, subnet.ErrLeaseLost, subnet.ErrConfigChanged, subnet.ErrStoreChanged} {
		if errors.Is(err, sentinel) {
			return fmt.Errorf("it changed meanwhile, nothing was done: look at it (flannelctl leases) and try again: %w", err)
		}
	}
	return err
}

// describe names the owner of a lease by what is known of it.
func describe(a subnet.Attrs) string {
	var at []string
	for _, addr := range a.PublicIP {
		if addr.IsValid() {
			at = append(at, addr.String())
		}
	}
	where := strings.Join(at, " and ")
	switch {
	case a.Owner == "":
		return "the host at " + where
	case where == "":
		return fmt.Sprintf("node %s", a.Owner)
	}
	return fmt.Sprintf("node %s at %s", a.Owner, where)
}

// parseSubnet reads a subnet as the commands print it, "10.5.1.0/24" or
// "10.5.1.0/24,fd05:0:0:52::/64", or as etcd's keys are called,
// "10.5.1.0-24&fd05:0:0:52::-64".
func parseSubnet(text string) (subnet.Subnet, error) {
	if s, err := subnet.ParseSubnet(text); err == nil {
		return s, nil
	}
	var s subnet.Subnet
	for part := range strings.SplitSeq(text, ",") {
		p, err := netip.ParsePrefix(part)
		if err != nil || p.Addr().Is4In6() || p.Bits() == 0 {
			return subnet.Subnet{}, cli.Usagef("%q: must be a subnet such as 10.5.1.0/24, or 10.5.1.0/24,fd05:0:0:52::/64 with both families", text)
		}
		if p.Masked() != p {
			return subnet.Subnet{}, cli.Usagef("%q: %s is inside a subnet: must be %s", text, p.Addr(), p.Masked())
		}
		f := subnet.FamilyOf(p.Addr())
		if s[f].IsValid() {
			return subnet.Subnet{}, cli.Usagef("%q: must have one %s subnet, not two", text, f)
		}
		s[f] = p
	}
	return s, nil
}
