package systemd

import (
	"fmt"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Notifier tells the service manager about this process (sd_notify(3)). The
// zero value is ready for use; the methods read the environment at each call
// and may be called concurrently.
type Notifier struct{}

// Ready says that the service is up, which starts the units ordered after it,
// and sets the status.
func (n Notifier) Ready(status string) error {
	return n.send("ready", daemon.SdNotifyReady, statusLine(status))
}

// Status sets the line that `systemctl status` shows.
func (n Notifier) Status(status string) error { return n.send("status", statusLine(status)) }

// Stopping says that the service is going down, and sets the status.
func (n Notifier) Stopping(status string) error {
	return n.send("stopping", daemon.SdNotifyStopping, statusLine(status))
}

// Ping says that the service is alive.
func (n Notifier) Ping() error { return n.send("watchdog", daemon.SdNotifyWatchdog) }

// WatchdogInterval returns how often to Ping: half of the time after which the
// service manager aborts a silent service. Zero: it does not watch.
func (n Notifier) WatchdogInterval() (time.Duration, error) {
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return 0, fmt.Errorf("read watchdog interval: %w", err)
	}
	return limit / 2, nil
}

// send sends all assignments in one datagram, so that the status is never that
// of another state.
func (n Notifier) send(what string, assignments ...string) error {
	if _, err := daemon.SdNotify(false, strings.Join(assignments, "\n")); err != nil {
		return fmt.Errorf("notify %s: %w", what, err)
	}
	return nil
}

// statusLine is the assignment of a status. A newline in it would begin another
// one.
func statusLine(status string) string {
	return "STATUS=" + strings.Join(strings.FieldsFunc(status, func(r rune) bool { return r < ' ' }), " ")
}
