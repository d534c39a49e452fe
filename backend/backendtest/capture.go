package backendtest

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
)

// FlannelHost is a namespace in which a host of the captures would find itself
// before flannel starts: eth0 with 198.18.0.1/24 and fd00:198:18::1/64, and a
// default route per family.
func FlannelHost(t testing.TB) *kerneltest.Namespace {
	t.Helper()
	ns := kerneltest.NetNS(t, kernel.Options{})
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"link", "add", "eth0", "type", "veth", "peer", "name", "cable"},
		{"addr", "add", "198.18.0.1/24", "dev", "eth0"},
		{"addr", "add", "fd00:198:18::1/64", "nodad", "dev", "eth0"},
		{"link", "set", "cable", "up"},
		{"link", "set", "eth0", "up"},
		{"route", "add", "default", "via", "198.18.0.254"},
		{"route", "add", "default", "via", "fd00:198:18::fe"},
	} {
		ns.Run(t, "ip", args...)
	}
	awaitCarrier(t, ns, "eth0")
	return ns
}

// Capture prints a host as the captures do, from the tunnel's devices to the
// neighbours.
func Capture(t testing.TB, ns *kerneltest.Namespace, devices ...string) string {
	t.Helper()
	var b strings.Builder
	section := func(title string, commands ...[]string) {
		b.WriteString("# " + title + "\n")
		for _, c := range commands {
			b.WriteString(ns.Run(t, c[0], c[1:]...))
		}
	}
	per := func(command ...string) [][]string {
		var all [][]string
		for _, d := range devices {
			all = append(all, append(append([]string(nil), command...), d))
		}
		return all
	}
	section("ip -d link (tunnel devices) on host 1", per("ip", "-d", "link", "show", "dev")...)
	section("ip addr", per("ip", "addr", "show", "dev")...)
	section("ip route", []string{"ip", "-4", "route"}, []string{"ip", "-6", "route"})
	section("bridge fdb", []string{"sh", "-c", "bridge fdb show | grep -F ' dev flannel' || true"})
	section("ip neigh", []string{"ip", "-4", "neigh"}, []string{"ip", "-6", "neigh"})
	return b.String()
}

// What differs between any two runs, or says the same in other words.
var capturePatterns = []struct { //nolint:gochecknoglobals // a constant table
	re   *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`(?m)^\d+: `), ""},                    // index
	{regexp.MustCompile(`(?m)^    alias .*\n`), ""},           // ours
	{regexp.MustCompile(` nhid \d+`), ""},                     // the id of a nexthop object
	{regexp.MustCompile(` proto 158`), ""},                    // ours
	{regexp.MustCompile(` qlen \d+`), ""},                     // of a device without a queue
	{regexp.MustCompile(`(?m)^.* (lo|cable) .*\n`), ""},       // of the laboratory
	{regexp.MustCompile(`(?m)^fe80::/64 .*\n`), ""},           // cut from the captures
	{regexp.MustCompile(`(?m)^    inet6 fe80:.*\n.*\n`), ""},  // flannel keeps it on one device and removes it on the other
	{regexp.MustCompile(`(?m)^(    inet6 .*) nodad `), "$1 "}, // flannel waits for the detection of duplicates
	{regexp.MustCompile(` +\n`), "\n"},
}

// ExpectCapture compares a host with a file cut out of the captures.
func ExpectCapture(t testing.TB, file, got string) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := string(raw)
	for _, p := range capturePatterns {
		want, got = p.re.ReplaceAllString(want, p.with), p.re.ReplaceAllString(got, p.with)
	}
	if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("host (-%s +got)\n%s", file, diff)
	}
}
