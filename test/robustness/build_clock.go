package robustness

import (
	"encoding/binary"
	"fmt"
	"os"
	"time"
)

// clockEnv names, to a daemon, the file that its clock reads.
const clockEnv = "FLANNEL_TEST_CLOCK"

// clockFile makes one daemon's clocks differ from the machine's.
type clockFile struct {
	path       string
	wall, boot time.Duration
}

// newClockFile makes a file that changes nothing.
func newClockFile(path string) (*clockFile, error) {
	c := &clockFile{path: path}
	return c, c.jump(0, 0)
}

// jump adds to both differences. The daemon sees it at its next look at the
// clock: the 16 bytes are written in place and at once.
func (c *clockFile) jump(wall, boot time.Duration) error {
	c.wall += wall
	c.boot += boot
	b := binary.LittleEndian.AppendUint64(nil, uint64(c.wall))
	b = binary.LittleEndian.AppendUint64(b, uint64(c.boot))
	f, err := os.OpenFile(c.path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("set clock: %w", err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, 0); err != nil {
		return fmt.Errorf("set clock: %w", err)
	}
	return nil
}
