package kernel

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// What is told of entries is news or not by what is known, whoever's message it is, and
// changes what is known.
func TestEchoesByWhatIsKnown(t *testing.T) {
	const ourPort, port, link, other = 7, 9, 3, 4
	at := func(n byte) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, 0, n}) }
	fdb := func(link int, mac, dst byte) FDB { return FDB{Link: link, MAC: MAC{2, 0, 0, 0, 0, mac}, Dst: at(dst)} }
	s := &echoes{port: ourPort}
	told := func(typ uint16, port uint32, n neighbour) bool {
		m := encoded(t, func(e *encoder) {
			e.beginNeighbour(typ, 0, n)
			e.bytes(unix.NDA_LLADDR, n.mac[:])
			e.addr(unix.NDA_DST, n.dst)
		})
		m.port = port
		return s.ours(m)
	}
	entry := func(f FDB, state int) neighbour {
		return neighbour{family: unix.AF_BRIDGE, link: f.Link, state: state, mac: f.MAC, dst: f.Dst}
	}
	here := func(f FDB) bool { return told(unix.RTM_NEWNEIGH, 0, entry(f, unix.NUD_PERMANENT)) }
	gone := func(f FDB) bool { return told(unix.RTM_DELNEIGH, 0, entry(f, unix.NUD_PERMANENT)) }
	nb := func(n byte) neighbour {
		return neighbour{family: unix.AF_INET, link: link, state: unix.NUD_PERMANENT, dst: at(n), mac: MAC{2, 0, 0, 0, 0, n}}
	}
	for _, step := range []struct {
		name string
		ours func() bool
		want bool
	}{
		{"of what nobody knows", func() bool { return gone(fdb(link, 1, 1)) }, true},
		{"ours", func() bool { s.fdb.put([]FDB{fdb(link, 1, 1)}); return here(fdb(link, 1, 1)) }, true},
		{"another destination", func() bool { return here(fdb(link, 1, 2)) }, false},
		{"which is known now", func() bool { return here(fdb(link, 1, 2)) }, true},
		{"a late removal of the former", func() bool { s.fdb.remove([]FDB{fdb(link, 1, 1)}); return here(fdb(link, 1, 2)) }, true},
		{"another of that MAC is gone", func() bool { return gone(fdb(link, 1, 1)) }, false},
		{"it is gone", func() bool { return gone(fdb(link, 1, 2)) }, false},
		{"once", func() bool { return gone(fdb(link, 1, 2)) }, true},
		{"one that we have removed", func() bool {
			s.fdb.put([]FDB{fdb(link, 2, 2)})
			s.fdb.remove([]FDB{fdb(link, 2, 2)})
			return gone(fdb(link, 2, 2))
		}, true},
		{"one that is not permanent", func() bool {
			s.fdb.put([]FDB{fdb(link, 3, 3)})
			return told(unix.RTM_NEWNEIGH, 0, entry(fdb(link, 3, 3), unix.NUD_REACHABLE))
		}, false},
		{"a neighbour of ours", func() bool {
			s.neighbours.put([]Neighbour{{Link: link, Addr: at(5), MAC: nb(5).mac}})
			return told(unix.RTM_NEWNEIGH, ourPort, nb(5))
		}, true},
		{"the same by another", func() bool { return told(unix.RTM_NEWNEIGH, port, nb(5)) }, false},
		{"the kernel's removal of it", func() bool { return told(unix.RTM_DELNEIGH, 0, nb(5)) }, false},
		{"the removal of one that is not there", func() bool { return told(unix.RTM_DELNEIGH, 0, nb(6)) }, true},
		{"two links", func() bool {
			s.fdb.put([]FDB{fdb(link, 8, 8), fdb(other, 8, 8)})
			return here(fdb(link, 8, 8)) && here(fdb(other, 8, 8))
		}, true},
		{"a link is gone", func() bool {
			m := encoded(t, func(e *encoder) { e.beginLink(unix.RTM_DELLINK, 0, link, 0, 0) })
			m.port = port
			return s.ours(m)
		}, false},
		{"the other's entries stay", func() bool { return here(fdb(other, 8, 8)) }, true},
		{"its own are unknown", func() bool { return here(fdb(link, 8, 8)) }, false},
		{"its neighbours, too", func() bool { return told(unix.RTM_DELNEIGH, 0, nb(5)) }, true},
		{"messages were lost", func() bool {
			s.neighbours.put([]Neighbour{{Link: other, Addr: at(5), MAC: nb(5).mac}})
			s.doubt()
			return here(fdb(other, 8, 8))
		}, false},
		{"and of neighbours", func() bool { return s.neighbours.holds(NeighbourKey{other, at(5)}) }, false},
	} {
		if got := step.ours(); got != step.want {
			t.Errorf("%s: ours is %t, want %t", step.name, got, step.want)
		}
	}
}
