package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
)

// tableOf returns the cells of the table in a section of docs/operations.md,
// without the heading.
func tableOf(t *testing.T, section string) [][]string {
	t.Helper()
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "\n## "+section+"\n")
	if !ok {
		t.Fatalf("docs/operations.md has no section %q", section)
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	var rows [][]string
	for line := range strings.Lines(rest) {
		if !strings.HasPrefix(line, "|") {
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows = append(rows, cells)
	}
	if len(rows) < 3 {
		t.Fatalf("docs/operations.md has no table in section %q", section)
	}
	return rows[2:] // behind the heading and its line
}

// names are the words in backquotes of a cell.
func names(cell string) []string {
	var list []string
	for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cell, -1) {
		list = append(list, m[1])
	}
	return list
}

func TestOperationsListsEveryMetric(t *testing.T) {
	documented, exported := map[string]string{}, map[string]string{}
	for _, row := range tableOf(t, "Metrics") {
		for _, name := range names(row[0]) {
			documented[name] = strings.Join(names(row[1]), "")
		}
	}
	for _, m := range metricTable {
		if _, twice := exported[m.name]; twice {
			t.Errorf("%s stands twice in the table", m.name)
		}
		exported[m.name] = m.label
	}
	if diff := cmp.Diff(exported, documented); diff != "" {
		t.Errorf("metrics and their labels (-code +docs/operations.md):\n%s", diff)
	}
}

// The components are constants of package status; its source is the list.
func TestOperationsListsEveryComponent(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../internal/status/status.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var components []string
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || !strings.HasPrefix(spec.Names[0].Name, "Component") {
			return true
		}
		name, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		components = append(components, name)
		return false
	})
	var documented []string
	for _, row := range tableOf(t, "Problems") {
		documented = append(documented, names(row[0])...)
	}
	slices.Sort(components)
	slices.Sort(documented)
	if diff := cmp.Diff(components, documented); diff != "" {
		t.Errorf("components (-code +docs/operations.md):\n%s", diff)
	}
}

func TestOperationsListsEveryState(t *testing.T) {
	want := []string{
		string(status.StateStarting), string(status.StateWaiting), string(status.StateRunning), string(status.StateDegraded), string(status.StateStopping),
	}
	var documented []string
	for _, row := range tableOf(t, "Is it well") {
		documented = append(documented, names(row[0])...)
	}
	if diff := cmp.Diff(want, documented); diff != "" {
		t.Errorf("states (-code +docs/operations.md):\n%s", diff)
	}
}

// scrape gathers the daemon's own metrics as "name{label} value".
func scrape(t *testing.T, board *status.Board) map[string]float64 {
	t.Helper()
	families, err := newRegistry(board).Gather()
	if err != nil {
		t.Fatal(err)
	}
	samples := map[string]float64{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "flanneld_") {
			continue
		}
		if f.GetHelp() == "" {
			t.Errorf("%s has no help", f.GetName())
		}
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += "{" + l.GetName() + "=" + l.GetValue() + "}"
			}
			samples[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return samples
}

func TestScrape(t *testing.T) {
	board := status.NewBoard(time.Now, status.Status{})
	board.Update(func(s *status.Status) {
		s.State, s.Ready = status.StateRunning, true
		s.Etcd = status.Etcd{
			Connected: true, Revision: 42,
			Traffic: status.Traffic{Requests: 31, Failures: 3, Streams: 4, BytesSent: 1500, BytesReceived: 90000},
		}
		s.BadKeys = []status.BadKey{{Key: "x", Error: "y"}}
		s.SharedAddresses = []status.SharedAddress{{PublicIP: "198.18.0.2"}, {PublicIP: "198.18.0.3"}}
		s.Lease = status.Lease{State: "valid", Expires: time.Unix(1_700_000_000, 500_000_000)}
		s.Peers = []status.Peer{{Subnet: "a"}, {Subnet: "b", Error: "no path"}, {Subnet: "c", Error: "no path"}}
		s.Sync = status.Sync{Runs: 7, Failures: 2, LastSeconds: 0.25, Put: 11, Deleted: 5}
		s.Dropped = map[string]uint64{"foreign_source": 12}
		s.Backend.Counters = map[string]uint64{"received_forwarded": 9, "sent_no_peer": 1}
		s.Backend.Queues, s.Backend.Offloads = 4, map[string]bool{"tso": true, "uso": false}
	})
	board.Report(status.Problem{Component: status.ComponentPeers, Message: "2 of 3"})
	board.Report(status.Problem{Component: status.ComponentDocker, Message: "differs"})
	want := map[string]float64{
		"flanneld_ready":                                        1,
		"flanneld_problem{component=peers}":                     1,
		"flanneld_problem{component=docker}":                    1,
		"flanneld_etcd_connected":                               1,
		"flanneld_etcd_revision":                                42,
		"flanneld_etcd_requests_total":                          31,
		"flanneld_etcd_request_failures_total":                  3,
		"flanneld_etcd_streams_total":                           4,
		"flanneld_etcd_sent_bytes_total":                        1500,
		"flanneld_etcd_received_bytes_total":                    90000,
		"flanneld_bad_keys":                                     1,
		"flanneld_shared_addresses":                             2,
		"flanneld_lease_expiry_timestamp_seconds":               1_700_000_000.5,
		"flanneld_lease_state{state=valid}":                     1,
		"flanneld_peers":                                        3,
		"flanneld_peers_failed":                                 2,
		"flanneld_sync_runs_total":                              7,
		"flanneld_sync_failures_total":                          2,
		"flanneld_sync_duration_seconds":                        0.25,
		"flanneld_entries_put_total":                            11,
		"flanneld_entries_deleted_total":                        5,
		"flanneld_dropped_packets_total{reason=foreign_source}": 12,
		"flanneld_data_path_total{event=received_forwarded}":    9,
		"flanneld_data_path_total{event=sent_no_peer}":          1,
		"flanneld_data_path_queues":                             4,
		"flanneld_data_path_offload{offload=tso}":               1,
		"flanneld_data_path_offload{offload=uso}":               0,
	}
	got := scrape(t, board)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	scraped := map[string]bool{}
	for name := range maps.Keys(got) {
		name, _, _ = strings.Cut(name, "{")
		scraped[name] = true
	}
	for _, m := range metricTable {
		if !scraped[m.name] {
			t.Errorf("a full status gives no %s", m.name)
		}
	}
}

// A daemon that waits has a scrape as well, without a lease's state.
func TestScrapeAtStart(t *testing.T) {
	got := scrape(t, status.NewBoard(time.Now, status.Status{}))
	for _, name := range []string{"flanneld_ready", "flanneld_lease_expiry_timestamp_seconds", "flanneld_etcd_connected", "flanneld_peers"} {
		if v, ok := got[name]; !ok || v != 0 {
			t.Errorf("%s is %v, %t; want 0", name, v, ok)
		}
	}
	for name := range got {
		if strings.Contains(name, "{") {
			t.Errorf("%s before anything happened", name)
		}
	}
}
