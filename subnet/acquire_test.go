package subnet_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/memstore"
)

// attrs is the value of another host's key; without an owner: flannel's.
func attrs(owner, ip string) subnet.Attrs {
	a := subnet.Attrs{PublicIP: addr4(ip), Owner: subnet.NodeID(owner)}
	if owner != "" {
		a.Instance = "theirs"
	}
	return a
}

const dual = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/48"}`

// prior is a key that is there before Acquire; ttl 0: a reservation.
type prior struct {
	key   string
	attrs subnet.Attrs
	ttl   time.Duration
}

func TestAcquire(t *testing.T) {
	const day = 24 * time.Hour
	previous := func(keys ...string) []subnet.Subnet {
		var s []subnet.Subnet
		for _, key := range keys {
			s = append(s, sub(t, key))
		}
		return s
	}
	me := claim("me", "198.18.0.1")
	for _, tt := range []struct {
		name   string
		config string
		prior  []prior
		bad    string
		claim  func(*subnet.Claim)
		// want is the key; left are the keys in the store afterwards.
		want string
		left []string
		bare bool
		err  string
	}{
		{name: "a fresh network", want: "10.5.125.0-24"},
		{name: "its own place is taken", prior: []prior{{"10.5.125.0-24", attrs("b", "198.18.0.2"), day}}, want: "10.5.126.0-24"},
		{name: "its own place is occupied by something larger", prior: []prior{{"10.5.96.0-19", attrs("b", "198.18.0.2"), day}}, want: "10.5.128.0-24"},
		{name: "its own place is occupied by an unreadable value", bad: "10.5.125.0-24", want: "10.5.126.0-24"},
		{name: "its own place is occupied by an unreadable key", bad: "10.5.125.9-24", want: "10.5.126.0-24"},
		{name: "a key that is no subnet occupies nothing", bad: "readme", want: "10.5.125.0-24"},
		{name: "the host's routes are avoided", claim: func(c *subnet.Claim) {
			c.Avoid = []netip.Prefix{netip.MustParsePrefix("10.5.124.0/23"), netip.MustParsePrefix("10.5.126.64/32")}
		}, want: "10.5.127.0-24"},
		{name: "routes that cover the network avoid nothing", claim: func(c *subnet.Claim) {
			c.Avoid = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.5.0.0/16"), {}}
		}, want: "10.5.125.0-24"},
		{name: "the bridge's route does not avoid the previous subnet", claim: func(c *subnet.Claim) {
			c.Previous = previous("10.5.7.0-24")
			c.Avoid = []netip.Prefix{netip.MustParsePrefix("10.5.7.0/24"), netip.MustParsePrefix("10.5.7.0/32")}
		}, want: "10.5.7.0-24"},
		{name: "previous subnets in their order", claim: func(c *subnet.Claim) { c.Previous = previous("10.5.7.0-24", "10.5.8.0-24") }, want: "10.5.7.0-24"},
		{
			name: "a previous subnet that is taken", prior: []prior{{"10.5.7.0-24", attrs("b", "198.18.0.2"), day}},
			claim: func(c *subnet.Claim) { c.Previous = previous("10.5.7.0-24", "10.5.8.0-24") }, want: "10.5.8.0-24",
		},
		{
			name: "previous subnets that the config does not allow", config: `{"Network":"10.5.0.0/16","SubnetMin":"10.5.100.0","SubnetMax":"10.5.199.0"}`,
			claim: func(c *subnet.Claim) {
				c.Previous = previous("10.5.99.0-24", "10.5.110.0-25", "10.6.110.0-24", "10.5.110.0-24&fd05::-64", "10.5.120.0-24")
			}, want: "10.5.120.0-24",
		},
		{
			name: "flannel's key with our address", prior: []prior{{"10.5.7.0-24", attrs("", "198.18.0.1"), day}, {"10.5.8.0-24", attrs("", "198.18.0.2"), day}},
			want: "10.5.7.0-24", left: []string{"10.5.7.0-24", "10.5.8.0-24"},
		},
		{name: "our key of a former process", prior: []prior{{"10.5.7.0-24", attrs("me", "198.18.0.1"), day}}, want: "10.5.7.0-24"},
		{
			name: "another's key with our address is not ours", prior: []prior{{"10.5.7.0-24", attrs("b", "198.18.0.1"), day}},
			want: "10.5.125.0-24", left: []string{"10.5.125.0-24", "10.5.7.0-24"},
		},
		{
			name:  "a reservation first, then previous, and the others are released",
			prior: []prior{{"10.5.7.0-24", attrs("me", "198.18.0.1"), day}, {"10.5.8.0-24", attrs("", "198.18.0.1"), 0}, {"10.5.9.0-24", attrs("", "198.18.0.1"), day}},
			claim: func(c *subnet.Claim) { c.Previous = previous("10.5.9.0-24") },
			want:  "10.5.8.0-24", left: []string{"10.5.8.0-24"}, bare: true,
		},
		{
			name:  "the previous one of several reservations, all of which stay",
			prior: []prior{{"10.5.7.0-24", attrs("me", "198.18.0.1"), 0}, {"10.5.8.0-24", attrs("me", "198.18.0.1"), 0}, {"10.5.9.0-24", attrs("me", "198.18.0.1"), day}},
			claim: func(c *subnet.Claim) { c.Previous = previous("10.5.9.0-24", "10.5.8.0-24") },
			want:  "10.5.8.0-24", left: []string{"10.5.7.0-24", "10.5.8.0-24"}, bare: true,
		},
		{
			name:  "the previous one of several",
			prior: []prior{{"10.5.7.0-24", attrs("me", "198.18.0.1"), day}, {"10.5.9.0-24", attrs("", "198.18.0.1"), day}},
			claim: func(c *subnet.Claim) { c.Previous = previous("10.5.9.0-24") },
			want:  "10.5.9.0-24",
		},
		{
			name: "flannel's keys with one of our addresses, and with none", config: dual,
			claim: func(c *subnet.Claim) { c.Attrs.PublicIP[subnet.IPv6] = netip.MustParseAddr("fd00::1") },
			prior: []prior{
				{"10.5.7.0-24&fd05:0:0:7::-64", subnet.Attrs{PublicIP: subnet.ByFamily[netip.Addr]{netip.MustParseAddr("198.18.0.2"), netip.MustParseAddr("fd00::1")}}, day},
				{"0.0.0.0-0&fd05:0:0:8::-64", subnet.Attrs{PublicIP: subnet.ByFamily[netip.Addr]{subnet.IPv6: netip.MustParseAddr("fd00::2")}}, day},
			},
			want: "10.5.125.0-24&fd05:0:0:7d::-64",
		},
		{
			name: "flannel's key with an address of another family", claim: func(*subnet.Claim) {},
			prior: []prior{{"10.5.7.0-24", subnet.Attrs{PublicIP: subnet.ByFamily[netip.Addr]{subnet.IPv6: netip.MustParseAddr("fd00::2")}}, day}},
			want:  "10.5.125.0-24",
		},
		{
			name: "flannel's choice of a pair is kept", config: dual,
			prior: []prior{{"10.5.7.0-24&fd05:0:0:52::-64", attrs("", "198.18.0.1"), day}},
			want:  "10.5.7.0-24&fd05:0:0:52::-64",
		},
		{
			name: "and not created again", config: dual,
			claim: func(c *subnet.Claim) { c.Previous = previous("10.5.7.0-24&fd05:0:0:52::-64") },
			want:  "10.5.125.0-24&fd05:0:0:7d::-64",
		},
		{
			name: "this very process' key with a former address", claim: func(c *subnet.Claim) { c.Instance = "theirs" },
			prior: []prior{{"10.5.7.0-24", attrs("me", "198.18.0.9"), day}},
			want:  "10.5.7.0-24",
		},
		{
			name: "a reservation that does not fit is in the way all the same", config: `{"Network":"10.5.0.0/16","SubnetLen":25}`,
			prior: []prior{{"10.5.147.0-24", attrs("me", "198.18.0.1"), 0}},
			want:  "10.5.148.0-25",
		},
		{
			name:  "a reservation made for the node and an address it had",
			prior: []prior{{"10.5.7.0-24", subnet.Attrs{Owner: "me", PublicIP: addr4("198.18.0.9")}, 0}},
			want:  "10.5.7.0-24", bare: true,
		},
		{name: "a reservation made for the node", prior: []prior{{"10.5.7.0-24", subnet.Attrs{Owner: "me"}, 0}}, want: "10.5.7.0-24", bare: true},
		{
			name: "our key with an old length is renumbered", config: `{"Network":"10.5.0.0/16","SubnetLen":25}`,
			prior: []prior{{"10.5.125.0-24", attrs("me", "198.18.0.1"), day}},
			want:  "10.5.147.128-25",
		},
		{
			name: "our old key is all that fills the pool", config: `{"Network":"10.5.0.0/24","SubnetLen":26,"SubnetMin":"10.5.0.64","SubnetMax":"10.5.0.64"}`,
			prior: []prior{{"10.5.0.0-24", attrs("me", "198.18.0.1"), day}},
			want:  "10.5.0.64-26",
		},
		{
			name: "a reservation that does not fit stays", config: `{"Network":"10.5.0.0/16","SubnetMax":"10.5.199.0"}`,
			prior: []prior{{"10.5.200.0-24", attrs("me", "198.18.0.1"), 0}},
			want:  "10.5.189.0-24", left: []string{"10.5.189.0-24", "10.5.200.0-24"},
		},
		{
			name:  "the same node id elsewhere, which is silent",
			prior: []prior{{"10.5.7.0-24", attrs("me", "198.18.0.2"), day}},
			want:  "10.5.7.0-24",
		},
		{
			name: "no room", config: `{"Network":"10.5.0.0/28"}`,
			prior: []prior{{"10.5.0.4-30", attrs("b", "198.18.0.2"), day}, {"10.5.0.8-30", attrs("c", "198.18.0.3"), day}, {"10.5.0.12-30", attrs("d", "198.18.0.4"), day}},
			err:   "no free subnet: 3 of the pool's 3 are occupied: a larger Network, a larger SubnetLen or a wider SubnetMin to SubnetMax would make room",
			left:  []string{"10.5.0.12-30", "10.5.0.4-30", "10.5.0.8-30"},
		},
		{name: "no config", config: "-", err: "no network config"},
		{name: "a bad config", config: `{"Network":"10.5.0.0/30"}`, err: "read network config: Network: 10.5.0.0/30: is too small: must be a /28 or larger to hold four subnets of four addresses"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStore(strings.Trim(cmpOr(tt.config, config), "-"))
				for _, p := range tt.prior {
					put(t, s, p.key, p.attrs, p.ttl)
				}
				if tt.bad != "" {
					if _, err := s.Put(tt.bad, "nonsense", 0); err != nil {
						t.Fatal(err)
					}
				}
				c := me
				if tt.claim != nil {
					tt.claim(&c)
				}
				got, err := subnet.Acquire(t.Context(), s, load(t, s), c)
				text := ""
				if err != nil {
					text = err.Error()
				}
				if d := cmp.Diff(tt.err, text); d != "" {
					t.Fatalf("error: -want +got\n%s", d)
				}
				w := load(t, s)
				var left []string
				for _, l := range w.Leases {
					left = append(left, l.Subnet.Key())
				}
				if tt.left == nil && tt.want != "" && tt.prior == nil {
					tt.left = []string{tt.want}
				}
				if tt.left != nil && !slices.Equal(left, tt.left) {
					t.Errorf("left in the store: %v, want %v", left, tt.left)
				}
				if tt.want == "" {
					return
				}
				want := c.Attrs
				want.Owner, want.Instance = "me", c.Instance
				if got.Subnet.Key() != tt.want || got.Attrs != want || got.Reservation() != tt.bare {
					t.Errorf("got %+v, want %s", got, tt.want)
				}
				if l, ok := stored(t, s, tt.want); !ok || l.Attrs != want || l.Modified != got.Modified || l.ID != got.ID {
					t.Errorf("the store holds %+v, we were told %+v", l, got)
				}
				s.Wipe() // stops the leases' timers
			})
		})
	}
}

