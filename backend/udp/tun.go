package udp

import (
	"errors"
	"fmt"
	"net"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/udp/offload"
)

// Why there can be no tunnel device. Each error that wraps one of these says
// what to do.
var (
	// ErrNoTUN: there is no /dev/net/tun, or it may not be used.
	ErrNoTUN = errors.New("cannot use " + tunNode)
	// ErrDeviceBusy: another process holds the device.
	ErrDeviceBusy = errors.New("device is busy")
	// ErrForeignDevice: a device of another kind has the name.
	ErrForeignDevice = errors.New("not a tun device")
)

const tunNode = "/dev/net/tun"

// tun is a Device of the kernel: one queue.
//
// A blocked Read ends when the descriptor is closed, and when the kernel takes the device
// away: then reads fail with EBADFD. Calls that move packets never block, and are made
// without telling Go's scheduler: see Cost.
type tun struct {
	name string
	raw  *handle
	// What the device has on: see setOffloads.
	tso, uso bool
	// The reader's call in progress. It stands here, with its function made
	// once, so that a call allocates nothing.
	reading struct {
		frames *Frames
		err    error
		ready  func(fd uintptr) bool
	}
}

// tunWriter is a Writer of a tun, with its call in progress.
type tunWriter struct {
	tun    *tun
	parts  []unix.Iovec
	err    error
	ready  func(fd uintptr) bool
	header [offload.HeaderSize]byte
	all    [1 + offload.MaxParts]unix.Iovec
}

// tunOptions say what a TUN device is opened with.
type tunOptions struct {
	// Queues is how many to attach: more than one only with MultiQueue.
	Queues int
	// MultiQueue is what the device was made with: attaching takes the same.
	MultiQueue bool
	// Whole asks for no offloads: each packet is one of the wire.
	Whole bool
}

// tuns are the queues of one device that we hold.
type tuns []*tun

// openTUN attaches to the TUN device name, making it where it is missing, in the
// network namespace of the calling thread. A made device goes away with its
// descriptors until persist is called.
func openTUN(name string, o tunOptions) (tunnel, error) {
	var all tuns
	for range o.Queues {
		t, err := openQueue(name, o)
		if err != nil {
			return nil, errors.Join(err, all.Close())
		}
		all = append(all, t)
	}
	return all, nil
}

// openQueue attaches to one queue.
func openQueue(name string, o tunOptions) (*tun, error) {
	fd, err := unix.Open(tunNode, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nodeError(err)
	}
	if err := attachQueue(fd, name, o); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	raw, err := newHandle(fd, true)
	if err != nil {
		return nil, err
	}
	t, err := newTUN(name, raw, o)
	if err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	return t, nil
}

// attachQueue makes fd a queue of the device name.
func attachQueue(fd int, name string, o tunOptions) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("name device %q: %w", name, err)
	}
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if o.MultiQueue {
		flags |= unix.IFF_MULTI_QUEUE
	}
	req.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return attachError(name, err)
	}
	return nil
}

// setOffloads asks for as much as the kernel knows and returns what it gave. What
// an earlier holder had left on is off where it is not asked for.
func setOffloads(fd int, whole bool) (int, error) {
	const (
		tso = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
		uso = unix.TUN_F_USO4 | unix.TUN_F_USO6 // Linux 6.2
	)
	levels := []int{tso | uso, tso, 0}
	if whole {
		levels = levels[2:]
	}
	var err error
	for _, level := range levels {
		if err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, level); err == nil {
			return level, nil
		}
	}
	return 0, err
}

// newTUN makes a Device of a descriptor that is attached to the device name, and sets
// what an earlier holder may have set otherwise.
func newTUN(name string, raw *handle, o tunOptions) (*tun, error) {
	t := &tun{name: name, raw: raw}
	t.reading.ready = t.read
	return t, control(raw, func(fd int) error {
		if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, offload.HeaderSize); err != nil {
			return fmt.Errorf("set header of %s: %w", name, err)
		}
		level, err := setOffloads(fd, o.Whole)
		if err != nil {
			return fmt.Errorf("set offloads of %s: %w", name, err)
		}
		t.tso, t.uso = level&unix.TUN_F_TSO4 != 0, level&unix.TUN_F_USO4 != 0
		return nil
	})
}

// nodeError explains why /dev/net/tun cannot be opened.
func nodeError(err error) error {
	advice := ""
	switch {
	case errors.Is(err, unix.ENOENT):
		advice = "run `modprobe tun`; in a container, start it with --device " + tunNode +
			"; without udev, mkdir -p /dev/net && mknod " + tunNode + " c 10 200"
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		advice = "run `modprobe tun`: the node is there but no driver"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		advice = "run as root; in a container or unit, allow the device (--device " + tunNode +
			", DeviceAllow=" + tunNode + " rw)"
	default:
		return fmt.Errorf("%w: %w", ErrNoTUN, err)
	}
	return fmt.Errorf("%w: %w: %s", ErrNoTUN, err, advice)
}

