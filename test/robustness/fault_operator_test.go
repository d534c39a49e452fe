package robustness

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Only what other faults do refuses a fault; all else is the run's own failure.
func TestInsist(t *testing.T) {
	broken := errors.New("flannelctl is broken")
	for name, tc := range map[string]struct {
		// tries are what one try after the other comes to; the last one stays.
		tries []error
		want  string
	}{
		"done":                      {[]error{nil}, "done"},
		"done at last":              {[]error{errRaced, rpctypes.ErrNoLeader, nil}, "done"},
		"no key":                    {[]error{errNoKey}, "refused at once"},
		"no lease":                  {[]error{errNoLease}, "refused at once"},
		"raced again and again":     {[]error{errRaced}, "refused"},
		"ruled out by the config":   {[]error{lost(errRuledOut)}, "refused, may be done"},
		"no space":                  {[]error{lost(rpctypes.ErrNoSpace)}, "refused"},
		"nobody listens":            {[]error{status.Error(codes.Unavailable, "connection refused")}, "refused"},
		"no answer to a write":      {[]error{lost(context.DeadlineExceeded)}, "refused, may be done"},
		"an answer got lost, raced": {[]error{lost(rpctypes.ErrTimeout), errRaced}, "refused, may be done"},
		"lost, then no key":         {[]error{lost(rpctypes.ErrTimeout), errNoKey}, "refused, may be done at once"},
		"something else":            {[]error{broken}, "failed at once"},
		"a write, something else":   {[]error{fmt.Errorf("reserve: %w", lost(broken))}, "failed at once"},
		"etcd says that it is ours": {[]error{lost(rpctypes.ErrEmptyKey)}, "failed at once"},
		"no access":                 {[]error{rpctypes.ErrPermissionDenied}, "failed at once"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began, n := time.Now(), 0
				err := new(trial).operate(t.Context(), func(context.Context) error {
					n++
					return tc.tries[min(n, len(tc.tries))-1]
				})
				got := "failed"
				switch refused, failed := refusals(err); {
				case err == nil:
					got = "done"
				case failed == nil && refused[0].open:
					got = "refused, may be done"
				case failed == nil:
					got = "refused"
				}
				if err != nil && time.Since(began) < operateWithin {
					got += " at once"
				}
				if got != tc.want {
					t.Errorf("%s, want %s: %v", got, tc.want, err)
				}
			})
		})
	}
}

func TestRefusals(t *testing.T) {
	refused, broken := &refusedError{err: errNoKey}, errors.New("broken")
	for name, tc := range map[string]struct {
		err     error
		refused int
		failed  bool
	}{
		"nothing":             {nil, 0, false},
		"refused":             {refused, 1, false},
		"refused by two":      {errors.Join(refused, refused), 2, false},
		"within":              {fmt.Errorf("do: %w", refused), 1, false},
		"failed":              {broken, 0, true},
		"refused and failed":  {errors.Join(refused, errors.Join(refused, broken)), 2, true},
		"a cause of its own":  {fmt.Errorf("read: %w", errNoKey), 0, true},
		"both, in a sentence": {fmt.Errorf("%w, and so %w", broken, refused), 1, true},
	} {
		got, failed := refusals(tc.err)
		if len(got) != tc.refused || (failed != nil) != tc.failed {
			t.Errorf("%s: %d refused, %v", name, len(got), failed)
		}
	}
}

// What was refused excuses nobody, unless it may have been done.
func TestRefusedDeeds(t *testing.T) {
	no, open := &refusedError{err: errNoKey}, &refusedError{err: errRaced, open: true}
	for name, tc := range map[string]struct {
		refused []*refusedError
		partly  bool
		void    bool
	}{
		"done":                     {nil, false, false},
		"refused":                  {[]*refusedError{no}, false, true},
		"refused by all":           {[]*refusedError{no, no}, false, true},
		"done to another":          {[]*refusedError{no}, true, false},
		"perhaps done to another":  {[]*refusedError{no, open}, false, false},
		"perhaps done":             {[]*refusedError{open}, false, false},
		"perhaps done, or another": {[]*refusedError{open}, true, false},
	} {
		d := deed{
			Fault:  Fault{Kind: FaultConfig, Until: time.Second, Hosts: []string{"a"}, Every: true, Unreachable: []string{"a"}, To: []string{"a", "b"}},
			partly: tc.partly, variant: variantRange,
		}
		d.refuse(tc.refused)
		excuses := len(d.Hosts) > 0 || d.Every || len(d.Unreachable) > 0 || len(d.To) > 0
		if d.void != tc.void || excuses == tc.void || (d.Err != "") != (len(tc.refused) > 0) {
			t.Errorf("%s: %+v", name, d)
		}
		stop := deed{Fault: Fault{Kind: FaultStop, To: []string{"a"}}}
		if got := len(consequences([]deed{stop, d}, []string{"a"}, time.Second)); (got == 0) != tc.void {
			t.Errorf("%s: %d consequences", name, got)
		}
	}
	d := deed{Fault: Fault{Hosts: []string{"b", "a"}, To: []string{"a", "b", "c"}}}
	d.spare("a")
	if diff := cmp.Diff([][]string{{"b"}, {"b", "c"}}, [][]string{d.Hosts, d.To}); diff != "" {
		t.Errorf("a is spared (-want +got):\n%s", diff)
	}
}

func TestFutile(t *testing.T) {
	tr := new(trial)
	for range severalTimes {
		tr.count(FaultReserve, true)
		tr.count(FaultDelete, true)
	}
	tr.count(FaultDelete, false)
	for range severalTimes - 1 {
		tr.count(FaultRevoke, true)
	}
	err := tr.futile()
	want := fmt.Sprintf("%v: %s, %d times", errFutile, FaultReserve, severalTimes)
	if !errors.Is(err, errFutile) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// Asked again for the same, flannelctl does one deed.
func TestAnnounce(t *testing.T) {
	tr := &trial{rec: new(recorder)}
	for range 3 {
		tr.announce("subnets/a")
		tr.announce("subnets/b")
	}
	if len(tr.reserved) != 2 {
		t.Errorf("%d deeds, want 2: %+v", len(tr.reserved), tr.reserved)
	}
	tr.reserved[0].at -= reserveWithin + time.Minute
	tr.announce("subnets/a")
	if len(tr.reserved) != 3 {
		t.Errorf("%d deeds, want another one: %+v", len(tr.reserved), tr.reserved)
	}
}
