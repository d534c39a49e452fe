package examples_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/flanneld-go/flanneld-go/backend"
	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/backend/udp"
	"github.com/flanneld-go/flanneld-go/backend/vxlan"
	"github.com/flanneld-go/flanneld-go/daemonconfig"
	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore"
)

// documented is a row of the key tables of docs/configuration.md.
type documented struct{ key, typ, def, rule, example string }

// keyTables reads the tables by section: "" is the document's top level,
// "Type" common to all backends.
func keyTables(t *testing.T) map[string][]documented {
	t.Helper()
	tables := map[string][]documented{}
	section, inTable := "", false
	for line := range strings.Lines(read(t, "docs/configuration.md")) {
		line = strings.TrimSpace(line)
		switch {
		case line == "### Backend":
			section = "Type"
		case strings.HasPrefix(line, "### Backend "):
			section = strings.TrimPrefix(line, "### Backend ")
			tables[section] = nil
		case line == "| key | type | default | rule | example |":
			inTable = true
		case !strings.HasPrefix(line, "|"):
			inTable = false
		case inTable && strings.HasPrefix(line, "| `"):
			cells := strings.Split(strings.Trim(line, "|"), "|")
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			if len(cells) != 5 {
				t.Fatalf("%d cells: %s", len(cells), line)
			}
			tables[section] = append(tables[section], documented{strings.Trim(cells[0], "`"), cells[1], cells[2], cells[3], cells[4]})
		}
	}
	return tables
}

// document makes a config with values in place of others. Section "" is the top
// level, else the options of that backend.
func document(section string, values map[string]string) string {
	top := map[string]json.RawMessage{"Network": json.RawMessage(`"10.5.0.0/16"`)}
	options := map[string]json.RawMessage{}
	if _, ok := backends[section]; ok {
		options["Type"] = json.RawMessage(strconv.Quote(section))
	}
	for key, value := range values {
		switch {
		case section != "":
			options[key] = json.RawMessage(value)
		case strings.HasPrefix(key, "IPv6"):
			top["EnableIPv6"], top["IPv6Network"] = json.RawMessage("true"), json.RawMessage(`"fd05::/48"`)
			fallthrough
		default:
			top[key] = json.RawMessage(value)
		}
	}
	if section != "" {
		top["Backend"] = marshal(options)
	}
	return string(marshal(top))
}

func marshal(v any) json.RawMessage {
	text, err := json.Marshal(v)
	if err != nil {
		return json.RawMessage(err.Error())
	}
	return text
}

// optionsOf are the backend's options as it reads them.
func optionsOf(c *subnet.Config) any {
	switch c.BackendType {
	case udp.Type:
		o, _, err := udp.ParseOptions(c)
		return []any{o, err}
	case vxlan.Type:
		o, _, err := vxlan.ParseOptions(c)
		return []any{o, err}
	}
	return nil
}

// knownKeys are the keys that the code knows: of all string constants in its
// source those that the parser does not report as unknown. Section is as with
// document; "Type" is left out of the backends' keys.
func knownKeys(t *testing.T, section string) []string {
	t.Helper()
	folders := map[string]string{"": "subnet", "host-gw": "backend/hostgw"}
	folder := folders[section]
	if folder == "" {
		folder = "backend/" + section
	}
	name := regexp.MustCompile(`^[A-Za-z][A-Za-z0-9]*$`)
	known := map[string]string{}
	for _, word := range slices.Concat(constants(t, folder), constants(t, "backend")) {
		if !name.MatchString(word) || strings.EqualFold(word, "Type") && section != "" {
			continue
		}
		// null counts as absent: a key that is known cannot be wrong so.
		text := fmt.Sprintf(`{"Network":"10.5.0.0/16",%q:null}`, word)
		if strings.EqualFold(word, "Network") {
			text = `{"Network":"10.5.0.0/16"}`
		}
		if section != "" {
			text = document(section, map[string]string{word: "null"})
		}
		got, err := check(text, uplinkOf(1500, ours...))
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if len(got.unknown) > 0 {
			continue
		}
		// Keys match in any case; a log key "mtu" is not what "MTU" is called.
		lower := strings.ToLower(word)
		if other, ok := known[lower]; !ok || word < other {
			known[lower] = word
		}
	}
	return slices.Sorted(maps.Values(known))
}

