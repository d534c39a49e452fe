package subnet

import (
	"encoding/binary"
	"os"
	"sync"
	"syscall"
	"time"
)

// jump is by how much this process's clocks differ from the machine's.
type jump struct{ wall, boot time.Duration }

// jumpFile is the file that says so, in 16 bytes: two signed numbers of
// nanoseconds, little-endian.
var jumpFile = sync.OnceValue(func() int {
	fd, err := syscall.Open(os.Getenv("FLANNEL_TEST_CLOCK"), syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	return fd
})

// jumped reads it anew each time. Without a file the clocks are the machine's.
func jumped() jump {
	var b [16]byte
	if n, err := syscall.Pread(jumpFile(), b[:], 0); err != nil || n != len(b) {
		return jump{}
	}
	return jump{
		wall: time.Duration(binary.LittleEndian.Uint64(b[:8])),
		boot: time.Duration(binary.LittleEndian.Uint64(b[8:])),
	}
}
