package netns_test

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
)

// cleanupCase is one way in which the daemon changes a host.
type cleanupCase struct{ name, config, iptables string }

// cleanupCases have each backend, with each family, and each place of the
// firewall.
func cleanupCases() []cleanupCase {
	const dual = `"EnableIPv6":true,"IPv6Network":"fd05::/32",`
	var all []cleanupCase
	for _, c := range []cleanupCase{
		{name: "udp", config: configs["udp"]},
		{name: "vxlan", config: configs["vxlan"]},
		{name: "vxlan, both families", config: `{` + dual + `"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`},
		{name: "vxlan, DirectRouting", config: `{` + dual + `"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`},
		{name: "udp, DirectRouting", config: `{` + dual + `"Network":"10.5.0.0/16","Backend":{"Type":"udp","DirectRouting":true}}`},
		{name: "host-gw", config: configs["host-gw"]},
		{name: "host-gw, both families", config: `{` + dual + `"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}`},
	} {
		native := strings.Replace(c.config, "{", `{"EnableNFTables":true,`, 1)
		all = append(all,
			cleanupCase{c.name + "/iptables-nft", c.config, "iptables-nft"},
			cleanupCase{c.name + "/iptables-legacy", c.config, "iptables-legacy"},
			cleanupCase{c.name + "/nftables", native, "iptables-nft"},
		)
	}
	return all
}

// What the daemon did to a host, flannelctl takes back, and nothing else: all that
// can be seen of the host's network is byte for byte what it was.
func TestCleanupLeavesTheHostAsItWas(t *testing.T) {
	for _, c := range cleanupCases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, lab.Options{Hosts: 2, DaemonArgs: []string{"--ip-masq"}})
			h := l.Hosts[0]
			run(t, h, "iptables="+c.iptables+"\n"+somebodysOwn)
			run(t, l.Hosts[1], ownRoute) // or it might lease that subnet
			before := look(t, h)
			putConfig(t, l, c.config)
			startDaemons(t, l)
			waitReady(t, l)
			wantTouched(t, c, before, look(t, h))
			cleanup := []string{"cleanup", "--yes", "--socket=" + h.Socket(), "--state-dir=" + h.StateDir()}
			if out, err := h.Run(t.Context(), command(t, "flannelctl"), cleanup...); err == nil || !strings.Contains(out, "running") {
				t.Errorf("cleanup under a running daemon: %v\n%s", err, out)
			}
			if err := h.Daemon.Stop(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			out, err := h.Run(within(t, time.Minute), command(t, "flannelctl"), cleanup...)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if diff := cmp.Diff(before, look(t, h)); diff != "" {
				t.Errorf("the host after cleanup (-before +after):\n%s\nflannelctl printed:\n%s", diff, out)
			}
		})
	}
}

// somebodysOwn is on the host before the daemon, one of each kind that the daemon
// makes, and must stay. (A route inside the network through a host of ours would
// count as flannel's.) The sysctls are those that the kernel changes by itself
// when forwarding is turned on or off. Tables of iptables-legacy stay for ever
// once somebody asked for them, so somebody does.
const somebodysOwn = ownRoute + `
ip route add blackhole 10.77.0.0/16
ip nexthop add id 7 via 198.18.0.78 dev eth0
ip route add 10.78.0.0/16 nhid 7 proto 99 table 99
ip -6 route add blackhole fd77::/32
ip rule add from 10.78.0.0/16 table 99 priority 1000
ip neigh add 198.18.0.79 lladdr 02:00:00:00:00:4f dev eth0 nud permanent
ip link add own0 address 02:00:00:00:00:50 type vxlan id 77 dstport 4789 local 198.18.0.77 dev eth0
bridge fdb add 02:00:00:00:00:4f dst 198.18.0.79 dev own0
ip addr add 10.79.0.1/24 dev own0
ip link set own0 up
echo 0 >/proc/sys/net/ipv4/conf/all/accept_redirects
echo 1 >/proc/sys/net/ipv4/conf/own0/forwarding
echo 1 >/proc/sys/net/ipv6/conf/own0/forwarding
nft add table inet own
nft 'add chain inet own forward { type filter hook forward priority 5 ; }'
nft add rule inet own forward ip saddr 10.66.0.0/16 counter accept
case $iptables in
*-legacy)
	for table in raw mangle nat filter; do
		$iptables -w -t $table -nL
		ip6${iptables#ip} -w -t $table -nL
	done ;;
esac
$iptables -w -A FORWARD -s 10.66.0.0/16 -j ACCEPT
$iptables -w -t nat -A POSTROUTING -s 10.66.0.0/16 -j MASQUERADE
` + settled

