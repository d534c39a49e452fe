package kernel

import (
	"context"
	"fmt"
	"maps"
	"net/netip"

	"golang.org/x/sys/unix"
)

// nudResolved are the states of an entry whose MAC the kernel sends to. One that
// is stale has not been used for a while, and is used at once when needed. Those
// without ARP (NUD_NOARP: multicast, loopback) say nothing of a host.
const nudResolved = unix.NUD_PERMANENT | unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE

// host reports whether the entry is of an ARP or NDP table, for a host whose
// MAC, if any, was asked for or set. Entries of NTF_PROXY are answers of ours.
func (n neighbour) host() bool {
	return !n.bridge() && n.dst.IsValid() && n.flags&unix.NTF_PROXY == 0
}

// resolved is the MAC that the kernel sends to; none in states without one.
func (n neighbour) resolved() MAC {
	if n.state&nudResolved == 0 {
		return MAC{}
	}
	return n.mac
}

// Resolved implements Host.
func (n *Netlink) Resolved(ctx context.Context, link int) ([]Neighbour, error) {
	var out []Neighbour
	err := n.use(ctx, func(c *conn) (err error) {
		dumps := []dump{{encode: encodeNeighbourDump(unix.AF_UNSPEC, link)}}
		out, err = list(ctx, c, nil, dumps, func(m message) (Neighbour, bool, error) {
			nb, ok, err := parseNeighbour(m)
			ok = ok && (link == 0 || nb.link == link) && nb.host() && nb.resolved() != MAC{}
			return Neighbour{Link: nb.link, Addr: nb.dst, MAC: nb.mac}, ok, err
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list resolved neighbours: %w", err)
	}
	return out, nil
}

// Confirm implements Host. An entry that is used goes on from stale by itself: after
// some seconds it is asked for (NUD_DELAY, NUD_PROBE), and fails without an answer.
// NTF_USE is such a use without a packet. Only stale entries are told: since 5.16
// it makes a permanent one age.
func (n *Netlink) Confirm(ctx context.Context, link int, addrs []netip.Addr) error {
	asked := make(map[netip.Addr]bool, len(addrs))
	for _, a := range addrs {
		asked[a] = true
	}
	err := n.use(ctx, func(c *conn) error {
		dumps := []dump{{encode: encodeNeighbourDump(unix.AF_UNSPEC, link)}}
		stale, err := list(ctx, c, nil, dumps, func(m message) (netip.Addr, bool, error) {
			nb, ok, err := parseNeighbour(m)
			return nb.dst, ok && nb.link == link && nb.host() && nb.state == unix.NUD_STALE && asked[nb.dst], err
		})
		if err != nil {
			return err
		}
		// Which of them the kernel refuses does not matter: they are gone.
		_, _, err = c.do(ctx, requests{n: len(stale), encode: func(e *encoder, i int) {
			e.beginNeighbour(unix.RTM_NEWNEIGH, 0, neighbour{family: family(stale[i]), link: link, flags: unix.NTF_USE})
			e.addr(unix.NDA_DST, stale[i])
		}})
		return err
	})
	if err != nil {
		return fmt.Errorf("confirm neighbours: %w", err)
	}
	return nil
}

// resolution remembers which MAC each address had, so that of the messages that
// ARP and NDP make all the time (an entry grows stale, is asked for, answers)
// those that change nothing are told from the few that do.
type resolution map[NeighbourKey]MAC

// learn takes over what a message says, and reports whether that is new.
func (r resolution) learn(key NeighbourKey, mac MAC) (changed bool) {
	if r[key] == mac {
		return false
	}
	if mac == (MAC{}) {
		delete(r, key)
	} else {
		r[key] = mac
	}
	return true
}

// forget makes whatever is heard next of a link's addresses new: the kernel drops
// entries of a link without a word.
func (r resolution) forget(link int) {
	maps.DeleteFunc(r, func(k NeighbourKey, _ MAC) bool { return k.Link == link })
}
