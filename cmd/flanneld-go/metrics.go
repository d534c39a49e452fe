package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
)

// metric is one row of the table that turns a Status into samples.
type metric struct {
	name, help string
	kind       prometheus.ValueType
	label      string
	read       func(status.Status, sample)
}

// sample emits one value, with the label's value where the metric has one.
type sample func(value float64, label ...string)

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// metrics are all metrics of the daemon; docs/operations.md lists them and a
// test compares.
var metricTable = [...]metric{
	{"flanneld_ready", "1 when the lease is valid, the data path in sync and the files written.", prometheus.GaugeValue, "", func(s status.Status, put sample) { put(boolean(s.Ready)) }},
	{"flanneld_problem", "1 for each component that reports a problem.", prometheus.GaugeValue, "component", func(s status.Status, put sample) {
		for _, p := range s.Problems {
			put(1, p.Component)
		}
	}},
	{"flanneld_etcd_connected", "1 while the watch on etcd is up.", prometheus.GaugeValue, "", func(s status.Status, put sample) { put(boolean(s.Etcd.Connected)) }},
	{"flanneld_etcd_revision", "The latest etcd revision seen.", prometheus.GaugeValue, "", func(s status.Status, put sample) { put(float64(s.Etcd.Revision)) }},
	{"flanneld_etcd_requests_total", "Requests and messages sent to etcd.", prometheus.CounterValue, "", func(s status.Status, put sample) { put(float64(s.Etcd.Traffic.Requests)) }},
	{"flanneld_etcd_request_failures_total", "Calls and streams to etcd that failed.", prometheus.CounterValue, "", func(s status.Status, put sample) { put(float64(s.Etcd.Traffic.Failures)) }},
	{"flanneld_etcd_streams_total", "Streams opened to etcd.", prometheus.CounterValue, "", func(s status.Status, put sample) { put(float64(s.Etcd.Traffic.Streams)) }},
	{"flanneld_etcd_sent_bytes_total", "Bytes of messages sent to etcd.", prometheus.CounterValue, "", func(s status.Status, put sample) { put(float64(s.Etcd.Traffic.BytesSent)) }},
	{"flanneld_etcd_received_bytes_total", "Bytes of messages received from etcd.", prometheus.CounterValue, "", func(s status.Status, put sample) { put(float64(s.Etcd.Traffic.BytesReceived)) }},
	{"flanneld_bad_keys", "Keys in etcd that are no leases.", prometheus.GaugeValue, "", func(s status.Status, put sample) { put(float64(len(s.BadKeys))) }},
	{"flanneld_shared_addresses", "Addresses that leases of several owners publish.", prometheus.GaugeValue, "", func(s status.Status, put sample) { put(float64(len(s.SharedAddresses))) }},
	{"flanneld_lease_expiry_timestamp_seconds", "When our lease expires unless it is renewed; 0 for a reservation, and while the lease is neither valid nor degraded.", prometheus.GaugeValue, "", func(s status.Status, put sample) {
		if s.Lease.Expires.IsZero() {
			put(0)
			return
		}
		put(float64(s.Lease.Expires.UnixNano()) / float64(time.Second))
	}},
	{"flanneld_lease_state", "1 for the state that our lease is in.", prometheus.GaugeValue, "state", func(s status.Status, put sample) {
		if s.Lease.State != "" {
			put(1, s.Lease.State)
		}
	}},
	{"flanneld_peers", "Peers in the network.", prometheus.GaugeValue, "", func(s status.Status, put sample) { put(float64(len(s.Peers))) }},
	{"flanneld_peers_failed", "Peers that there is no path to.", prometheus.GaugeValue, "", func(s status.Status, put sample) {
		failed := 0
		for _, p := range s.Peers {
			if p.Error != "" {
				failed++
			}
		}
		put(float64(failed))
	}},
	{"flanneld_sync_runs_total", "Rounds of the loop.", prometheus.CounterValue, "", func(s status.Status, put sample) { put(float64(s.Sync.Runs)) }},
	{"flanneld_sync_failures_total", "Rounds that left something undone.", prometheus.CounterValue, "", func(s status.Status, put sample) { put(float64(s.Sync.Failures)) }},
	{"flanneld_sync_duration_seconds", "How long the last round took.", prometheus.GaugeValue, "", func(s status.Status, put sample) { put(s.Sync.LastSeconds) }},
	{"flanneld_entries_put_total", "Kernel entries added or replaced.", prometheus.CounterValue, "", func(s status.Status, put sample) { put(float64(s.Sync.Put)) }},
	{"flanneld_entries_deleted_total", "Kernel entries deleted.", prometheus.CounterValue, "", func(s status.Status, put sample) { put(float64(s.Sync.Deleted)) }},
	{"flanneld_dropped_packets_total", "Packets that were not from where they claimed to be, by reason.", prometheus.CounterValue, "reason", func(s status.Status, put sample) {
		for reason, n := range s.Dropped {
			put(float64(n), reason)
		}
	}},
	{"flanneld_data_path_total", "Counters of a data path in user space (udp), by event.", prometheus.CounterValue, "event", func(s status.Status, put sample) {
		for event, n := range s.Backend.Counters {
			put(float64(n), event)
		}
	}},
	{"flanneld_data_path_queues", "Queues of a data path in user space (udp); 0: there is none.", prometheus.GaugeValue, "", func(s status.Status, put sample) { put(float64(s.Backend.Queues)) }},
	{"flanneld_data_path_offload", "1 for each offload of a data path in user space (udp) that is on, 0 for those that are not.", prometheus.GaugeValue, "offload", func(s status.Status, put sample) {
		for name, on := range s.Backend.Offloads {
			put(boolean(on), name)
		}
	}},
}

// collector reads the board at every scrape.
type collector struct{ board *status.Board }

// newRegistry returns the daemon's metrics and those of the process.
func newRegistry(board *status.Board) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{board}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

// Describe sends nothing: the metrics are made at each scrape.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect sends the table's samples.
func (c collector) Collect(out chan<- prometheus.Metric) {
	s := c.board.Snapshot()
	for _, m := range metricTable {
		var labels []string
		if m.label != "" {
			labels = []string{m.label}
		}
		desc := prometheus.NewDesc(m.name, m.help, labels, nil)
		m.read(s, func(value float64, label ...string) {
			out <- prometheus.MustNewConstMetric(desc, m.kind, value, label...)
		})
	}
}