// constants are the string constants in a folder's source, tests left out.
func constants(t *testing.T, folder string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, folder, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: no source: %v", folder, err)
	}
	var words []string
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				word, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Fatal(err)
				}
				words = append(words, word)
			}
			return true
		})
	}
	return words
}

func TestEveryKeyIsDocumented(t *testing.T) {
	tables := keyTables(t)
	sections := append(slices.Sorted(maps.Keys(backends)), "")
	for _, section := range sections {
		rows, ok := tables[section]
		if !ok {
			t.Errorf("no section for backend %s", section)
		}
		var keys []string
		for _, row := range rows {
			keys = append(keys, row.key)
		}
		slices.Sort(keys)
		if diff := cmp.Diff(knownKeys(t, section), keys, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%q: keys of the code and keys of the page (-code +page)\n%s", section, diff)
		}
	}
	if len(tables) != len(sections)+1 || len(tables["Type"]) != 1 {
		t.Errorf("sections %v, want one per backend", slices.Sorted(maps.Keys(tables)))
	}
	for name := range backends {
		if !strings.Contains(tables["Type"][0].rule, "`"+name+"`") {
			t.Errorf("Type does not name %s", name)
		}
	}
}

// bounds finds "1 to 65535" in a rule.
var bounds = regexp.MustCompile(`(\d+) to (\d+)`)

func TestDocumentedKeys(t *testing.T) {
	up := uplinkOf(70000, ours...)
	tables := keyTables(t)
	delete(tables, "Type")
	for section, rows := range tables {
		for _, row := range rows {
			t.Run(section+"."+row.key, func(t *testing.T) {
				accepts := func(value string) error {
					_, err := check(document(section, map[string]string{row.key: value}), up)
					return err
				}
				if err := accepts(strings.Trim(row.example, "`")); err != nil {
					t.Errorf("the example is refused: %v", err)
				}
				if literal, ok := strings.CutPrefix(row.def, "`"); ok {
					wantDefault(t, section, row.key, strings.TrimSuffix(literal, "`"))
				}
				if err := accepts(`[]`); err == nil {
					t.Error("a list is accepted")
				}
				wantBounds(t, row, accepts)
			})
		}
	}
}

// wantDefault compares a key at its default with a key left out.
func wantDefault(t *testing.T, section, key, literal string) {
	t.Helper()
	up := uplinkOf(1500, ours...)
	without, err := check(document(section, nil), up)
	if err != nil {
		t.Fatal(err)
	}
	with, err := check(document(section, map[string]string{key: literal}), up)
	if err != nil {
		t.Fatalf("the default is refused: %v", err)
	}
	if diff := cmp.Diff(facts(without), facts(with), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Errorf("%s is not the default (-default +page)\n%s", literal, diff)
	}
}

// wantBounds tries the bounds of an integer and what is just outside.
func wantBounds(t *testing.T, row documented, accepts func(string) error) {
	t.Helper()
	m := bounds.FindStringSubmatch(row.rule)
	if m == nil {
		if row.typ == "integer" {
			t.Errorf("no bounds in %q", row.rule)
		}
		return
	}
	low, _ := strconv.Atoi(m[1])
	high, _ := strconv.Atoi(m[2])
	for value, fine := range map[int]bool{low: true, high: true, low - 1: false, high + 1: false} {
		if value == 0 && !fine {
			continue // 0 is the default of some
		}
		if err := accepts(strconv.Itoa(value)); (err == nil) != fine {
			t.Errorf("%d: %v, want accepted %v", value, err, fine)
		}
	}
	if low == 1 && accepts("0") == nil {
		t.Error("0 is accepted")
	}
}

func TestDocumentedFiles(t *testing.T) {
	text := read(t, "docs/configuration.md")
	env := daemonconfig.Env{MTU: 1450}
	env.Networks[0], env.Subnets[0] = netip.MustParsePrefix("10.5.0.0/16"), netip.MustParsePrefix("10.5.72.0/24")
	shown := blocks(text, "")
	for name, want := range map[string]string{"subnet.env": string(env.Format()), "options file": string(daemonconfig.OptionsFile(env))} {
		if !slices.Contains(shown, want) {
			t.Errorf("%s is not shown as it would be:\n%s", name, want)
		}
	}
}