func cmpOr(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// A key that is taken over keeps the time it hangs on; a new one has the TTL.
func TestAcquireTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(config)
		id := put(t, s, "10.5.7.0-24", attrs("", "198.18.0.1"), 77*time.Second)
		if l := acquire(t, s, claim("me", "198.18.0.1")); l.ID != id || l.TTL != 0 {
			t.Errorf("taken over: %+v, want lease %d and no TTL known", l, id)
		}
		if l := acquire(t, s, claim("b", "198.18.0.2")); l.TTL != subnet.DefaultTTL {
			t.Errorf("TTL %s, want the default", l.TTL)
		}
		c := claim("c", "198.18.0.3")
		c.TTL = time.Minute
		if l := acquire(t, s, c); l.TTL != time.Minute {
			t.Errorf("TTL %s, want a minute", l.TTL)
		}
		s.Wipe()
	})
}

// A race lost takes the next candidate, without another Load.
func TestAcquireLosesRaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := map[string]int{}
		s := memstore.New(memstore.Options{Before: func(method string) error { calls[method]++; return nil }})
		s.OverwriteConfig(config)
		w := load(t, s)
		for _, key := range []string{"10.5.125.0-24", "10.5.126.0-24", "10.5.127.0-24"} {
			put(t, s, key, attrs("b", "198.18.0.2"), time.Hour)
		}
		c := claim("me", "198.18.0.1")
		c.Previous = []subnet.Subnet{sub(t, "10.5.126.0-24")}
		l, err := subnet.Acquire(t.Context(), s, w, c)
		if err != nil || l.Subnet != sub(t, "10.5.128.0-24") {
			t.Errorf("got %v, %v", l.Subnet, err)
		}
		if d := cmp.Diff(map[string]int{"Load": 1, "Create": 4}, calls); d != "" {
			t.Errorf("requests: -want +got\n%s", d)
		}
		s.Wipe()
	})
}

