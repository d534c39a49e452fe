package udp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// errNoHeirloom is why a file of an earlier process is not used, wrapped.
var errNoHeirloom = errors.New("does not fit")

var _ backend.Heir = (*Backend)(nil)

// heirloom is what the name of a descriptor says that it is:
//
//	udp.tun.0.flannel0            queue 0 of the device flannel0
//	udp.socket.0.8285.192.0.2.1   socket 0 bound to 192.0.2.1, port 8285
//
// An IPv6 address has a minus for each colon, which systemd refuses in names.
type heirloom struct {
	// n counts those of the same device or address.
	n int
	// device is the name of a TUN device; empty: it is a socket.
	device string
	at     netip.AddrPort
}

const (
	tunPrefix    = "udp.tun."
	socketPrefix = "udp.socket."
)

// String is the descriptor's name.
func (h heirloom) String() string {
	if h.device != "" {
		return tunPrefix + strconv.Itoa(h.n) + "." + h.device
	}
	addr := strings.ReplaceAll(h.at.Addr().String(), ":", "-")
	return fmt.Sprintf("%s%d.%d.%s", socketPrefix, h.n, h.at.Port(), addr)
}

// parseHeirloom reads a name in the form of String, and no other.
func parseHeirloom(name string) (heirloom, error) {
	h := heirloom{}
	if rest, ok := strings.CutPrefix(name, tunPrefix); ok {
		var n string
		n, h.device, _ = strings.Cut(rest, ".")
		h.n, _ = strconv.Atoi(n) //nolint:errcheck // the last check
	} else if rest, ok := strings.CutPrefix(name, socketPrefix); ok {
		n, rest, _ := strings.Cut(rest, ".")
		h.n, _ = strconv.Atoi(n) //nolint:errcheck // the last check
		port, addr, _ := strings.Cut(rest, ".")
		p, _ := strconv.ParseUint(port, 10, 16)                     //nolint:errcheck // the last check
		a, _ := netip.ParseAddr(strings.ReplaceAll(addr, "-", ":")) //nolint:errcheck // the last check
		h.at = netip.AddrPortFrom(a, uint16(p))
	}
	if h.n < 0 || h.device == "" && !h.at.IsValid() || h.String() != name {
		return heirloom{}, fmt.Errorf("%w: not a name of ours", errNoHeirloom)
	}
	return h, nil
}

// Inherit implements [backend.Heir]. Of the device's queues, and of the sockets at one
// address, it takes all that there must be, or none: those that lack would get no packets,
// and those that are too many would not be read. Where sockets were kept at other addresses
// of ours only, as when the uplink has changed since, it opens its own beside those.
// Without any files it attaches to the device that an earlier process left, and opens the
// sockets anew.
func (b *Backend) Inherit(ctx context.Context, d backend.Desired, files []*os.File) backend.Inheritance {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.project(d) // the first Apply says which peers do not fit
	b.setPeers(p.peers, p.own)
	if len(files) == 0 {
		d.Also = nil // nobody says which of these somebody sends to
		return backend.Inheritance{Whole: b.reattach(ctx, d)}
	}
	b.follow(files)
	b.openAnswers(ctx)
	b.mtu.Store(int64(b.MTU(d.Uplink)))
	kept := b.sift(b.receiveAt(d), files)
	if t, err := inheritTUN(b.device, kept.queues, b.whole); err == nil {
		b.tunnel = t
		b.devices.put(t.queues()...)
	} else {
		kept.refuse(kept.queues, err)
	}
	return b.inheritSets(kept)
}

// receiveAt are the addresses at which packets may come, each once, the uplink's first.
func (b *Backend) receiveAt(d backend.Desired) []netip.AddrPort {
	f := outer(d.Uplink)
	list := []netip.AddrPort{netip.AddrPortFrom(d.Uplink.Addr[f], b.port)}
	for _, addr := range d.Also {
		at := netip.AddrPortFrom(addr, b.port)
		if addr.IsValid() && subnet.FamilyOf(addr) == f && !slices.Contains(list, at) {
			list = append(list, at)
		}
	}
	return list
}

// inheritSets takes over the sockets, by address. The uplink's come first, or there are
// none of them.
func (b *Backend) inheritSets(kept *sifted) (in backend.Inheritance) {
	var first, also []*outletSet
	for i, at := range kept.at {
		files := kept.sockets[at]
		if files == nil {
			continue
		}
		conns, err := inheritSockets(at, files, b.socketOptions())
		switch {
		case err != nil:
			kept.refuse(files, err)
		case i == 0:
			first = append(first, newOutletSet(at, conns, b.openMore(at.Addr())))
		default:
			also = append(also, newOutletSet(at, conns, b.openMore(at.Addr())))
			in.Also = append(in.Also, at.Addr())
		}
	}
	if len(also) > 0 && kept.sockets[kept.at[0]] == nil {
		// Without them the first Apply says what is wrong.
		if set, err := b.openSet(kept.at[0]); err == nil {
			first = append(first, set)
		}
	}
	if err := b.outlets.put(append(first, also...)...); err != nil {
		b.log.Warn("closing what is of no use failed", "error", err)
	}
	in.Whole, in.Refused = b.tunnel != nil && len(first) > 0, kept.refused
	return in
}

