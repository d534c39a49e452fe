package storm

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// text is what an etcd of 3.7 says, in part.
const text = `# HELP grpc_server_msg_received_total Total number of RPC stream messages received on the server.
# TYPE grpc_server_msg_received_total counter
grpc_server_msg_received_total{grpc_method="Alarm",grpc_service="etcdserverpb.Maintenance",grpc_type="unary"} 0
grpc_server_msg_received_total{grpc_method="Check",grpc_service="grpc.health.v1.Health",grpc_type="unary"} 7
grpc_server_msg_received_total{grpc_method="LeaseKeepAlive",grpc_service="etcdserverpb.Lease",grpc_type="bidi_stream"} 400
grpc_server_msg_received_total{grpc_method="Txn",grpc_service="etcdserverpb.KV",grpc_type="unary"} 8.5e+02
grpc_server_handled_total{grpc_code="Canceled",grpc_method="LeaseKeepAlive",grpc_service="etcdserverpb.Lease",grpc_type="bidi_stream"} 150
grpc_server_handled_total{grpc_code="OK",grpc_method="LeaseKeepAlive",grpc_service="etcdserverpb.Lease",grpc_type="bidi_stream"} 50
grpc_server_handled_total{grpc_code="OK",grpc_method="Txn",grpc_service="etcdserverpb.KV",grpc_type="unary"} 850
etcd_network_client_grpc_received_bytes_total 1.234e+06 1700000000
etcd_network_client_grpc_sent_bytes_total 5.6e+07
etcd_debugging_mvcc_events_total 40200
etcd_debugging_mvcc_watch_stream_total 200
process_start_time_seconds 1.7e+09
`

func TestReadCounts(t *testing.T) {
	got, err := readCounts(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	want := Counts{
		// The ends of 200 streams are no requests.
		Requests: map[string]float64{"Txn": 850, "LeaseKeepAlive": 200},
		Received: 1.234e6, Sent: 5.6e7, Events: 40200, Streams: 200, started: 1.7e9,
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(Counts{})); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	for line := range strings.Lines(text) {
		if name, _, _ := strings.Cut(line, " "); !strings.ContainsAny(name, "#{") {
			if _, err := readCounts(strings.NewReader(strings.Replace(text, line, "", 1))); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("without %s: %v, want an error that names it", name, err)
			}
		}
	}
}

func TestSince(t *testing.T) {
	before := Counts{Requests: map[string]float64{"Txn": 10, "Watch": 5}, Received: 100, Sent: 1000, Events: 7, Streams: 3, started: 1}
	after := Counts{Requests: map[string]float64{"Txn": 30, "Watch": 5, "Range": 2}, Received: 150, Sent: 1700, Events: 9, Streams: 4, started: 1}
	want := Counts{Requests: map[string]float64{"Txn": 20, "Range": 2}, Received: 50, Sent: 700, Events: 2, Streams: 4, started: 1}
	if d := cmp.Diff(want, after.since(before), cmp.AllowUnexported(Counts{})); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if after.Requests["Txn"] != 30 {
		t.Error("the later count was changed")
	}
	after.started = 2
	if d := cmp.Diff(after, after.since(before), cmp.AllowUnexported(Counts{})); d != "" {
		t.Errorf("of an etcd that was started anew: -want +got\n%s", d)
	}
}

func TestPeak(t *testing.T) {
	at := func(started float64, samples ...float64) []sample {
		var all []sample
		for i, n := range samples {
			all = append(all, sample{time.Unix(0, 0).Add(time.Duration(i) * sampleEvery), Counts{Requests: map[string]float64{"Txn": n}, started: started}})
		}
		return all
	}
	gap := at(1, 0, 10, 20, 30, 40, 5000)
	gap[5].at = gap[5].at.Add(time.Minute)
	for name, tt := range map[string]struct {
		samples []sample
		want    float64
	}{
		"none":           {nil, 0},
		"one":            {at(1, 5), 0},
		"less than 1 s":  {at(1, 0, 10), 40},
		"steady":         {at(1, 0, 10, 20, 30, 40, 50), 40},
		"a burst":        {at(1, 0, 0, 100, 100, 100, 100, 110), 100},
		"over a gap":     {gap, 40},
		"over a restart": {append(at(1, 0, 10, 20, 30, 1000), at(2, 0)...), 1000},
	} {
		if got := peak(tt.samples); !cmp.Equal(tt.want, got, cmpopts.EquateApprox(0, 0.01)) {
			t.Errorf("%s: %g, want %g", name, got, tt.want)
		}
	}
}

func FuzzParseMetric(f *testing.F) {
	for line := range strings.Lines(text) {
		f.Add(strings.TrimSuffix(line, "\n"))
	}
	f.Add(`a{b="\"}",c="d"} 1`)
	f.Fuzz(func(t *testing.T, line string) {
		m, ok := parseMetric(line)
		if !ok {
			return
		}
		if !strings.HasPrefix(line, m.name) || m.name == "" || strings.ContainsAny(m.name, "{ ") {
			t.Errorf("name %q of %q", m.name, line)
		}
		for name, value := range m.labels {
			if !strings.Contains(line, name+"=") {
				t.Errorf("label %q=%q of %q", name, value, line)
			}
		}
	})
}
