package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const reservable = `{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0"}`

func TestReserve(t *testing.T) {
	endpoint, client := startEtcd(t)
	for prefix, tc := range map[string]struct {
		config   string // none: reservable
		args     []string
		out, err string
		usage    bool
		// value is what the key holds afterwards, key: its name.
		key, value string
	}{
		"/for-a-node": {
			args:  []string{"10.5.7.0/24", "--node", "web-7"},
			out:   "reserved 10.5.7.0/24 for node web-7, which takes it when it starts",
			key:   "10.5.7.0-24",
			value: `{"PublicIP":"0.0.0.0","PublicIPv6":null,"Owner":"web-7"}`,
		},
		"/for-an-address": {
			args:  []string{"10.5.7.0-24", "--public-ip", "198.18.0.7"},
			out:   "reserved 10.5.7.0/24 for the host at 198.18.0.7, which takes it when it starts",
			key:   "10.5.7.0-24",
			value: `{"PublicIP":"198.18.0.7","PublicIPv6":null}`,
		},
		"/for-an-IPv6-address": {
			args:  []string{"10.5.7.0/24", "--public-ip=fd00::7"},
			out:   "reserved 10.5.7.0/24 for the host at fd00::7, which takes it when it starts",
			key:   "10.5.7.0-24",
			value: `{"PublicIP":"0.0.0.0","PublicIPv6":"fd00::7"}`,
		},
		"/another-subnet-than-it-has": {
			args:  []string{"10.5.7.0/24", "--node=web-1"},
			out:   "reserved 10.5.7.0/24 for node web-1, which has 10.5.1.0/24 now and moves at its next restart: systemctl restart flanneld-go there",
			key:   "10.5.7.0-24",
			value: `{"PublicIP":"0.0.0.0","PublicIPv6":null,"Owner":"web-1"}`,
		},
		"/another-subnet-than-it-has-by-address": {
			args:  []string{"10.5.7.0/24", "--public-ip=198.18.0.1"},
			out:   "reserved 10.5.7.0/24 for the host at 198.18.0.1, which has 10.5.1.0/24 now and moves at its next restart: systemctl restart flanneld-go there",
			key:   "10.5.7.0-24",
			value: `{"PublicIP":"198.18.0.1","PublicIPv6":null}`,
		},
		"/what-it-has": {
			args:  []string{"10.5.1.0/24", "--node=web-1"},
			out:   "reserved 10.5.1.0/24 for node web-1, which has it already: nothing to restart",
			key:   "10.5.1.0-24",
			value: leased[0].value,
		},
		"/what-it-has-by-address": {
			args:  []string{"10.5.1.0/24", "--public-ip=198.18.0.1"},
			out:   "reserved 10.5.1.0/24 for the host at 198.18.0.1, which has it already: nothing to restart",
			key:   "10.5.1.0-24",
			value: leased[0].value,
		},
		"/again": {
			args:  []string{"10.5.2.0/24", "--public-ip=198.18.0.2"},
			out:   "10.5.2.0/24 was reserved for the host at 198.18.0.2 before: nothing changed",
			key:   "10.5.2.0-24",
			value: leased[1].value,
		},
		"/a-second-one": {
			args:  []string{"10.5.7.0/24", "--node=web-5"},
			out:   "reserved 10.5.7.0/24 for node web-5, for which 10.5.5.0/24 is reserved too, and it uses only one: flannelctl release what it shall not have, then systemctl restart flanneld-go there",
			key:   "10.5.7.0-24",
			value: `{"PublicIP":"0.0.0.0","PublicIPv6":null,"Owner":"web-5"}`,
		},
		"/dual-stack": {
			config: `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/48"}`,
			args:   []string{"10.5.7.0/24,fd05:0:0:7::/64", "--node=web-7"},
			out:    "reserved 10.5.7.0/24,fd05:0:0:7::/64 for node web-7, which takes it when it starts",
			key:    "10.5.7.0-24&fd05:0:0:7::-64",
			value:  `{"PublicIP":"0.0.0.0","PublicIPv6":null,"Owner":"web-7"}`,
		},
		"/unpaired": {
			config: `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/48"}`,
			args:   []string{"10.5.7.0/24,fd05:0:0:8::/64", "--node=web-7"},
			err:    "10.5.7.0/24,fd05:0:0:8::/64: ",
		},
		"/held-by-another": {
			args: []string{"10.5.1.0/24", "--node=web-2"},
			err:  "10.5.1.0/24 is held by node web-1 at 198.18.0.1",
		},
		"/reserved-for-another": {
			args: []string{"10.5.2.0/24", "--public-ip=198.18.0.3"},
			err:  "10.5.2.0/24 is held by host at 198.18.0.2",
		},
		"/unreadable": {
			args: []string{"10.5.3.0/24", "--node=web-3"},
			err:  "10.5.3.0/24 is occupied by key 10.5.3.0-24, which cannot be read: ",
		},
		"/wrong-length": {
			args: []string{"10.5.8.0/23", "--node=web-7"},
			err:  "10.5.8.0/23: ",
		},
		"/outside": {
			args: []string{"10.5.100.0/24", "--node=web-7"},
			err:  "10.5.100.0/24: ",
		},
		"/no-config": {
			config: "-",
			args:   []string{"10.5.7.0/24", "--node=web-7"},
			err:    `there is no network config yet: flannelctl config set '{"Network":"10.5.0.0/16"}'`,
		},
		"/for-nobody": {
			args:  []string{"10.5.7.0/24"},
			err:   "for whom? give --node (flannelctl status on the host shows its node id) or --public-ip, one of them",
			usage: true,
		},
		"/for-both": {
			args:  []string{"10.5.7.0/24", "--node=a", "--public-ip=198.18.0.7"},
			err:   "for whom? give --node (flannelctl status on the host shows its node id) or --public-ip, one of them",
			usage: true,
		},
		"/for-no-address": {
			args:  []string{"10.5.7.0/24", "--public-ip=web-7"},
			err:   `--public-ip: "web-7": must be the IP address of a host`,
			usage: true,
		},
		"/for-an-address-of-a-link": {
			args:  []string{"10.5.7.0/24", "--public-ip=fe80::7%eth0"},
			err:   `--public-ip: "fe80::7%eth0": must be the IP address of a host`,
			usage: true,
		},
		"/for-all-addresses": {
			args:  []string{"10.5.7.0/24", "--public-ip=0.0.0.0"},
			err:   `--public-ip: "0.0.0.0": must be the IP address of a host`,
			usage: true,
		},
		"/mistyped": {
			args:  []string{"10.5.7.0", "--node=web-7"},
			err:   `"10.5.7.0": must be a subnet such as 10.5.1.0/24, or 10.5.1.0/24,fd05:0:0:52::/64 with both families`,
			usage: true,
		},
	} {
		t.Run(strings.TrimPrefix(prefix, "/"), func(t *testing.T) {
			if tc.config == "" {
				tc.config = reservable
			}
			if tc.config != "-" {
				put(t, client, prefix+"/config", tc.config, 0)
			}
			grant := putLeases(t, client, prefix)
			before := keys(t, client, prefix)
			r := newShell(t, "FLANNELD_ETCD_ENDPOINTS="+endpoint, "FLANNELD_ETCD_PREFIX="+prefix).run(append([]string{"reserve"}, tc.args...)...)
			if strings.TrimSuffix(r.out, "\n") != tc.out || r.usage != tc.usage {
				t.Errorf("printed %q (usage: %t)\nwant    %q (usage: %t)", r.out, r.usage, tc.out, tc.usage)
			}
			if !strings.HasPrefix(r.err, tc.err) || tc.err == "" && r.err != "" {
				t.Errorf("error %q\nwant  %q...", r.err, tc.err)
			}
			if tc.key == "" {
				if diff := cmp.Diff(before, keys(t, client, prefix)); diff != "" {
					t.Errorf("keys (-want +got):\n%s", diff)
				}
				return
			}
			resp, err := client.Get(t.Context(), prefix+"/subnets/"+tc.key)
			if err != nil || len(resp.Kvs) != 1 {
				t.Fatalf("key %s: %v, %v", tc.key, resp, err)
			}
			if kv := resp.Kvs[0]; string(kv.Value) != tc.value || kv.Lease != 0 {
				t.Errorf("value %s on lease %x\nwant  %s on none", kv.Value, kv.Lease, tc.value)
			}
			// The lease that a key was taken off ends.
			ttl, err := client.TimeToLive(t.Context(), grant)
			if err != nil || ttl.TTL <= 0 != (tc.key == leased[0].key) {
				t.Errorf("the lease of %s has %d s, %v", leased[0].key, ttl.TTL, err)
			}
		})
	}
}