// reattach reports whether all is open, and else closes what it has opened: the first
// Apply, which would do the same and more, says what is wrong. The device must be one to
// which nothing is lacking, for here nothing is created in the kernel.
func (b *Backend) reattach(ctx context.Context, d backend.Desired) bool {
	link, err := b.params.Kernel.LinkByName(ctx, b.device)
	ours := err == nil && link.Alias == b.params.Instance.Alias() && link.Tun.Persist
	if !ours || !link.Up || b.queues > 1 && !link.Tun.MultiQueue || b.check(d.Uplink) != nil {
		return false
	}
	// As in Apply, the sockets come first.
	err = b.openSockets(ctx, d)
	if err == nil {
		b.mtu.Store(int64(b.MTU(d.Uplink)))
		b.tunnel, err = b.attach(ctx)
	}
	if err != nil {
		b.tunnel = nil
		if err := b.closeAll(); err != nil {
			b.log.Warn("closing what is of no use failed", "error", err)
		}
		return false
	}
	b.devices.put(b.tunnel.queues()...)
	return true
}

// follow takes over the number of queues from files where nobody said how many there
// must be: packets wait in each of them. The number of cores that made it another one
// counts again once the service was stopped.
func (b *Backend) follow(files []*os.File) {
	var there [queuesMost]bool
	most := 0
	for _, f := range files {
		if h, err := parseHeirloom(f.Name()); err == nil && h.device == b.device && h.n < queuesMost {
			there[h.n] = true
			most = max(most, h.n+1)
		}
	}
	if whole := !slices.Contains(there[:most], false); !b.auto || !whole || most == 0 || most == b.queues {
		return
	}
	b.log.Info("keeping as many queues as the former process had", "device", b.device, "queues", most)
	b.queues = most
	b.traffic = make([]traffic, most)
}

// sifted are files by what they are for; nil: there is none of that number.
type sifted struct {
	// at are the addresses that are wanted, the uplink's first.
	at      []netip.AddrPort
	queues  []*os.File
	sockets map[netip.AddrPort][]*os.File
	refused []error
}

// refuse closes files, of which some may be nil, because of err.
func (s *sifted) refuse(files []*os.File, err error) {
	s.refused = append(s.refused, refuse(files, err)...)
}

// sift sorts files by kind and number, and refuses those whose names do not fit.
func (b *Backend) sift(at []netip.AddrPort, files []*os.File) *sifted {
	s := &sifted{at: at, queues: make([]*os.File, b.queues), sockets: map[netip.AddrPort][]*os.File{}}
	for _, f := range files {
		h, err := parseHeirloom(f.Name())
		var to []*os.File
		switch {
		case err != nil:
		case h.device == b.device:
			to = s.queues
		case h.device == "" && slices.Contains(at, h.at):
			if s.sockets[h.at] == nil {
				s.sockets[h.at] = make([]*os.File, b.queues)
			}
			to = s.sockets[h.at]
		default:
			err = fmt.Errorf("%w: wanted are device %s and sockets at %s", errNoHeirloom, b.device, at[0])
		}
		switch {
		case err != nil:
		case h.n >= len(to):
			err = fmt.Errorf("%w: only %d queues are wanted", errNoHeirloom, len(to))
		case to[h.n] != nil:
			err = fmt.Errorf("%w: there is one already", errNoHeirloom)
		default:
			to[h.n] = f
			continue
		}
		s.refuse([]*os.File{f}, err)
	}
	return s
}

// refuse closes files, of which some may be nil, because of err.
func refuse(files []*os.File, err error) []error {
	var refused []error
	for _, f := range files {
		if f == nil {
			continue
		}
		closeErr := f.Close()
		if errors.Is(closeErr, os.ErrClosed) {
			closeErr = nil // with the socket that was made of it
		}
		refused = append(refused, fmt.Errorf("%s: %w", f.Name(), errors.Join(err, closeErr)))
	}
	return refused
}

// missing says that not all of files are there.
func missing(files []*os.File) error {
	if i := slices.Index(files, nil); i >= 0 {
		return fmt.Errorf("%w: number %d of %d is missing", errNoHeirloom, i, len(files))
	}
	return nil
}

func (b *Backend) socketOptions() socketOptions {
	return socketOptions{Queues: b.queues, Whole: b.whole, Level: &b.sockets}
}

