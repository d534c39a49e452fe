package subnet_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// Whatever hosts, flannels and operators do: no two live keys of ours overlap,
// and every one that was created fits the config of that moment.
func TestAcquireRandomWalk(t *testing.T) {
	configs := []string{
		`{"Network":"10.5.0.0/26","SubnetLen":29}`,
		`{"Network":"10.5.0.0/26","SubnetLen":30}`,
		`{"Network":"10.5.0.0/26","SubnetLen":29,"SubnetMin":"10.5.0.16","SubnetMax":"10.5.0.40"}`,
		`{"Network":"10.5.0.0/26","SubnetLen":29,"EnableIPv6":true,"IPv6Network":"fd05::/60"}`,
	}
	rapid.Check(t, func(t *rapid.T) {
		walk(t, configs)
	})
}

// walk is one run of it. Leases last for a day, so none expires meanwhile.
func walk(t *rapid.T, configs []string) {
	ctx := context.Background()
	s := newStore(configs[0])
	defer s.Wipe()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	worlds := map[string]subnet.World{}
	t.Repeat(map[string]func(*rapid.T){
		"": func(t *rapid.T) {
			w, err := s.Load(ctx)
			must(err)
			for i, a := range w.Leases {
				for _, b := range w.Leases[:i] {
					if a.Subnet.Overlaps(b.Subnet) && a.Attrs.Owner != "" && b.Attrs.Owner != "" {
						t.Fatalf("%s of %s overlaps %s of %s", a.Subnet, a.Attrs.Owner, b.Subnet, b.Attrs.Owner)
					}
				}
			}
		},
		"config": func(t *rapid.T) { s.OverwriteConfig(rapid.SampledFrom(configs).Draw(t, "config")) },
		"load": func(t *rapid.T) {
			w, err := s.Load(ctx)
			must(err)
			worlds[rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "node")] = w
		},
		"acquire": func(t *rapid.T) {
			node := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "node")
			w, ok := worlds[node]
			if !ok {
				t.Skip("has not read anything")
			}
			c := claim(node, "198.18.0."+fmt.Sprint(node[0]))
			for i := range rapid.IntRange(0, 2).Draw(t, "previous") {
				p, err := subnet.ParseSubnet(rapid.SampledFrom([]string{"10.5.0.8-29", "10.5.0.16-30", "10.5.0.24-29", "10.5.0.8-29&fd05:0:0:1::-64", "10.5.0.8-29&fd05:0:0:2::-64"}).Draw(t, fmt.Sprint("previous", i)))
				must(err)
				c.Previous = append(c.Previous, p)
			}
			l, err := subnet.Acquire(ctx, s, w, c)
			var exhausted *subnet.ExhaustedError
			switch {
			case errors.As(err, &exhausted), errors.Is(err, subnet.ErrConfigChanged), errors.Is(err, subnet.ErrLeaseLost):
				return
			case err != nil:
				t.Fatal(err)
			}
			now, err := s.Load(ctx)
			must(err)
			cfg, err := subnet.ParseConfig(w.Config.Text)
			must(err)
			if !cfg.Pool().Fits(l.Subnet) || l.Created > w.Revision && (!cfg.Pool().Contains(l.Subnet) || now.Config != w.Config) {
				t.Fatalf("%s leased %s although the config is %s", node, l.Subnet, w.Config.Text)
			}
		},
		"flannel": func(t *rapid.T) {
			s := s
			key := rapid.SampledFrom([]string{"10.5.0.32-29", "10.5.0.40-30", "10.5.0.48-29&fd05:0:0:3::-64"}).Draw(t, "key")
			w, err := s.Load(ctx)
			must(err)
			p, err := subnet.ParseSubnet(key)
			must(err)
			if slices.ContainsFunc(w.Leases, func(l subnet.Lease) bool { return l.Subnet.Overlaps(p) }) {
				t.Skip("flannel does not overlap on purpose")
			}
			value, err := json.Marshal(attrs("", "198.18.9.9"))
			must(err)
			_, err = s.Put(key, string(value), s.Grant(24*time.Hour))
			must(err)
		},
		"delete": func(t *rapid.T) {
			w, err := s.Load(ctx)
			must(err)
			if len(w.Leases) == 0 {
				t.Skip("nothing to delete")
			}
			s.DeleteKey(rapid.SampledFrom(w.Leases).Draw(t, "lease").Subnet.Key())
		},
	})
}