// Somebody else writes while the reservation is on its way.
func TestReserveOvertaken(t *testing.T) {
	endpoint, client := startEtcd(t)
	for _, tc := range []struct{ name, key, value, args string }{
		{"config", "config", `{"Network":"10.5.0.0/16","SubnetLen":26}`, "10.5.7.0/24 --node=web-7"},
		{"subnet taken", "subnets/10.5.7.0-24", `{"PublicIP":"198.18.0.99"}`, "10.5.7.0/24 --node=web-7"},
		{"lease taken over", "subnets/10.5.1.0-24", `{"PublicIP":"198.18.0.99"}`, "10.5.1.0/24 --node=web-1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			prefix := "/" + strings.ReplaceAll(tc.name, " ", "-")
			put(t, client, prefix+"/config", reservable, 0)
			putLeases(t, client, prefix)
			fields := strings.Fields(tc.args)
			_, holder, _ := strings.Cut(fields[1], "=")
			proxy := overtaking(t, endpoint, func() { put(t, client, prefix+"/"+tc.key, tc.value, 0) }, holder)
			r := newShell(t).run(append([]string{"reserve", "--etcd-endpoints=" + proxy, "--etcd-prefix=" + prefix}, fields...)...)
			const want = "it changed meanwhile, nothing was done: look at it (flannelctl leases) and try again: "
			if !strings.HasPrefix(r.err, want) || r.usage || r.out != "" {
				t.Errorf("output %q, error %q; want %q...", r.out, r.err, want)
			}
			resp, err := client.Get(t.Context(), prefix+"/"+tc.key)
			if err != nil || len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != tc.value {
				t.Errorf("%s: %v, %v; want what the other put", tc.key, resp, err)
			}
		})
	}
}