// What the page tells people to type is typed, and comes to what it says: the
// config is put, and both reservations are leased by those they are for.
func TestDocumentedCommands(t *testing.T) {
	endpoint := plainEtcd(t)
	runBlocks(t, "docs/configuration.md", t.TempDir(), "192.0.2.10:2379", endpoint)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	store, err := etcdstore.New(etcdstore.Options{Endpoints: []string{"http://" + endpoint}, Prefix: "/coreos.com/network"})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for _, c := range []struct {
		node subnet.NodeID
		ip   string
		want string
	}{
		{"any", "192.0.2.7", "10.5.7.0/24"},
		{"8f0c4e9d2b7a4c51a3e6d9f80b1c2d3e", "192.0.2.99", "10.5.8.0/24"},
	} {
		world, err := store.Load(ctx)
		if err != nil {
			t.Fatal(err)
		}
		claim := subnet.Claim{Node: c.node, Instance: "i", Attrs: subnet.Attrs{PublicIP: subnet.ByFamily[netip.Addr]{netip.MustParseAddr(c.ip)}}}
		got, err := subnet.Acquire(ctx, store, world, claim)
		if err != nil || got.Subnet.String() != c.want || !got.Reservation() {
			t.Errorf("node %s at %s leases %s, reservation %v, %v; want the reservation %s", c.node, c.ip, got.Subnet, got.Reservation(), err, c.want)
		}
	}
}

// The MTU table is what the backends say.
func TestDocumentedMTU(t *testing.T) {
	text := read(t, "docs/backends.md")
	start := strings.Index(text, "## MTU")
	rows := regexp.MustCompile(`(?m)^\| (\d+) \|(.*)\|$`).FindAllStringSubmatch(text[max(start, 0):], -1)
	if len(rows) < 3 {
		t.Fatalf("%d rows", len(rows))
	}
	const v4, v6 = `{"Network":"10.5.0.0/16","Backend":{"Type":%q}}`, `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd05::/48","Backend":{"Type":%q}}`
	for _, row := range rows {
		mtu, _ := strconv.Atoi(row[1])
		var got []string
		for _, c := range []struct {
			config, backend string
			addrs           []string
		}{
			{v4, "vxlan", ours[:1]},
			{v6, "vxlan", ours[1:]},
			{v4, "host-gw", ours[:1]},
			{v4, "udp", ours[:1]},
			{v4, "udp", ours[1:]},
			{v4, "alloc", ours[:1]},
		} {
			b, err := check(fmt.Sprintf(c.config, c.backend), uplinkOf(mtu, c.addrs...))
			if err != nil {
				got = append(got, "refused")
				continue
			}
			got = append(got, strconv.Itoa(b.mtu))
		}
		if want := strings.TrimSpace(row[2]); strings.Join(got, " | ") != want {
			t.Errorf("uplink %d: page %s, code %s", mtu, want, strings.Join(got, " | "))
		}
	}
}

// failing applies a backend on a stack in memory and returns what it says.
func failing(t *testing.T, options string, peer subnet.Attrs, disturb func(*kerneltest.Fake, kernel.Link)) error {
	t.Helper()
	h := kerneltest.New()
	eth0 := h.Plug(kernel.Link{Name: "eth0", MTU: 1500}, netip.MustParsePrefix("198.51.100.1/24"))
	if disturb != nil {
		disturb(h, eth0)
	}
	c, err := subnet.ParseConfig(`{"Network":"10.5.0.0/16","Backend":` + options + `}`)
	if err != nil {
		t.Fatal(err)
	}
	up := uplinkOf(1500, ours[0])
	up.Link, up.Segments = eth0, []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	b, err := backends[c.BackendType](backend.Params{Config: c, Node: "node", Kernel: h})
	if err == nil {
		_, err = b.Attrs(up)
	}
	if err != nil {
		return err
	}
	peer.PublicIP[subnet.IPv4] = netip.MustParseAddr("192.0.2.9")
	return b.Apply(t.Context(), backend.Desired{
		Config: c,
		Uplink: up,
		Own:    subnet.Lease{Subnet: subnet.Subnet{netip.MustParsePrefix("10.5.72.0/24")}},
		Peers:  []*subnet.Lease{{Subnet: subnet.Subnet{netip.MustParsePrefix("10.5.9.0/24")}, Attrs: peer}},
	})
}