// attachError explains why the kernel does not hand over the device name.
func attachError(name string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("open device %s: %w: needs CAP_NET_ADMIN", name, kernel.ErrPermission)
	case errors.Is(err, unix.EBUSY):
		return busyError(name)
	case errors.Is(err, unix.EINVAL):
		return foreignError(name, "another kind")
	}
	return fmt.Errorf("open device %s: %w", name, err)
}

// busyError refuses a device that somebody holds.
func busyError(name string) error {
	return fmt.Errorf("open device %s: %w: held by %s; stop it first", name, ErrDeviceBusy, deviceHolder(name))
}

// foreignError refuses a device that only has our device's name.
func foreignError(name, kind string) error {
	return fmt.Errorf("open device %s: %w but of %s: it is not flannel's; rename or delete it (ip link del %s)",
		name, ErrForeignDevice, kind, name)
}

func (all tuns) queues() []Device {
	queues := make([]Device, len(all))
	for i, t := range all {
		queues[i] = t
	}
	return queues
}

// persist makes the device outlive its descriptors, and with it its addresses and
// routes.
func (all tuns) persist() error {
	t := all[0]
	if err := control(t.raw, func(fd int) error { return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1) }); err != nil {
		return fmt.Errorf("keep device %s: %w", t.name, err)
	}
	return nil
}

// attached reports whether the descriptor still stands for a device of its name.
// It does not after the device was deleted (EBADFD) or renamed.
func (all tuns) attached() bool {
	t := all[0]
	req, err := unix.NewIfreq(t.name)
	if err != nil {
		return false
	}
	err = control(t.raw, func(fd int) error { return unix.IoctlIfreq(fd, unix.TUNGETIFF, req) })
	return err == nil && req.Name() == t.name
}

func (all tuns) offloads() (tso, uso bool) { return all[0].tso, all[0].uso }

// Close closes all queues. A persistent device stays.
func (all tuns) Close() error {
	errs := make([]error, 0, len(all))
	for _, t := range all {
		errs = append(errs, t.Close())
	}
	return errors.Join(errs...)
}

// Read implements [Device].
func (t *tun) Read(f *Frames) error {
	c := &t.reading
	c.frames, c.err = f, nil
	err := t.raw.Read(c.ready)
	c.frames = nil
	if len(f.List) > 0 {
		return nil // the next call meets an error again
	}
	return t.outcome(err, c.err)
}

// read takes packets until there is none or no room, and asks the handle to call
// again if there was not even one.
func (t *tun) read(fd uintptr) bool {
	c := &t.reading
	for {
		room := c.frames.Room()
		if room == nil {
			return true
		}
		n, _, err := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(room))), uintptr(len(room)))
		switch err {
		case 0:
			t.raw.linger.found()
			c.frames.Add(int(n))
		case unix.EINTR:
		case unix.EAGAIN:
			if len(c.frames.List) > 0 {
				return true
			}
			if !t.raw.linger.again() {
				return false
			}
			yield()
		default:
			c.err = err
			return true
		}
	}
}

// Writer implements [Device].
func (t *tun) Writer() Writer {
	w := &tunWriter{tun: t}
	w.ready = w.write
	return w
}

// Write implements [Writer].
func (c *tunWriter) Write(packet offload.Joined) error {
	packet.Header.Put(c.header[:])
	c.parts = append(c.all[:0], vector(c.header[:]))
	for _, b := range packet.Parts {
		c.parts = append(c.parts, vector(b))
	}
	c.err = nil
	return c.tun.outcome(c.tun.raw.Write(c.ready), c.err)
}

func (c *tunWriter) write(fd uintptr) bool {
	for {
		_, _, err := unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&c.parts[0])), uintptr(len(c.parts)))
		if err == unix.EINTR {
			continue
		}
		if err != 0 {
			c.err = err
		}
		return true
	}
}

// outcome is the error of a call: of the handle, or of the kernel.
func (t *tun) outcome(handleErr, err error) error {
	switch {
	case handleErr == nil && err == nil:
		return nil
	case errors.Is(handleErr, net.ErrClosed):
		return errGone
	case handleErr != nil:
		return handleErr
	case errors.Is(err, unix.EBADFD):
		return fmt.Errorf("%w: deleted", errGone)
	}
	return err
}

// Close implements [Device].
func (t *tun) Close() error {
	if err := t.raw.Close(); err != nil {
		return fmt.Errorf("close device %s: %w", t.name, err)
	}
	return nil
}
