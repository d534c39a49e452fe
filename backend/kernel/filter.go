package kernel

import (
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"
)

// Where the fields of a notification are that a filter looks at: in struct nlmsghdr,
// and in struct ndmsg behind it.
const (
	placeType  = 4
	placePort  = 12
	placeState = unix.SizeofNlMsghdr + 8
)

// filterEchoes has the kernel keep from the socket fd what [echoes] would leave out by
// its port alone, and what nobody learns anything from: a start writes three entries for
// each peer that would each be read again. A notification is a message by itself.
func (s *echoes) filterEchoes(fd int) error {
	code := s.filter()
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]} //nolint:gosec // a dozen
	return os.NewSyscallError("setsockopt", unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog))
}

// filter is a program of classic BPF, which jumps forward by as many instructions as it
// says. Its loads take the host's byte order for the network's.
//
//	our port? --no--> pass
//	route, nexthop? --yes--> drop
//	permanent neighbour? --yes--> drop, else pass
//
// Neighbours that are not permanent are learnt from, and a link that is gone takes what
// is known of its entries along.
func (s *echoes) filter() []unix.SockFilter {
	word := func(v uint32) uint32 { return binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, v)) }
	half := func(v uint16) uint32 {
		return uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v)))
	}
	const (
		load  = unix.BPF_LD | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		any   = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		end   = unix.BPF_RET | unix.BPF_K
		whole = 1<<32 - 1
	)
	return []unix.SockFilter{
		{Code: load | unix.BPF_W, K: placePort},
		{Code: equal, K: word(s.port), Jf: 8}, // pass
		{Code: load | unix.BPF_H, K: placeType},
		{Code: equal, K: half(unix.RTM_NEWROUTE), Jt: 7}, // drop
		{Code: equal, K: half(unix.RTM_DELROUTE), Jt: 6},
		{Code: equal, K: half(unix.RTM_NEWNEXTHOP), Jt: 5},
		{Code: equal, K: half(unix.RTM_DELNEXTHOP), Jt: 4},
		{Code: equal, K: half(unix.RTM_NEWNEIGH), Jf: 2}, // pass
		{Code: load | unix.BPF_H, K: placeState},
		{Code: any, K: half(unix.NUD_PERMANENT), Jt: 1}, // drop
		{Code: end, K: whole},
		{Code: end},
	}
}