// Every failure that the page quotes is made, and must be quoted to the letter.
func TestDocumentedFailures(t *testing.T) {
	text := read(t, "docs/backends.md")
	vtep := func(vni string) subnet.Attrs {
		return subnet.Attrs{BackendType: "vxlan", BackendData: subnet.ByFamily[subnet.RawJSON]{subnet.RawJSON(`{"VNI":` + vni + `,"VtepMAC":"5e:ca:ce:aa:6f:af"}`)}}
	}
	const vx = `{"Type":"vxlan"}`
	for name, err := range map[string]error{
		"segment":       failing(t, `{"Type":"host-gw"}`, subnet.Attrs{BackendType: "host-gw"}, nil),
		"other backend": failing(t, vx, subnet.Attrs{}, nil),
		"other vni":     failing(t, vx, vtep("7"), nil),
		"foreign route": failing(t, vx, vtep("1"), func(h *kerneltest.Fake, eth0 kernel.Link) {
			route := kernel.Route{Dst: netip.MustParsePrefix("10.5.9.0/24"), Gateway: netip.MustParseAddr("198.51.100.254"), Link: eth0.Index, Protocol: 4}
			if err := h.Routes().Put(t.Context(), []kernel.Route{route}); err != nil {
				t.Fatal(err)
			}
		}),
		"foreign device": failing(t, vx, vtep("1"), func(h *kerneltest.Fake, _ kernel.Link) {
			h.Plug(kernel.Link{Name: "flannel.1", Type: "bridge", MTU: 1500})
		}),
		"rival device": failing(t, vx, vtep("1"), func(h *kerneltest.Fake, _ kernel.Link) {
			if _, err := h.AddLink(t.Context(), kernel.Link{Name: "vxlan42", Type: "vxlan", VXLAN: kernel.VXLAN{VNI: 1, Port: 8472}}); err != nil {
				t.Fatal(err)
			}
		}),
		"small uplink": func() error {
			_, err := check(`{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`, uplinkOf(600, ours[0]))
			return err
		}(),
		"port taken": portTaken(t),
	} {
		if err == nil {
			t.Errorf("%s: no failure", name)
			continue
		}
		said := strings.Split(err.Error(), "\n")[0]
		if !strings.Contains(text, said) {
			t.Errorf("%s: the page does not quote\n%s", name, said)
		}
	}
}

