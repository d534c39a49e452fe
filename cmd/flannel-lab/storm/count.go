package storm

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
)

// Counts are what an etcd says of its clients, in its own metrics: totals since
// it was started, or the difference of two.
type Counts struct {
	// Requests are messages from clients, by etcd's names of its calls: Txn,
	// Range, LeaseGrant, LeaseKeepAlive, Watch. A stream counts every message.
	Requests map[string]float64 `json:"requests"`
	// Received and Sent are bytes of messages, without what gRPC and TCP add.
	Received float64 `json:"received"`
	Sent     float64 `json:"sent"`
	// Events are those of watches that were sent.
	Events float64 `json:"events"`
	// Streams are the streams of watches that are open now, also in a
	// difference.
	Streams float64 `json:"streams"`
	// started tells one run of an etcd from the next.
	started float64
}

// The names of etcd's metrics.
const (
	metricMessages = "grpc_server_msg_received_total"
	metricEnded    = "grpc_server_handled_total"
	metricReceived = "etcd_network_client_grpc_received_bytes_total"
	metricSent     = "etcd_network_client_grpc_sent_bytes_total"
	metricEvents   = "etcd_debugging_mvcc_events_total"
	metricStreams  = "etcd_debugging_mvcc_watch_stream_total"
	metricStarted  = "process_start_time_seconds"
	labelMethod    = "grpc_method"
	labelService   = "grpc_service"
	labelType      = "grpc_type"
	typeStream     = "bidi_stream"
	ofEtcd         = "etcdserverpb."
)

// All is the number of requests of all kinds.
func (c Counts) All() float64 {
	sum := 0.0
	for _, n := range c.Requests {
		sum += n
	}
	return sum
}

// since is what happened between an earlier count and c. An etcd that was started
// again in between began at zero.
func (c Counts) since(before Counts) Counts {
	if c.started != before.started {
		return c
	}
	d := c
	d.Requests = maps.Clone(c.Requests)
	for method, n := range before.Requests {
		if d.Requests[method] -= n; d.Requests[method] == 0 {
			delete(d.Requests, method)
		}
	}
	d.Received -= before.Received
	d.Sent -= before.Sent
	d.Events -= before.Events
	return d
}

// fetchCounts asks an etcd at a URL.
func fetchCounts(ctx context.Context, client *http.Client, url string) (Counts, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/metrics", nil)
	if err != nil {
		return Counts{}, fmt.Errorf("read etcd's metrics: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return Counts{}, fmt.Errorf("read etcd's metrics: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return Counts{}, fmt.Errorf("read etcd's metrics: %s", resp.Status)
	}
	return readCounts(resp.Body)
}

// readCounts reads metrics in Prometheus' text form. One that is missing is an
// error: a figure of zero would look like a good one.
func readCounts(text io.Reader) (Counts, error) {
	c := Counts{Requests: map[string]float64{}}
	wanted := map[string]*float64{
		metricReceived: &c.Received, metricSent: &c.Sent, metricEvents: &c.Events, metricStreams: &c.Streams, metricStarted: &c.started,
	}
	lines := bufio.NewScanner(text)
	for lines.Scan() {
		m, ok := parseMetric(lines.Text())
		if !ok {
			continue
		}
		if into := wanted[m.name]; into != nil {
			*into = m.value
			delete(wanted, m.name)
		}
		if strings.HasPrefix(m.labels[labelService], ofEtcd) {
			c.add(m)
		}
	}
	if err := lines.Err(); err != nil {
		return Counts{}, fmt.Errorf("read etcd's metrics: %w", err)
	}
	for name := range wanted {
		return Counts{}, fmt.Errorf("read etcd's metrics: there is no %s", name)
	}
	return c, nil
}

// add counts what m says of one of etcd's calls. The end of a stream, which nobody
// sent, is among the messages that etcd received.
func (c *Counts) add(m metric) {
	switch {
	case m.name == metricMessages && m.value > 0:
		c.Requests[m.labels[labelMethod]] += m.value
	case m.name == metricEnded && m.labels[labelType] == typeStream && m.value > 0:
		c.Requests[m.labels[labelMethod]] -= m.value
	}
}

// metric is one line of Prometheus' text form.
type metric struct {
	name   string
	labels map[string]string
	value  float64
}

// parseMetric reads `name{label="value",...} 1.5`; false: the line is none.
func parseMetric(line string) (metric, bool) {
	end := strings.IndexAny(line, "{ ")
	if end <= 0 || line[0] == '#' {
		return metric{}, false
	}
	m := metric{name: line[:end], labels: map[string]string{}}
	rest := line[end:]
	if rest[0] == '{' {
		var ok bool
		if rest, ok = m.parseLabels(rest[1:]); !ok {
			return metric{}, false
		}
	}
	// A time may follow the value.
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return metric{}, false
	}
	var err error
	m.value, err = strconv.ParseFloat(fields[0], 64)
	return m, err == nil
}

// parseLabels reads up to the closing brace, and returns what follows it.
func (m *metric) parseLabels(s string) (rest string, ok bool) {
	for {
		s = strings.TrimLeft(s, ", ")
		if after, end := strings.CutPrefix(s, "}"); end {
			return after, true
		}
		name, after, found := strings.Cut(s, "=")
		if !found {
			return "", false
		}
		quoted, err := strconv.QuotedPrefix(after)
		if err != nil {
			return "", false
		}
		value, err := strconv.Unquote(quoted)
		if err != nil {
			return "", false
		}
		m.labels[name] = value
		s = after[len(quoted):]
	}
}
