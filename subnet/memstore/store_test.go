package memstore

import (
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld-go/flanneld-go/subnet"
)

func testLease() subnet.Lease {
	return subnet.Lease{
		Subnet: subnet.Subnet{subnet.IPv4: netip.MustParsePrefix("10.5.1.0/24")},
		Attrs:  subnet.Attrs{Owner: "node"},
	}
}

// A lease of a day lives exactly a day behind its last renewal, and the test a
// moment.
func TestLeaseExpiresToTheMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const day = 24 * time.Hour
		s := New(Options{})
		w, err := s.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l, err := s.Create(t.Context(), testLease(), day, w)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(day - time.Nanosecond)
		if l, err = s.Renew(t.Context(), l); err != nil {
			t.Fatalf("Renew in the last moment: %v", err)
		}
		time.Sleep(day - time.Nanosecond)
		synctest.Wait()
		if w, _ = s.Load(t.Context()); len(w.Leases) != 1 {
			t.Error("expired before its time")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if w, _ = s.Load(t.Context()); len(w.Leases) != 0 {
			t.Error("lives beyond its time")
		}
		if _, err := s.Renew(t.Context(), l); !errors.Is(err, subnet.ErrLeaseLost) {
			t.Errorf("Renew of an expired lease: %v, want %v", err, subnet.ErrLeaseLost)
		}
	})
}

func TestUnavailableConcernsOneHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := errors.New("cable is out")
		a := New(Options{})
		b := a.Open(Options{})
		w, err := a.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error)
		go func() {
			for _, err := range a.Watch(t.Context(), w.Revision) {
				if err != nil {
					ended <- err
				}
			}
		}()
		synctest.Wait()
		a.SetUnavailable(down)
		if err := <-ended; !errors.Is(err, down) {
			t.Errorf("Watch = %v, want %v", err, down)
		}
		if _, err := a.Create(t.Context(), testLease(), 0, w); !errors.Is(err, down) {
			t.Errorf("Create = %v, want %v", err, down)
		}
		if _, err := b.Create(t.Context(), testLease(), 0, w); err != nil {
			t.Errorf("Create by another host: %v", err)
		}
		a.SetUnavailable(nil)
		if w, err = a.Load(t.Context()); err != nil || len(w.Leases) != 1 {
			t.Errorf("Load = %+v, %v, want the other's lease", w, err)
		}
	})
}

// Before refuses a call; After takes away the answer of one that was done.
func TestHooks(t *testing.T) {
	lost := errors.New("answer lost")
	var refuse, lose string
	hook := func(which *string) func(string) error {
		return func(method string) error {
			if method == *which {
				return lost
			}
			return nil
		}
	}
	s := New(Options{Before: hook(&refuse), After: hook(&lose)})
	w, err := s.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name         string
		refuse, lose string
		want         int
	}{{"before", "Create", "", 0}, {"after", "", "Create", 1}} {
		refuse, lose = c.refuse, c.lose
		if _, err := s.Create(t.Context(), testLease(), 0, w); !errors.Is(err, lost) {
			t.Errorf("%s: Create = %v, want %v", c.name, err, lost)
		}
		if w, _ := s.Load(t.Context()); len(w.Leases) != c.want {
			t.Errorf("%s: %d leases, want %d", c.name, len(w.Leases), c.want)
		}
	}
	refuse = "Watch"
	for _, err := range s.Watch(t.Context(), w.Revision) {
		if !errors.Is(err, lost) {
			t.Errorf("Watch = %v, want %v", err, lost)
		}
	}
}

func TestPutNeedsTheLease(t *testing.T) {
	s := New(Options{})
	if _, err := s.Put("10.5.1.0-24", "{}", 7); err == nil {
		t.Error("Put under a lease that does not exist succeeds")
	}
	id := s.Grant(time.Hour)
	before := s.Revision()
	rev, err := s.Put("10.5.1.0-24", "{}", id)
	if err != nil || rev != before+1 {
		t.Errorf("Put = %d, %v, want %d", rev, err, before+1)
	}
	if got := s.Revoke(id); got != rev+1 {
		t.Errorf("Revoke = %d, want %d", got, rev+1)
	}
	if got := s.DeleteKey("10.5.1.0-24"); got != rev+1 {
		t.Errorf("DeleteKey of nothing = %d, want %d", got, rev+1)
	}
	if a, b := s.OverwriteConfig("{}"), s.DeleteConfig(); b != a+1 {
		t.Errorf("DeleteConfig = %d after %d", b, a)
	}
}