// ownRoute is a route inside the network.
const ownRoute = "ip route add 10.5.250.0/24 via 198.18.0.77\n"

// settled waits for what the kernel does to a new host by itself.
const settled = "while ip -6 addr show tentative | grep -q .; do read -t 0.1 _ <>/dev/fd/2 || true; done\n"

// run runs a script on the host, up to its first failure.
func run(t *testing.T, h *lab.Host, script string) string {
	t.Helper()
	out, err := h.Run(within(t, time.Minute), "/bin/bash", "-ec", script)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// looks are the questions to a host that show its network's state, by what they
// are about. Neighbours and multicast memberships that come and go with traffic
// are the kernel's.
func looks() map[string]string {
	return map[string]string{
		"links":      "ip -d -o link",
		"addresses":  "ip -o addr",
		"routes":     "for f in 4 6; do ip -d -$f route show table all; ip -$f rule; done",
		"nexthops":   "ip nexthop",
		"neighbours": "ip -o neigh show nud permanent; ip -o neigh show proxy",
		"fdb":        "bridge fdb",
		"sysctls":    "cd /proc/sys/net; grep -rs '' ipv4 ipv6 | LC_ALL=C sort",
		"iptables":   "for f in ip ip6; do for v in nft legacy; do ${f}tables-$v-save; done; done",
		"nftables":   "nft list ruleset",
	}
}

// volatile is what differs from one look to the next: counters, and iptables-save's
// dates.
var volatile = regexp.MustCompile(`\[\d+:\d+\]|packets \d+ bytes \d+|# (Generated|Completed) .*`)

// disturbed is what ip says when something changed while it looked: it may lack
// some of it, or met the name of another lab's namespace, all of which it looks up,
// at a moment when that was not one yet or not any more.
var disturbed = regexp.MustCompile(`Dump was interrupted|Peer netns reference is invalid`)

// look is a host's network state, as lines of text.
func look(t *testing.T, h *lab.Host) map[string][]string {
	t.Helper()
	state := map[string][]string{}
	for what, script := range looks() {
		state[what] = strings.Split(lookAt(t, h, script), "\n")
	}
	return state
}

// lookAt is what a question to a host shows, if nothing disturbed it, without what is
// volatile.
func lookAt(t *testing.T, h *lab.Host, script string) string {
	t.Helper()
	out := run(t, h, script)
	for disturbed.MatchString(out) {
		out = run(t, h, script)
	}
	return volatile.ReplaceAllString(out, "")
}

// wantTouched wants a host to differ in everything that the daemon changes: else
// the test would not see it come back.
func wantTouched(t *testing.T, c cleanupCase, before, during map[string][]string) {
	t.Helper()
	backend, place, _ := strings.Cut(c.name, "/")
	want := map[string][]string{
		"udp":                    {"addresses", "links"},
		"udp, DirectRouting":     {"addresses", "fdb", "links", "nexthops"},
		"vxlan":                  {"addresses", "fdb", "links", "neighbours", "nexthops"},
		"vxlan, both families":   {"addresses", "fdb", "links", "neighbours", "nexthops"},
		"vxlan, DirectRouting":   {"addresses", "fdb", "links", "nexthops"},
		"host-gw":                {"nexthops"},
		"host-gw, both families": {"fdb", "nexthops"}, // the group of all routers
	}[backend]
	want = append(want, "iptables", "nftables", "routes", "sysctls")
	slices.Sort(want)
	var got []string
	for _, what := range slices.Sorted(maps.Keys(before)) {
		if slices.Equal(before[what], during[what]) {
			continue
		}
		got = append(got, what)
		if !slices.Contains(want, what) {
			t.Errorf("%s (-before +during):\n%s", what, cmp.Diff(before[what], during[what]))
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what the daemon changed (-want +got):\n%s", diff)
	}
	rules := strings.Join(during["iptables"], "\n")
	if translates := strings.Contains(rules, "FLANNELD-GO-NAT"); translates != (place != "nftables") {
		t.Errorf("iptables translates sources: %v, beside %s:\n%s", translates, place, rules)
	}
}
