package udp

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// deviceHolder names the process that has the TUN device name open, for an error.
func deviceHolder(name string) string {
	return holder(tunNode, func(proc, fd string) bool {
		info, err := os.ReadFile(filepath.Join(proc, "fdinfo", fd))
		return err == nil && strings.Contains(string(info), "iff:\t"+name+"\n") && sameNetwork(proc)
	})
}

// portHolder names the process that has the UDP port at, or has it at all addresses,
// for an error.
func portHolder(at netip.AddrPort) string {
	for _, table := range [...]string{"udp", "udp6"} {
		text, err := os.ReadFile("/proc/thread-self/net/" + table)
		if err != nil {
			continue
		}
		for _, s := range parseSockets(string(text)) {
			if s.has(at) {
				return holder("socket:["+s.inode+"]", func(string, string) bool { return true })
			}
		}
	}
	return someone
}

// boundSocket is one line of /proc/net/udp or udp6.
type boundSocket struct {
	at    netip.AddrPort
	inode string
}

// has reports whether nobody else can have at. A socket at all addresses of IPv4 has none
// of IPv6, while one at all of IPv6 has both as a rule.
func (s boundSocket) has(at netip.AddrPort) bool {
	own := s.at.Addr()
	return s.at.Port() == at.Port() && (own == at.Addr() || own.IsUnspecified() && (own.Is6() || at.Addr().Is4()))
}

// parseSockets reads such a table: proc_net_udp(5). Lines that cannot be read, as the
// first, are left out.
func parseSockets(text string) []boundSocket {
	var list []boundSocket
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 10 {
			continue
		}
		local, port, _ := strings.Cut(fields[1], ":")
		b, err := hex.DecodeString(local)
		n, portErr := strconv.ParseUint(port, 16, 16)
		if err != nil || portErr != nil || len(b) != 4 && len(b) != 16 {
			continue
		}
		for i := 0; i < len(b); i += 4 { // printed as numbers of this machine
			binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
		}
		a, _ := netip.AddrFromSlice(b)
		list = append(list, boundSocket{netip.AddrPortFrom(a.Unmap(), uint16(n)), fields[9]})
	}
	return list
}

// someone is who holds what cannot be found out.
const someone = "another process"

// holder names the process that has a descriptor which leads to target and is the one:
// as well as /proc shows it, which lists only what lives in our PID namespace.
func holder(target string, is func(proc, fd string) bool) string {
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*") //nolint:errcheck // the pattern is constant
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err != nil || to != target {
			continue
		}
		dir, n := filepath.Split(fd)
		proc := filepath.Dir(filepath.Clean(dir))
		if !is(proc, n) {
			continue
		}
		pid := filepath.Base(proc)
		if pid == strconv.Itoa(os.Getpid()) {
			return "this process"
		}
		comm, err := os.ReadFile(filepath.Join(proc, "comm"))
		if err != nil {
			return "process " + pid
		}
		return strings.TrimSpace(string(comm)) + " (process " + pid + ")"
	}
	return someone
}

// sameNetwork reports whether the process at proc lives in the network namespace
// of the calling thread, where device names mean what they mean here.
func sameNetwork(proc string) bool {
	if filepath.Base(proc) == strconv.Itoa(os.Getpid()) {
		return true // our threads may stand in several
	}
	its, err := os.Readlink(filepath.Join(proc, "ns/net"))
	if err != nil {
		return false
	}
	own, err := os.Readlink("/proc/thread-self/ns/net")
	return err == nil && own == its
}
