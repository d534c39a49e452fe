package native

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// Feature is something of the kernel that we can do without, at a price.
type Feature uint8

// The features, each for one family.
const (
	// FeatureTables: nf_tables itself with filter chains, sets and named
	// counters. Without it nothing is done.
	FeatureTables Feature = iota
	// FeatureFIB: asking the routing table. Without it, sources of the network
	// are dropped at the uplink and nowhere else.
	FeatureFIB
	// FeatureNAT: NAT chains beside those of iptables. Without it sources are
	// neither translated nor kept from other tables' translation.
	FeatureNAT
)

func features() []Feature { return []Feature{FeatureTables, FeatureFIB, FeatureNAT} }

// String names the feature as the kernel's configuration does.
func (x Feature) String() string {
	switch x {
	case FeatureTables:
		return "nf_tables"
	case FeatureFIB:
		return "nft_fib"
	case FeatureNAT:
		return "nft_nat"
	default:
		return fmt.Sprintf("feature %d", uint8(x))
	}
}

// minKernel is the first release in which the feature does what we need. NAT
// chains of several tables are one after the other since then; before, the first
// one hid the others even if nothing in it matched.
func (x Feature) minKernel() string {
	switch x {
	case FeatureTables, FeatureFIB:
		return "4.12"
	default:
		return "4.18"
	}
}

// ErrUnsupported is that the kernel lacks something. What does not need it is in
// place all the same.
type ErrUnsupported struct {
	Feature   Feature
	Family    subnet.Family
	MinKernel string
}

// Error names what is missing and where it can be had.
func (e *ErrUnsupported) Error() string {
	return fmt.Sprintf("kernel lacks %s for %s: needs %s or later with that module", e.Feature, e.Family, e.MinKernel)
}

// lacks are the features that were found missing.
type lacks [2][FeatureNAT + 1]bool

func (l lacks) has(f subnet.Family, x Feature) bool { return l[f][x] || l[f][FeatureTables] }

// missed returns an error for each missing feature in the families of d.
func (l lacks) missed(d Desired) error {
	var errs []error
	for _, f := range subnet.Families() {
		if !d.Networks[f].IsValid() {
			continue
		}
		for _, x := range features() {
			if l[f][x] {
				errs = append(errs, &ErrUnsupported{x, f, x.minKernel()})
			}
		}
	}
	return errors.Join(errs...)
}

// refused reports whether an error may mean that the kernel lacks something: what
// a transaction says to an unknown expression, chain type or family. It may also
// mean that somebody removed what we were about to change.
func refused(err error) bool {
	return slices.ContainsFunc([]error{
		syscall.ENOENT, syscall.EOPNOTSUPP, syscall.EAFNOSUPPORT, syscall.EPROTONOSUPPORT, syscall.EINVAL,
	}, func(e error) bool { return errors.Is(err, e) })
}

// probe tries a feature by a transaction that leaves nothing behind: a table is
// made, filled and removed in one.
func (k *netlinkDoor) probe(ctx context.Context, f subnet.Family, x Feature) error {
	return k.use(ctx, func(conn *nftables.Conn) error { return k.try(conn, f, x) })
}

func (k *netlinkDoor) try(conn *nftables.Conn, f subnet.Family, x Feature) error {
	t := &nftables.Table{Name: k.table + "-probe", Family: family(f)}
	conn.AddTable(t)
	h := filterHook(nftables.ChainHookPrerouting)
	var exprs []expr.Any
	switch x {
	case FeatureTables:
		conn.AddObj(&nftables.CounterObj{Table: t, Name: ForeignSource})
		exprs = slices.Concat(source(f).is(make([]byte, f.Bits()/8)...), dropAs(ForeignSource))
	case FeatureFIB:
		exprs = append(noWayBack(), sourceIsLocal()...)
	case FeatureNAT:
		h = hook{nftables.ChainTypeNAT, *nftables.ChainHookPostrouting, priorityNAT, false}
		exprs = []expr.Any{&expr.Masq{}}
	}
	c := baseChain(t, chain{name: "probe", hook: h})
	conn.AddChain(c)
	conn.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: exprs})
	if x == FeatureNAT {
		conn.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: translate(f, source(f).load(reg1), false)})
	}
	conn.DelTable(t)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("try %s: %w", x, err)
	}
	return nil
}

// releaseBefore compares kernel releases by their first two numbers; what cannot
// be read is not before anything.
func releaseBefore(release, least string) bool {
	var a, b [2]int
	if n, _ := fmt.Sscanf(release, "%d.%d", &a[0], &a[1]); n < len(a) {
		return false
	}
	if n, _ := fmt.Sscanf(least, "%d.%d", &b[0], &b[1]); n < len(b) {
		return false
	}
	return slices.Compare(a[:], b[:]) < 0
}

// release is what uname says.
func release() string {
	var u syscall.Utsname
	if syscall.Uname(&u) != nil {
		return ""
	}
	var b strings.Builder
	for _, c := range u.Release {
		if c == 0 {
			break
		}
		b.WriteByte(byte(c))
	}
	return b.String()
}
