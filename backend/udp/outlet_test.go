package udp

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// Sockets that are opened when a path is to end are another run's: nobody ends its reads of
// those, and it would wait for their packets for good.
func TestEndedPathReadsNothingNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		go func() { l.ended <- l.receiveLoop(ctx) }()
		synctest.Wait()
		select {
		case err := <-l.ended:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
		default:
			t.Error("it reads")
			l.conn.Close()
			<-l.ended
		}
	})
}