func TestAcquireReportsChanges(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*memstore.Store)
		want   error
	}{
		{"config", func(s *memstore.Store) { s.OverwriteConfig(`{"Network":"10.6.0.0/16"}`) }, subnet.ErrConfigChanged},
		{"config put again as it was", func(s *memstore.Store) { s.OverwriteConfig(config) }, subnet.ErrConfigChanged},
		{"config deleted", func(s *memstore.Store) { s.DeleteConfig() }, subnet.ErrConfigChanged},
		{"store wiped", func(s *memstore.Store) { s.Wipe(); s.OverwriteConfig(config) }, subnet.ErrStoreChanged},
		{"store down", func(s *memstore.Store) { s.SetUnavailable(errDown) }, errDown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStore(config)
				w := load(t, s)
				tt.change(s)
				if l, err := subnet.Acquire(t.Context(), s, w, claim("me", "198.18.0.1")); !errors.Is(err, tt.want) {
					t.Errorf("got %v, %v; want %v", l, err, tt.want)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		s := newStore(config)
		put(t, s, "10.5.7.0-24", attrs("", "198.18.0.1"), time.Hour)
		w := load(t, s)
		put(t, s, "10.5.7.0-24", attrs("b", "198.18.0.2"), time.Hour)
		if l, err := subnet.Acquire(t.Context(), s, w, claim("me", "198.18.0.1")); !errors.Is(err, subnet.ErrLeaseLost) {
			t.Errorf("our key was overwritten: got %v, %v; want ErrLeaseLost", l, err)
		}
		s.Wipe()
	})
}

