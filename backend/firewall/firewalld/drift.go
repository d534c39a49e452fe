package firewalld

import (
	"context"
	"time"

	"github.com/godbus/dbus/v5"
)

// reconnect is how often a bus is looked for that is not there.
const reconnect = 5 * time.Second

// Drift yields a value when firewalld may have lost our rules since the last one
// was taken: after a reload, and when it starts. The channel is closed when ctx
// has ended.
func (c *Client) Drift(ctx context.Context) <-chan struct{} {
	out := make(chan struct{}, 1)
	go func() {
		defer close(out)
		for ctx.Err() == nil {
			c.listen(ctx, func() {
				select {
				case out <- struct{}{}:
				default: // one that nobody has taken yet says the same
				}
			})
			pause := time.NewTimer(reconnect)
			select {
			case <-pause.C:
			case <-ctx.Done():
				pause.Stop()
			}
		}
	}()
	return out
}

// starting is how long firewalld may take to start.
const starting = time.Minute

// awaitStart returns when a firewalld that has just taken its name has written its
// rules, or has gone: before that there is no table to tell that it is here. It
// answers nobody until then.
func awaitStart(ctx context.Context, conn *dbus.Conn) {
	ctx, cancel := context.WithTimeout(ctx, starting)
	defer cancel()
	fw := &door{conn, busName}
	_, _ = fw.state(ctx) // whatever the answer is, Apply asks again
}

// listen passes signals on until ctx ends or the bus does.
func (c *Client) listen(ctx context.Context, signal func()) {
	conn, err := c.connect(ctx)
	if err != nil {
		if !isAbsent(err) {
			c.log.DebugContext(ctx, "system bus does not answer", "error", err)
		}
		return
	}
	defer func() { _ = conn.Close() }() // nothing was written
	heard := make(chan *dbus.Signal, 16)
	conn.Signal(heard)
	for _, match := range [][]dbus.MatchOption{
		{dbus.WithMatchSender(busName), dbus.WithMatchInterface(ifaceRuntime), dbus.WithMatchMember("Reloaded")},
		{
			dbus.WithMatchSender("org.freedesktop.DBus"), dbus.WithMatchInterface("org.freedesktop.DBus"),
			dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchOption("arg0", busName),
		},
	} {
		if err := conn.AddMatchSignalContext(ctx, match...); err != nil {
			c.log.DebugContext(ctx, "system bus refuses to tell", "error", err)
			return
		}
	}
	// What happened before we listened.
	signal()
	for {
		select {
		case s, ok := <-heard:
			if !ok {
				return
			}
			switch s.Name {
			case ifaceRuntime + ".Reloaded":
				signal()
			case "org.freedesktop.DBus.NameOwnerChanged":
				awaitStart(ctx, conn)
				signal()
			default: // the bus greets us
			}
		case <-ctx.Done():
			return
		}
	}
}
