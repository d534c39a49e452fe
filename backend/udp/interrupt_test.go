package udp

import (
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A process that is stopped for longer than the loops have to write what they have read,
// as by a busy machine, gives them their time when it goes on: else packets are lost.
func TestInterruptWaitsForStoppedLoops(t *testing.T) {
	l := newLab()
	l.devices.put()
	l.outlets = newOutlets() // nothing to end
	begun, done, returned := make(chan struct{}), make(chan struct{}), make(chan struct{})
	ended := make(chan struct{}, 2)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	go func() {
		defer close(returned)
		close(begun)
		interrupt([]*path{&l.path}, ended)
	}()
	<-begun
	runtime.Gosched() // it waits
	stopAll(t, interruptGrace+100*time.Millisecond)
	go func() {
		defer close(done)
		<-time.After(10 * time.Millisecond) // as long as it takes to write
		for range 2 {
			ended <- struct{}{}
		}
	}()
	<-returned
	select {
	case <-done:
	default:
		t.Error("it did not wait")
	}
	<-done
}

// stopAll keeps the only core that Go's scheduler has for so long, in a call that it is not
// told of and that its signals do not end.
func stopAll(t *testing.T, d time.Duration) {
	t.Helper()
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.TimerfdSettime(fd, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(d.Nanoseconds())}, nil); err != nil {
		t.Fatal(err)
	}
	var expired [8]byte
	if _, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&expired[0])), 8); errno != 0 {
		t.Fatal(errno)
	}
}