// What was ours when the world was read, and is another's when it is released,
// is not free.
func TestAcquireReleasesOnlyItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(`{"Network":"10.5.0.0/24","SubnetLen":26,"SubnetMin":"10.5.0.64","SubnetMax":"10.5.0.64"}`)
		put(t, s, "10.5.0.0-24", attrs("", "198.18.0.1"), time.Hour)
		w := load(t, s)
		put(t, s, "10.5.0.0-24", attrs("", "198.18.0.2"), time.Hour)
		if l, err := subnet.Acquire(t.Context(), s, w, claim("me", "198.18.0.1")); !errors.Is(err, subnet.ErrLeaseLost) {
			t.Errorf("got %v, %v; want ErrLeaseLost", l, err)
		}
		if left := load(t, s).Leases; len(left) != 1 || left[0].Attrs.PublicIP != addr4("198.18.0.2") {
			t.Errorf("left %+v", left)
		}
		s.Wipe()
	})
}

// An answer that is lost leaves a key; the next Acquire finds it, and there is
// one key in the end.
func TestAcquireAfterUnknownOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lose := true
		s := memstore.New(memstore.Options{After: func(method string) error {
			if method == "Create" && lose {
				lose = false
				return errDown
			}
			return nil
		}})
		s.OverwriteConfig(config)
		c := claim("me", "198.18.0.1")
		if _, err := subnet.Acquire(t.Context(), s, load(t, s), c); !errors.Is(err, errDown) {
			t.Fatalf("error %v", err)
		}
		l := acquire(t, s, c)
		if w := load(t, s); len(w.Leases) != 1 || w.Leases[0].Subnet != l.Subnet {
			t.Errorf("leased %s, the store holds %v", l.Subnet, w.Leases)
		}
		s.Wipe()
	})
}

