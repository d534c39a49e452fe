package lab

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// softnet has a line per CPU, in hexadecimal: packets received, and dropped since
// more than net.core.netdev_max_backlog were waiting (net/core/net-procfs.c). It
// is the same in every namespace.
const softnet = "/proc/net/softnet_stat"

// MachineDrops is how many packets this machine has dropped since its boot because
// a CPU's queue overflowed while nobody was given time. No lost ping between two
// counts that differ proves anything.
func MachineDrops() (uint64, error) {
	text, err := os.ReadFile(softnet)
	if err != nil {
		return 0, fmt.Errorf("count the machine's drops: %w", err)
	}
	return softnetDrops(string(text))
}

// softnetDrops returns the sum of all CPUs' dropped packets in the text of softnet.
func softnetDrops(text string) (uint64, error) {
	var sum uint64
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			return 0, fmt.Errorf("%s: %q: want at least two columns", softnet, line)
		}
		n, err := strconv.ParseUint(fields[1], 16, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", softnet, err)
		}
		sum += n
	}
	if text == "" {
		return 0, errors.New(softnet + " is empty")
	}
	return sum, nil
}
