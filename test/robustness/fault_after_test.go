package robustness

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestConsequences(t *testing.T) {
	const ttl = 6 * time.Second
	at := func(kind FaultKind, from, until float64, to ...string) deed {
		return deed{
			Fault: Fault{Kind: kind, From: time.Duration(from * float64(time.Second)), Until: time.Duration(until * float64(time.Second)), To: to},
		}
	}
	off := func(d deed, hosts ...string) deed {
		d.Unreachable = hosts
		return d
	}
	as := func(d deed, variant string) deed {
		d.variant = variant
		return d
	}
	slow := func(d deed, milliseconds time.Duration) deed {
		d.delay = milliseconds * time.Millisecond
		return d
	}
	for name, tc := range map[string]struct {
		deeds []deed
		want  []string
	}{
		"nothing":                       {nil, nil},
		"a short kill":                  {[]deed{at(FaultKill, 10, 12, "a")}, nil},
		"a long one":                    {[]deed{at(FaultKill, 10, 14, "a")}, []string{"silence a 13s-14s"}},
		"a long one, then no quorum":    {[]deed{at(FaultKill, 10, 14, "a"), off(at(FaultDown, 15, 30), "a", "b")}, []string{"silence a 13s-30s"}},
		"a long one, later no quorum":   {[]deed{at(FaultKill, 10, 14, "a"), off(at(FaultDown, 16, 30), "a", "b")}, []string{"silence a 13s-14s"}},
		"two short ones in a row":       {[]deed{at(FaultKill, 10, 12, "a"), off(at(FaultCut, 13, 15), "a")}, []string{"silence a 13s-15s"}},
		"two short ones apart":          {[]deed{at(FaultKill, 10, 12, "a"), off(at(FaultCut, 15, 17), "a")}, nil},
		"two hosts":                     {[]deed{at(FaultKill, 10, 12, "a"), at(FaultKill, 12, 14, "b")}, nil},
		"etcd starved":                  {[]deed{off(at(faultStarved, 10, 14), "a", "b")}, []string{"silence a 13s-14s", "silence b 13s-14s"}},
		"etcd starved shortly":          {[]deed{off(at(faultStarved, 10, 13), "a", "b")}, nil},
		"etcd starved, then cut off":    {[]deed{off(at(faultStarved, 10, 12), "a", "b"), off(at(FaultCut, 13, 15), "a")}, []string{"silence a 13s-15s"}},
		"no quorum":                     {[]deed{off(at(FaultMajority, 10, 30), "a", "b")}, nil},
		"a start without config":        {[]deed{at(FaultKill, 10, 11, "a"), at(FaultNoConfig, 9, 14)}, []string{"silence a 13s-14s"}},
		"a start with a bad config":     {[]deed{at(FaultStop, 10, 11, "a"), as(at(FaultConfig, 9, 14), variantInvalid)}, []string{"silence a 13s-14s"}},
		"a start with a harmless one":   {[]deed{at(FaultStop, 10, 11, "a"), as(at(FaultConfig, 9, 14), variantHarmless)}, nil},
		"a start with another range":    {[]deed{at(FaultStop, 10, 11, "a"), as(at(FaultConfig, 9, 14), variantRange)}, []string{"loss a 11s-14s"}},
		"a key deleted":                 {[]deed{at(FaultDelete, 10, 10, "a")}, nil},
		"a key deleted of one cut off":  {[]deed{at(FaultDelete, 10, 10, "a"), off(at(FaultCut, 9, 11), "a")}, []string{"loss a 10s-11s"}},
		"cut off again and again":       {[]deed{at(FaultDelete, 10, 10, "a"), off(at(FaultCut, 9, 11), "a"), off(at(FaultBlock, 12, 14), "a"), off(at(FaultBlock, 17, 18), "a")}, []string{"loss a 10s-14s", "silence a 12s-14s"}},
		"a key deleted of a slow one":   {[]deed{at(FaultDelete, 10, 10, "a"), slow(at(FaultSlow, 9, 14, "a"), 250)}, []string{"loss a 10s-14s"}},
		"and of one not so slow":        {[]deed{at(FaultDelete, 10, 10, "a"), slow(at(FaultSlow, 9, 14, "a"), 200)}, nil},
		"and beside a slow one":         {[]deed{at(FaultDelete, 10, 10, "a"), slow(at(FaultSlow, 9, 14, "b"), 250)}, nil},
		"cut off just after":            {[]deed{at(FaultDelete, 10, 10, "a"), off(at(FaultCut, 11, 12), "a")}, []string{"loss a 10s-12s"}},
		"cut off much later":            {[]deed{at(FaultDelete, 10, 10, "a"), off(at(FaultCut, 12, 13), "a")}, nil},
		"cut off before":                {[]deed{at(FaultDelete, 10, 10, "a"), off(at(FaultCut, 9, 10), "a")}, nil},
		"another's key deleted":         {[]deed{at(FaultDelete, 10, 10, "b"), off(at(FaultCut, 9, 11), "a")}, nil},
		"a key revoked without space":   {[]deed{at(FaultRevoke, 10, 10, "a"), off(at(FaultNoSpace, 9, 13), "a", "b")}, []string{"loss a 10s-13s"}},
		"a key deleted while down":      {[]deed{at(FaultDelete, 10, 10, "a"), at(FaultKill, 9, 11, "a")}, []string{"loss a 10s-11s"}},
		"a wipe":                        {[]deed{off(at(FaultWipe, 10, 11), "a", "b")}, nil},
		"a wipe, and down shortly":      {[]deed{at(FaultWipe, 10, 11), at(FaultKill, 10.5, 13, "a")}, nil},
		"a wipe, and cut off for long":  {[]deed{at(FaultWipe, 10, 11), off(at(FaultSlow, 9, 15), "a")}, []string{"loss a 16s-16.5s"}},
		"a wipe, then another range":    {[]deed{at(FaultWipe, 10, 11), as(at(FaultConfig, 11.5, 13), variantRange)}, []string{"loss a 10s-13s", "loss b 10s-13s"}},
		"a restore, then another range": {[]deed{at(FaultRestore, 10, 11), as(at(FaultConfig, 12, 13), variantRange)}, []string{"loss a 10s-13s", "loss b 10s-13s"}},
		"a wipe, later another range":   {[]deed{at(FaultWipe, 10, 11), as(at(FaultConfig, 13, 14), variantRange)}, nil},
		"a jump just after a wipe":      {[]deed{at(FaultWipe, 10, 11), as(at(FaultClock, 11.1, 11.2, "a"), variantBoot)}, []string{"loss a 10s-12.5s"}},
		"and somebody not back":         {[]deed{at(FaultWipe, 10, 11), as(at(FaultClock, 11.1, 11.2, "a"), variantBoot), off(at(FaultCut, 9, 13), "b")}, []string{"loss a 10s-14.5s", "silence b 12s-13s"}},
		"a wall clock's jump":           {[]deed{at(FaultWipe, 10, 11), as(at(FaultClock, 11.1, 11.2, "a"), variantWall)}, nil},
		"a jump some time after a wipe": {[]deed{at(FaultWipe, 10, 11), as(at(FaultClock, 13, 13.1, "a"), variantBoot)}, nil},
		"a jump beside a deleted key":   {[]deed{at(FaultDelete, 10, 10, "b"), as(at(FaultClock, 11.1, 11.2, "a"), variantBoot)}, []string{"loss a 10s-11.5s"}},
		"a long wipe":                   {[]deed{off(at(FaultWipe, 10, 18), "a", "b")}, []string{"loss a 16s-19.5s", "loss b 16s-19.5s"}},
		"a wipe of just below a TTL":    {[]deed{off(at(FaultWipe, 10, 14.5), "a", "b")}, nil},
		"a key deleted before a wipe":   {[]deed{at(FaultDelete, 10, 10, "a"), at(FaultWipe, 11, 12)}, []string{"loss a 10s-12s"}},
		"a key deleted after a wipe":    {[]deed{at(FaultDelete, 13, 13, "a"), at(FaultWipe, 11, 12)}, nil},
		"a follower asleep":             {[]deed{off(as(at(FaultMemberPause, 10, 20), variantFollower), "a", "b")}, nil},
		"a leader asleep":               {[]deed{off(as(at(FaultMemberPause, 10, 20), variantLeader), "a", "b")}, nil},
		"a leader wakes up, cut off":    {[]deed{off(as(at(FaultMemberPause, 10, 20), variantLeader), "a", "b"), off(at(FaultCut, 21, 22), "a")}, []string{"loss a 10s-22s"}},
		"overwritten in a full pool":    {[]deed{at(FaultOverwrite, 10, 12, "a"), at(FaultExhaust, 11, 16, "b")}, []string{"loss a 10s-16s", "loss b 11s-16s"}},
		"a start beside a wiped config": {[]deed{at(FaultKill, 10, 11, "a"), at(FaultWipe, 10.5, 15)}, []string{"silence a 13s-15s"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, f := range consequences(tc.deeds, []string{"a", "b"}, ttl) {
				got = append(got, fmt.Sprintf("%s %s %s-%s", f.Kind, f.Hosts[0], f.From, f.Until))
			}
			slices.Sort(got)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