// Sixty hosts that have all read the same world get sixty subnets.
func TestAcquireConcurrently(t *testing.T) {
	for _, pool := range []struct{ name, config string }{
		{"plenty", config},
		{"just enough", `{"Network":"10.5.0.0/26","SubnetLen":30,"SubnetMin":"10.5.0.0","SubnetMax":"10.5.0.60"}`},
		{"both families", dual},
	} {
		t.Run(pool.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := 60
				if pool.name == "just enough" {
					n = 16
				}
				s := newStore(pool.config)
				w := load(t, s)
				leases := make([]subnet.Lease, n)
				var hosts sync.WaitGroup
				for i := range n {
					hosts.Go(func() {
						var err error
						leases[i], err = subnet.Acquire(t.Context(), s, w, claim(fmt.Sprint("node", i), fmt.Sprint("198.18.0.", i+1)))
						if err != nil {
							t.Errorf("host %d: %v", i, err)
						}
					})
				}
				hosts.Wait()
				for i, a := range leases {
					for _, b := range leases[:i] {
						if a.Subnet.Overlaps(b.Subnet) {
							t.Errorf("%s overlaps %s", a.Subnet, b.Subnet)
						}
					}
				}
				s.Wipe()
			})
		})
	}
}

// A host whose store has forgotten everything returns to its subnet.
func TestAcquireIsStable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(config)
		c := claim("me", "198.18.0.1")
		first := acquire(t, s, c)
		s.Wipe()
		s.OverwriteConfig(config)
		if again := acquire(t, s, c); again.Subnet != first.Subnet {
			t.Errorf("first %s, then %s", first.Subnet, again.Subnet)
		}
		s.Wipe()
	})
}

// What was to be written first, and is not, ends an attempt: a host that went on would
// have a lease that nobody has confirmed, or two.
func TestAcquireWithoutAnswers(t *testing.T) {
	for _, tt := range []struct {
		name, config string
		refused      []string
	}{
		{"its lease can be neither updated nor proven", config, []string{"Update", "Renew"}},
		{"what does not fit cannot be released", `{"Network":"10.5.0.0/16","SubnetLen":26}`, []string{"Release"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			data := newStore(config)
			c := claim("me", "198.18.0.1")
			first := acquire(t, data, c)
			data.OverwriteConfig(tt.config)
			store := data.Open(memstore.Options{Before: func(method string) error {
				if slices.Contains(tt.refused, method) {
					return errDown
				}
				return nil
			}})
			c.Instance = "me-2"
			if l, err := subnet.Acquire(t.Context(), store, load(t, store), c); !errors.Is(err, errDown) {
				t.Errorf("Acquire = %s, %v, want %v", l.Subnet, err, errDown)
			}
			first.TTL = 0 // which a load does not tell
			if diff := cmp.Diff([]subnet.Lease{first}, load(t, data).Leases, cmpopts.EquateComparable(subnet.Lease{})); diff != "" {
				t.Errorf("what the store holds (-want +got):\n%s", diff)
			}
		})
	}
}

// A reservation that was made for a node has no process that could answer a challenge.
func TestReservationForANodeIsNotDisputed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := newStore(config)
		put(t, data, "10.5.9.0-24", subnet.Attrs{Owner: "me", PublicIP: addr4("198.18.0.9")}, 0)
		began := time.Now()
		l := acquire(t, data, claim("me", "198.18.0.1"))
		if waited := time.Since(began); l.Subnet.Key() != "10.5.9.0-24" || waited > 0 {
			t.Errorf("%s after %s, want the reservation at once", l.Subnet, waited)
		}
	})
}