// Descriptors implements [backend.Heir].
func (b *Backend) Descriptors() []backend.Descriptor {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []backend.Descriptor
	if all, ok := b.tunnel.(tuns); ok {
		for i, t := range all {
			list = append(list, backend.Descriptor{Name: heirloom{n: i, device: b.device}.String(), Conn: t.raw})
		}
	}
	for _, set := range b.outlets.load().sets {
		for i, o := range set.outlets {
			if s, ok := o.conn.(*socket); ok {
				list = append(list, backend.Descriptor{Name: heirloom{n: i, at: set.at}.String(), Conn: s.raw})
			}
		}
	}
	return list
}

// inheritTUN takes over files if they are queues of the TUN device name, as openTUN
// makes them, in the network namespace of the calling thread. Where that fails they
// are untouched.
func inheritTUN(name string, files []*os.File, whole bool) (all tuns, err error) {
	if err := missing(files); err != nil {
		return nil, err
	}
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err == nil {
			err = control(raw, func(fd int) error { return checkQueue(fd, name) })
		}
		if err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, all.Close())
			all = nil
		}
	}()
	for _, f := range files {
		raw, err := duplicate(f)
		if err != nil {
			return all, err
		}
		t, err := newTUN(name, raw, tunOptions{Whole: whole})
		if err != nil {
			return all, errors.Join(err, raw.Close())
		}
		all = append(all, t)
	}
	return all, closeFiles(files)
}

// closeFiles closes what there are duplicates of.
func closeFiles(files []*os.File) error {
	for _, f := range files {
		if err := f.Close(); err != nil {
			return fmt.Errorf("close %s: %w", f.Name(), err)
		}
	}
	return nil
}

// checkQueue reports whether fd is attached to the TUN device name here.
func checkQueue(fd int, name string) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("name device %q: %w", name, err)
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, req); err != nil {
		return fmt.Errorf("%w: its device was deleted: %w", errNoHeirloom, err)
	}
	const (
		want = unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR
		not  = unix.IFF_TAP | unix.IFF_DETACH_QUEUE
	)
	flags := int(req.Uint16())
	switch {
	case req.Name() != name:
		return fmt.Errorf("%w: its device is called %s now", errNoHeirloom, req.Name())
	case flags&(want|not) != want:
		return fmt.Errorf("%w: it is a device of flags %#x", errNoHeirloom, flags)
	}
	return checkNamespace(fd, unix.TUNGETDEVNETNS) // Linux 5.2
}

// checkNamespace reports whether what fd belongs to is in the network namespace of
// the calling thread. Ask returns a descriptor of it; a kernel that does not know
// it cannot be asked.
func checkNamespace(fd int, ask uint) error {
	ns, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(ask), 0)
	if errno != 0 {
		return nil
	}
	defer unix.Close(int(ns)) //nolint:errcheck // nothing was written
	var its, own unix.Stat_t
	if err := unix.Fstat(int(ns), &its); err != nil {
		return fmt.Errorf("look at its network namespace: %w", err)
	}
	if err := unix.Stat("/proc/thread-self/ns/net", &own); err != nil {
		return fmt.Errorf("look at our network namespace: %w", err)
	}
	if its.Ino != own.Ino || its.Dev != own.Dev {
		return fmt.Errorf("%w: it is of another network namespace", errNoHeirloom)
	}
	return nil
}

// inheritSockets takes over files if they are UDP sockets bound to at, as openSockets
// makes them, in the network namespace of the calling thread.
func inheritSockets(at netip.AddrPort, files []*os.File, o socketOptions) (conns []Conn, err error) {
	if err := missing(files); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			for _, c := range conns {
				err = errors.Join(err, c.Close())
			}
			conns = nil
		}
	}()
	for _, f := range files {
		s, err := inheritSocket(f, at, o)
		if s != nil {
			conns = append(conns, s)
		}
		if err != nil {
			return conns, err
		}
	}
	return conns, closeFiles(files)
}

// inheritSocket makes a socket of a duplicate of f. One that comes with an error
// must be closed.
func inheritSocket(f *os.File, at netip.AddrPort, o socketOptions) (*socket, error) {
	raw, err := duplicate(f)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoHeirloom, err)
	}
	s, err := newSocket(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoHeirloom, err)
	}
	if s.at != at {
		return s, fmt.Errorf("%w: it is bound to %s", errNoHeirloom, s.at)
	}
	if err := control(s.raw, func(fd int) error { return checkSocket(fd, o.Whole) }); err != nil {
		return s, err
	}
	if err := control(s.raw, func(fd int) error { enlarge(fd); return nil }); err != nil {
		return s, err
	}
	return s, s.prepare(o)
}

// checkSocket reports whether the socket is here, and hands over what arrives as whole wants it.
func checkSocket(fd int, whole bool) error {
	if err := checkNamespace(fd, unix.SIOCGSKNS); err != nil {
		return err
	}
	joins, err := unix.GetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO)
	if whole && err == nil && joins != 0 {
		return fmt.Errorf("%w: it joins datagrams, and Offload is off", errNoHeirloom)
	}
	return nil
}
