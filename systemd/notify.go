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

// Ready says that the service is up, which starts the units ordered after it.
func (n Notifier) Ready() error { return n.send("ready", daemon.SdNotifyReady) }

// Stopping says that the service is going down.
func (n Notifier) Stopping() error { return n.send("stopping", daemon.SdNotifyStopping) }

// Ping says that the service is alive.
func (n Notifier) Ping() error { return n.send("watchdog", daemon.SdNotifyWatchdog) }

// Status sets the line that `systemctl status` shows.
func (n Notifier) Status(text string) error {
	line := strings.FieldsFunc(text, func(r rune) bool { return r < ' ' }) // a newline would begin another assignment
	return n.send("status", "STATUS="+strings.Join(line, " "))
}

// WatchdogInterval returns how often to Ping: half of the time after which the
// service manager aborts a silent service. Zero: it does not watch.
func (n Notifier) WatchdogInterval() (time.Duration, error) {
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return 0, fmt.Errorf("read watchdog interval: %w", err)
	}
	return limit / 2, nil
}

// send sends one assignment.
func (n Notifier) send(what, assignment string) error {
	if _, err := daemon.SdNotify(false, assignment); err != nil {
		return fmt.Errorf("notify %s: %w", what, err)
	}
	return nil
}
