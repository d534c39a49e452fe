package udp

import "time"

// interruptible is a Device or Conn whose reads can be ended while what was read
// can still be written.
type interruptible interface {
	// endReads makes the pending Read and all later ones fail.
	endReads() error
}

// interruptGrace is how long the loops may take to write what they have read: it
// is over at once, unless the socket's buffer is full. It passes in pieces: who was stopped
// meanwhile, with the loops, finds one of them over and not all.
const interruptGrace, interruptPieces = time.Second, 20

// interrupt ends the reads and waits until each of the two loops of all paths has
// said in ended that it is through. A packet that was read and not written is lost,
// while one that waits in the kernel may be kept there for the next process: so
// closing comes last. It is what ends the loops where one cannot be interrupted, or
// is closed already.
func interrupt(paths []*path, ended <-chan struct{}) {
	for _, p := range paths {
		reads := []any{p.devices.get(p.queue)}
		for _, o := range p.outlets.load().in(p.queue) {
			reads = append(reads, o.conn)
		}
		for _, x := range reads {
			if x == nil {
				continue
			}
			if i, ok := x.(interruptible); !ok || i.endReads() != nil {
				return
			}
		}
	}
	piece := time.NewTicker(interruptGrace / interruptPieces) // which drops ticks that nobody takes
	defer piece.Stop()
	for loops, pieces := 2*len(paths), interruptPieces; loops > 0 && pieces > 0; {
		select {
		case <-ended:
			loops--
		case <-piece.C:
			pieces--
		}
	}
}

func (t *tun) endReads() error { return t.raw.endReads() }

func (s *socket) endReads() error { return s.raw.endReads() }