// portTaken occupies udp's port on loopback, and says it with the usual port, and a
// usual process in place of this one.
func portTaken(t *testing.T) error {
	t.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, port, err := net.SplitHostPort(c.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	config, err := subnet.ParseConfig(`{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Port":` + port + `}}`)
	if err != nil {
		t.Fatal(err)
	}
	b, err := udp.New(backend.Params{Config: config, Kernel: kerneltest.New()})
	if err != nil {
		t.Fatal(err)
	}
	err = b.Apply(t.Context(), backend.Desired{Config: config, Uplink: uplinkOf(1500, "127.0.0.1"), Own: subnet.Lease{Subnet: subnet.Subnet{netip.MustParsePrefix("10.5.72.0/24")}}})
	if err == nil {
		return nil
	}
	said := strings.NewReplacer(port, "8285", "this process", "flanneld (process 812)").Replace(err.Error())
	return errors.New(said)
}

// flagTable reads the flags of docs/compatibility.md by what becomes of them.
func flagTable(t *testing.T) map[string]string {
	t.Helper()
	flags := map[string]string{}
	_, text, _ := strings.Cut(read(t, "docs/compatibility.md"), "| flannel's flag | here |")
	for line := range strings.Lines(text) {
		if cells := strings.Split(line, "|"); len(cells) == 4 {
			for _, m := range regexp.MustCompile("`--([a-z0-9_-]+)`").FindAllStringSubmatch(cells[1], -1) {
				what, _, _ := strings.Cut(strings.Trim(cells[2], " ,:"), ",")
				what, _, _ = strings.Cut(what, ":")
				flags[m[1]] = what
			}
		} else if strings.HasPrefix(line, "#") {
			break
		}
	}
	return flags
}

// flannel's flags, all of them.
const flannelFlags = `etcd-endpoints etcd-prefix etcd-keyfile etcd-certfile etcd-cafile etcd-username etcd-password iface iface-regex
	iface-can-reach public-ip public-ipv6 subnet-file subnet-lease-renew-margin ip-masq ip-masq-fully-random-disable iptables-resync
	iptables-forward-rules ip-blackhole-route healthz-ip healthz-port net-config-path v vmodule log_backtrace_at version
	kube-subnet-mgr kube-api-url kube-annotation-prefix kubeconfig-file set-node-network-unavailable`

func TestDocumentedFlags(t *testing.T) {
	table := flagTable(t)
	if diff := cmp.Diff(slices.Sorted(slices.Values(strings.Fields(flannelFlags))), slices.Sorted(maps.Keys(table))); diff != "" {
		t.Errorf("flannel's flags and those of the page (-want +got)\n%s", diff)
	}
	out, err := command(t, "flanneld-go", "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	visible := regexp.MustCompile(`(?m)^ +(?:-\w, )?--([\w-]+)`)
	shown := map[string]bool{}
	for _, m := range visible.FindAllStringSubmatch(string(out), -1) {
		shown[m[1]] = true
	}
	for name, what := range table {
		switch what {
		case "accepted":
			if !shown[name] {
				t.Errorf("--%s is not accepted: it is not in the help", name)
			}
		case "ignored", "refused":
			cmd := command(t, "flanneld-go", "--"+name+"=true", "--node-id=x", "--version")
			if _, err := cmd.Output(); err != nil {
				t.Errorf("--%s does not parse: %v", name, err)
			}
			refused := command(t, "flanneld-go", "--"+name+"=true", "--log-level=none")
			said, _ := refused.CombinedOutput() // it fails one way or the other
			if strings.Contains(string(said), "--"+name+": ") != (what == "refused") {
				t.Errorf("--%s: the page says %s, the daemon:\n%s", name, what, said)
			}
		default:
			t.Errorf("--%s: %q", name, what)
		}
	}
	// And the other way round: every flag is in the README.
	readme := read(t, "README.md")
	for name := range shown {
		if name != "v" && name != "help" && !strings.Contains(readme, "`--"+name+"`") {
			t.Errorf("README has not --%s", name)
		}
	}
}

// pages are all pages for people.
func pages(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"README.md", "docs/*.md", "examples/*/README.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %v", pattern, err)
		}
		all = append(all, found...)
	}
	return all
}

func TestLinksLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)\)`)
	for _, page := range pages(t) {
		text := read(t, strings.TrimPrefix(page, root+"/"))
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s: %v", page, err)
			}
		}
	}
}

// A flag that a page names must exist in one of our commands, in etcd or in
// iptables.
func TestNamedFlagsExist(t *testing.T) {
	exists := map[string]bool{"yes": true, "json": true, "help": true, "version": true, "random-fully": true}
	etcd := flag.NewFlagSet("etcd", flag.ContinueOnError)
	embed.NewConfig().AddFlags(etcd)
	etcd.VisitAll(func(f *flag.Flag) { exists[f.Name] = true })
	for _, folder := range []string{"cmd/flanneld-go", "cmd/flannelctl", "cmd/internal/cli"} {
		for _, word := range constants(t, folder) {
			exists[word] = true
		}
	}
	named := regexp.MustCompile("`--([a-z0-9_-]+)[^`]*`")
	for _, page := range pages(t) {
		for _, m := range named.FindAllStringSubmatch(read(t, strings.TrimPrefix(page, root+"/")), -1) {
			if !exists[m[1]] {
				t.Errorf("%s: no command has --%s", page, m[1])
			}
		}
	}
}
