package main

import (
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// leased are the keys of a network of which two cannot be read. The first
// hangs on an etcd lease.
var leased = []struct{ key, value string }{
	{"10.5.1.0-24", `{"PublicIP":"198.18.0.1","PublicIPv6":null,"Owner":"web-1","Instance":"a"}`},
	{"10.5.2.0-24", `{"PublicIP":"198.18.0.2"}`},
	{"10.5.3.0-24", `not json`},
	{"nonsense", `{"PublicIP":"198.18.0.4"}`},
	{"10.5.5.0-24", `{"PublicIP":"0.0.0.0","Owner":"web-5"}`},
	{"10.5.6.0-24&fd05:0:0:6::-64", `{"PublicIP":"198.18.0.6","PublicIPv6":"fd00::6"}`},
}

// putLeases puts them below a prefix.
func putLeases(t *testing.T, client *clientv3.Client, prefix string) clientv3.LeaseID {
	t.Helper()
	grant, err := client.Grant(t.Context(), 86400)
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range leased {
		id := grant.ID
		if i > 0 {
			id = 0
		}
		put(t, client, prefix+"/subnets/"+l.key, l.value, id)
	}
	return grant.ID
}

// keys are those of the leases below a prefix.
func keys(t *testing.T, client *clientv3.Client, prefix string) []string {
	t.Helper()
	resp, err := client.Get(t.Context(), prefix+"/subnets/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, kv := range resp.Kvs {
		list = append(list, strings.TrimPrefix(string(kv.Key), prefix+"/subnets/"))
	}
	return list
}

func TestRelease(t *testing.T) {
	endpoint, client := startEtcd(t)
	const cannotRead = "read value of 10.5.3.0-24: invalid character 'o' in literal null (expecting 'u')"
	for prefix, tc := range map[string]struct {
		args     []string
		out, err string // regular expressions
		usage    bool
		gone     string
	}{
		"/reservation": {
			args: []string{"10.5.2.0/24"},
			out:  `released 10\.5\.2\.0/24, which was reserved for the host at 198\.18\.0\.2; if that host runs with it, it has it as an ordinary lease again within a second`,
			gone: "10.5.2.0-24",
		},
		"/reservation-for-a-node": {
			args: []string{"10.5.5.0-24"},
			out:  `released 10\.5\.5\.0/24, which was reserved for node web-5; if .*`,
			gone: "10.5.5.0-24",
		},
		"/dual-stack": {
			args: []string{"10.5.6.0/24,fd05:0:0:6::/64"},
			out:  `released 10\.5\.6\.0/24,fd05:0:0:6::/64, which was reserved for the host at 198\.18\.0\.6 and fd00::6; if .*`,
			gone: "10.5.6.0-24&fd05:0:0:6::-64",
		},
		"/lease": {
			args:  []string{"10.5.1.0/24"},
			err:   `10\.5\.1\.0/24 is leased by node web-1 at 198\.18\.0\.1 for (24h0m0s|23h59m\d+s) more unless it is renewed: a host that runs would have it again within a second; if that host is gone for good, --yes frees the subnet now`,
			usage: true,
		},
		"/lease-yes": {
			args: []string{"10.5.1.0/24", "--yes"},
			out:  `released 10\.5\.1\.0/24 of node web-1 at 198\.18\.0\.1; if that host runs, it has it again within a second`,
			gone: "10.5.1.0-24",
		},
		"/unreadable": {
			args:  []string{"10.5.3.0/24"},
			err:   regexp.QuoteMeta("key 10.5.3.0-24 cannot be read, so nobody can say whose it is (" + cannotRead + "): --yes deletes it"),
			usage: true,
		},
		"/unreadable-yes": {
			args: []string{"--yes", "10.5.3.0/24"},
			out:  regexp.QuoteMeta("released key 10.5.3.0-24, which could not be read: " + cannotRead),
			gone: "10.5.3.0-24",
		},
		"/no-subnet": {
			args: []string{"nonsense", "--yes"},
			out:  `released key nonsense, which could not be read: parse key "nonsense": no subnet`,
			gone: "nonsense",
		},
		"/nobody": {
			args: []string{"10.5.9.0/24"},
			err:  `10\.5\.9\.0/24 is neither leased nor reserved: flannelctl leases lists what is`,
		},
		"/overlap": {
			args: []string{"10.5.2.0/23"},
			err:  `10\.5\.2\.0/23 is neither leased nor reserved; what overlaps it is 10\.5\.2\.0/24 of the host at 198\.18\.0\.2; 10\.5\.3\.0-24, which cannot be read`,
		},
		"/mistyped": {
			args:  []string{"10.5.2.0"},
			err:   `"10\.5\.2\.0": must be a subnet such as 10\.5\.1\.0/24, or 10\.5\.1\.0/24,fd05:0:0:52::/64 with both families`,
			usage: true,
		},
	} {
		t.Run(strings.TrimPrefix(prefix, "/"), func(t *testing.T) {
			grant := putLeases(t, client, prefix)
			before := keys(t, client, prefix)
			r := newShell(t, "FLANNELD_ETCD_ENDPOINTS="+endpoint, "FLANNELD_ETCD_PREFIX="+prefix).run(append([]string{"release"}, tc.args...)...)
			if out := regexp.MustCompile("^" + lineOr(tc.out) + "$"); !out.MatchString(r.out) {
				t.Errorf("printed %q\nwant    %s", r.out, out)
			}
			if err := regexp.MustCompile("^" + tc.err + "$"); !err.MatchString(r.err) || r.usage != tc.usage {
				t.Errorf("error %q (usage: %t)\nwant  %s (usage: %t)", r.err, r.usage, err, tc.usage)
			}
			var want []string
			for _, key := range before {
				if key != tc.gone {
					want = append(want, key)
				}
			}
			if diff := cmp.Diff(want, keys(t, client, prefix)); diff != "" {
				t.Errorf("keys (-want +got):\n%s", diff)
			}
			ttl, err := client.TimeToLive(t.Context(), grant)
			if err != nil || ttl.TTL <= 0 != (tc.gone == leased[0].key) {
				t.Errorf("the lease of %s has %d s, %v", leased[0].key, ttl.TTL, err)
			}
		})
	}
}

// lineOr is a line with an end, or nothing.
func lineOr(pattern string) string {
	if pattern == "" {
		return ""
	}
	return pattern + "\n"
}

// The lease changes hands while the release is on its way.
func TestReleaseOvertaken(t *testing.T) {
	endpoint, client := startEtcd(t)
	for _, tc := range []struct{ prefix, key string }{{"/readable", "10.5.1.0-24"}, {"/unreadable", "10.5.3.0-24"}} {
		t.Run(tc.key, func(t *testing.T) {
			putLeases(t, client, tc.prefix)
			proxy := overtaking(t, endpoint, func() {
				put(t, client, tc.prefix+"/subnets/"+tc.key, `{"PublicIP":"198.18.0.99"}`, 0)
			}, tc.key)
			r := newShell(t).run("release", "--yes", tc.key, "--etcd-endpoints="+proxy, "--etcd-prefix="+tc.prefix)
			const want = "it changed meanwhile, nothing was done: look at it (flannelctl leases) and try again: "
			if !strings.HasPrefix(r.err, want) || r.usage || r.out != "" {
				t.Errorf("output %q, error %q; want %q...", r.out, r.err, want)
			}
			if got := keys(t, client, tc.prefix); len(got) != len(leased) {
				t.Errorf("keys %v: one was deleted", got)
			}
		})
	}
}

func TestParseSubnet(t *testing.T) {
	for _, tc := range []struct{ name, text, key, err string }{
		{"IPv4", "10.5.1.0/24", "10.5.1.0-24", ""},
		{"IPv6", "fd05:0:0:52::/64", "0.0.0.0-0&fd05:0:0:52::-64", ""},
		{"both", "10.5.1.0/24,fd05:0:0:52::/64", "10.5.1.0-24&fd05:0:0:52::-64", ""},
		{"the other way round", "fd05:0:0:52::/64,10.5.1.0/24", "10.5.1.0-24&fd05:0:0:52::-64", ""},
		{"flannel's form", "10.5.1.0-24", "10.5.1.0-24", ""},
		{"flannel's form, both", "10.5.1.0-24&fd05:0:0:52::-64", "10.5.1.0-24&fd05:0:0:52::-64", ""},
		{"host bits", "10.5.1.7/24", "", `"10.5.1.7/24": 10.5.1.7 is inside a subnet: must be 10.5.1.0/24`},
		{"two of one family", "10.5.1.0/24,10.5.2.0/24", "", `"10.5.1.0/24,10.5.2.0/24": must have one IPv4 subnet, not two`},
		{"mapped", "::ffff:10.5.1.0/120", "", `"::ffff:10.5.1.0/120": must be a subnet such as 10.5.1.0/24, or 10.5.1.0/24,fd05:0:0:52::/64 with both families`},
		{"everything", "0.0.0.0/0", "", `"0.0.0.0/0": must be a subnet such as 10.5.1.0/24, or 10.5.1.0/24,fd05:0:0:52::/64 with both families`},
		{"nothing", "", "", `"": must be a subnet such as 10.5.1.0/24, or 10.5.1.0/24,fd05:0:0:52::/64 with both families`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseSubnet(tc.text)
			if tc.err != "" {
				if err == nil || err.Error() != tc.err || !got.IsZero() {
					t.Errorf("%v, error %v\nwant error %s", got, err, tc.err)
				}
				return
			}
			if err != nil || got.Key() != tc.key {
				t.Errorf("%v, %v, want key %s", got, err, tc.key)
			}
		})
	}
}

// Whatever is read is one subnet, however it is written again.
func FuzzParseSubnet(f *testing.F) {
	for _, text := range []string{"10.5.1.0/24", "10.5.1.0/24,fd05:0:0:52::/64", "10.5.1.0-24&fd05:0:0:52::-64", "::/0,0.0.0.0/0", "0.0.0.0-0&fd05::-64"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseSubnet(text)
		if err != nil {
			if !s.IsZero() {
				t.Errorf("%v beside an error", s)
			}
			return
		}
		for _, again := range []string{s.String(), s.Key()} {
			if back, err := parseSubnet(again); err != nil || back != s {
				t.Errorf("%q reads as %v, which reads as %v, %v", text, s, back, err)
			}
		}
		if back, err := subnet.ParseSubnet(s.Key()); err != nil || back != s {
			t.Errorf("key %s reads as %v, %v", s.Key(), back, err)
		}
	})
}
