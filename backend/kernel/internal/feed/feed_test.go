package feed_test

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend/kernel/internal/feed"
)

func TestFeed(t *testing.T) {
	const overrun = "overrun"
	for name, tc := range map[string]struct{ add, want []string }{
		"in order of arrival":                       {[]string{"b", "a", "c"}, []string{"b", "a", "c"}},
		"equal ones are one":                        {[]string{"a", "b", "a", "a"}, []string{"a", "b"}},
		"as many as there is room for":              {[]string{"a", "b", "c", "c"}, []string{"a", "b", "c"}},
		"too many are an overrun":                   {[]string{"a", "b", "c", "d", "e"}, []string{overrun}},
		"an overrun says more than what it follows": {[]string{"a", overrun, "b"}, []string{overrun}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := feed.New(overrun, 3)
				for _, e := range tc.add {
					f.Add(e)
				}
				ctx, cancel := context.WithCancel(t.Context())
				out := make(chan string)
				go func() {
					defer close(out)
					f.Run(ctx, out)
				}()
				var got []string
				for range tc.want {
					got = append(got, <-out)
				}
				if d := cmp.Diff(tc.want, got); d != "" {
					t.Errorf("events (-want +got):\n%s", d)
				}
				synctest.Wait()
				select {
				case e := <-out:
					t.Errorf("one more: %s", e)
				default:
				}
				f.Add("later")
				if e := <-out; e != "later" {
					t.Errorf("got %s, want later", e)
				}
				f.Add("never taken")
				synctest.Wait()
				cancel()
				if e, open := <-out; open {
					t.Errorf("got %s after the end", e)
				}
			})
		})
	}
}
