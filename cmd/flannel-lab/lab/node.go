package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Node is one network namespace, of a lab or opened by OpenNode.
type Node struct {
	// Name is the namespace's, as `ip netns` lists it where it is the lab's.
	Name string

	links *netlink.Handle

	mu sync.Mutex // guards what follows
	ns netns.NsHandle
	// removed: the descriptors are given back.
	removed bool
}

// ErrRemoved is what a node returns that was removed or closed.
var ErrRemoved = errors.New("namespace was removed")

// newNode creates a named namespace with its loopback interface up and marked
// as the lab's. Nothing is left of it after an error.
func newNode(name, lab string) (*Node, error) {
	n := &Node{Name: name, ns: netns.None()}
	err := shareNames()
	if err == nil {
		err = onOwnThread(func() error {
			var err error
			n.ns, err = netns.NewNamed(name)
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("make namespace %s: %w", name, err)
	}
	if err := n.open(lab); err != nil {
		return nil, errors.Join(fmt.Errorf("make namespace %s: %w", name, err), n.remove())
	}
	return n, nil
}

// shareNames makes the folder of namespaces a mount of its own, as the first `ip netns add`
// on a machine does, locked as there. Done while there are namespaces it puts a copy of each
// over it, and the name of one that is covered cannot be removed.
func shareNames() (err error) {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	dir, err := os.Open(netnsDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", netnsDir, err)
	}
	share := func() error { return unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "") }
	err = share()
	if errors.Is(err, unix.EINVAL) { // no mount
		if err = unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = share()
		}
	}
	if err != nil {
		return fmt.Errorf("share %s: %w", netnsDir, err)
	}
	return nil
}

// OpenNode gives access to a namespace that somebody else made, by its path. It
// is not the lab's: Close gives the descriptors back, and the namespace stays.
func OpenNode(name, path string) (*Node, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("open namespace %s: %w", name, err)
	}
	links, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open namespace %s: open netlink: %w", name, err), ns.Close())
	}
	return &Node{Name: name, ns: ns, links: links}, nil
}

// Close closes a node of OpenNode.
func (n *Node) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.removed = true
	n.links.Close()
	return n.ns.Close()
}

// open opens netlink in the namespace and marks the loopback interface.
func (n *Node) open(lab string) error {
	links, err := netlink.NewHandleAt(n.ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	n.links = links
	lo, err := links.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := links.LinkSetAlias(lo, mark(lab)); err != nil {
		return fmt.Errorf("mark lo: %w", err)
	}
	if err := links.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// mark is the alias of the loopback interface in every namespace of a lab: the
// proof that the namespace may be removed.
func mark(lab string) string { return "flannel-lab " + lab }

// remove gives the node's descriptors back and deletes the namespace's name.
func (n *Node) remove() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.removed = true
	if n.links != nil {
		n.links.Close()
	}
	return errors.Join(n.ns.Close(), deleteNamespace(n.Name))
}

// deleteNamespace removes a namespace's name; the namespace goes with its last
// process and socket. One that is gone is no failure.
func deleteNamespace(name string) error {
	err := netns.DeleteNamed(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete namespace %s: %w", name, err)
	}
	return nil
}

// onOwnThread runs f on a thread that ends with it. A thread that changed its
// namespace must never run anything else, so it is not unlocked: the runtime
// then ends it with its goroutine. The main thread alone it keeps as it is, and in a
// namespace that would hold it until the process ends: f runs on another then.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			defer runtime.UnlockOSThread()
			done <- onOwnThread(f)
			return
		}
		done <- f()
	}()
	return <-done
}

// Do runs f on a thread inside the namespace. Sockets opened and processes
// started by f itself belong to the namespace for ever; goroutines that f
// starts do not. ErrRemoved: there is no namespace any more.
func (n *Node) Do(f func() error) error {
	return onOwnThread(func() error {
		if err := n.enter(); err != nil {
			return fmt.Errorf("enter namespace %s: %w", n.Name, err)
		}
		return f()
	})
}

func (n *Node) enter() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.removed {
		return ErrRemoved
	}
	return netns.Set(n.ns)
}

// Links is rtnetlink inside the namespace. It is safe for concurrent use.
func (n *Node) Links() *netlink.Handle { return n.links }

// Listen opens a TCP listener inside the namespace.
func (n *Node) Listen(addr netip.AddrPort) (*net.TCPListener, error) {
	var ln *net.TCPListener
	err := n.Do(func() error {
		var err error
		ln, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
		return err
	})
	return ln, err
}

// Dial opens a TCP connection from inside the namespace.
func (n *Node) Dial(ctx context.Context, addr netip.AddrPort) (*net.TCPConn, error) {
	var conn *net.TCPConn
	err := n.Do(func() error {
		var err error
		conn, err = new(net.Dialer).DialTCP(ctx, "tcp", netip.AddrPort{}, addr)
		return err
	})
	return conn, err
}
