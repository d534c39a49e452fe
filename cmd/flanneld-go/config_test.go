package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/cmd/internal/cli"
	"github.com/flanneld-go/flanneld-go/cmd/internal/statedir"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// judging is a loop without a host: enough to judge configs and to report.
func judging(t *testing.T) (*loop, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	clock := bubbleClock{time.Now()}
	d := &daemon{
		opts:  options{etcd: cli.Etcd{Endpoints: []string{"http://a:1", "http://b:2"}, Prefix: "/net"}},
		log:   slog.New(slog.NewTextHandler(&log, nil)),
		clock: clock,
		dir:   statedir.Dir(t.TempDir()),
		board: status.NewBoard(clock.Now, status.Status{}),
	}
	return newLoop(d, nil, nil), &log
}

// text is an error as an operator reads it, with the hint.
func text(err error) string {
	if err == nil {
		return ""
	}
	var h *hintError
	if errors.As(err, &h) {
		return err.Error() + " | " + h.hint
	}
	return err.Error()
}

const put = `etcdctl --endpoints=http://a:1,http://b:2 put /net/config '{"Network":"10.5.0.0/16"}'`

func TestJudge(t *testing.T) {
	const running = `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7}}`
	tests := []struct {
		name string
		// first is in force at revision 4; next is judged at revision 9.
		first, next string
		want        string
		adopted     bool
	}{
		{name: "valid at start", next: running, adopted: true},
		{
			name: "none at start",
			want: "no network config yet: waiting for key /net/config at http://a:1,http://b:2; put one with: " + put,
		},
		{
			name: "all problems at start", next: `{"Network":"10.5.0.0/33","SubnetLen":"x","Backend":{}}`,
			want: "network config at revision 9 is invalid, waiting for a valid one: " +
				"Network: 10.5.0.0/33: must be an IPv4 network such as \"10.5.0.0/16\"\n" +
				"SubnetLen: x: must be an integer without quotes\n" +
				"Backend.Type: missing: is required in Backend | flannelctl config set FILE, with a config that flannelctl config validate FILE takes",
		},
		{
			name: "all problems of a backend", next: `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":17000000,"Port":-1}}`,
			want: "network config at revision 9 is invalid, waiting for a valid one: " +
				"Backend.VNI: 17000000: must be between 1 and 16777215\n" +
				"Backend.Port: -1: must be between 0 and 65535 | flannelctl config set FILE, with a config that flannelctl config validate FILE takes",
		},
		{
			name: "a backend that does not exist", next: `{"Network":"10.5.0.0/16","Backend":{"Type":"wormhole"}}`,
			want: `network config at revision 9 is invalid, waiting for a valid one: Backend.Type: "wormhole": must be one of alloc, host-gw, udp, vxlan: unknown backend | flannelctl config set FILE, with a config that flannelctl config validate FILE takes`,
		},
		{
			name: "gone at run time", first: running,
			want: "the network config is gone from /net/config at http://a:1,http://b:2; keeping that of revision 4 | " +
				`etcdctl --endpoints=http://a:1,http://b:2 put /net/config '` + running + `'`,
		},
		{
			name: "gone at run time, of several lines and with a quote", first: "{\"Network\": \"10.5.0.0/16\",\n \"Site\": \"O'Hare\"}",
			want: "the network config is gone from /net/config at http://a:1,http://b:2; keeping that of revision 4 | " +
				`etcdctl --endpoints=http://a:1,http://b:2 put /net/config '{"Network":"10.5.0.0/16","Site":"O'\''Hare"}'`,
		},
		{
			name: "invalid at run time", first: running, next: `{`,
			want: `network config at revision 9 is invalid, keeping that of revision 4: line 1, column 2: unexpected end of JSON input | flannelctl config set '{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7}}' puts the former one back`,
		},
		{
			name: "another network at run time", first: running, next: `{"Network":"10.6.0.0/16","Backend":{"Type":"vxlan","VNI":7}}`,
			want: "network config at revision 9 changes Network: this host keeps that of revision 4 until it is restarted, " +
				"and gets another subnet then: its own, 10.5.7.0/24, does not fit the new config | systemctl restart flanneld-go",
		},
		{
			name: "everything else at run time", first: running, next: `{"Network":"10.6.0.0/16","SubnetLen":26,"Backend":{"Type":"vxlan","VNI":8}}`,
			want: "network config at revision 9 changes Network and SubnetLen and Backend: this host keeps that of revision 4 until it is restarted, " +
				"and gets another subnet then: its own, 10.5.7.0/24, does not fit the new config | systemctl restart flanneld-go",
		},
		{
			name: "an option that becomes the default", first: running, next: `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`,
			want: "network config at revision 9 changes Backend: this host keeps that of revision 4 until it is restarted | systemctl restart flanneld-go",
		},
		{name: "the same in another layout", first: running, next: "{ \"network\": \"10.5.0.0/16\",\n\"backend\": {\"VNI\": 7, \"Type\": \"vxlan\"} }", adopted: true},
		{name: "other limits of the pool", first: running, next: `{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","Backend":{"Type":"vxlan","VNI":7}}`, adopted: true},
		{name: "an unknown key", first: running, next: `{"Network":"10.5.0.0/16","Colour":1,"Backend":{"Type":"vxlan","VNI":7}}`, adopted: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, _ := judging(t)
			if tt.first != "" {
				if err := l.judge(subnet.Document{Text: tt.first, Modified: 4}); err != nil {
					t.Fatal(err)
				}
				l.lease.keeper, l.lease.own = &subnet.Keeper{}, testLease("10.5.7.0/24", "198.18.0.1", 2)
			}
			before := l.config.current
			doc := subnet.Document{Text: tt.next, Modified: 9}
			if tt.next == "" {
				doc.Modified = 0
			}
			if diff := cmp.Diff(tt.want, text(l.judge(doc))); diff != "" {
				t.Errorf("verdict (-want +got):\n%s", diff)
			}
			if adopted := l.config.doc == doc && l.config.current != nil; adopted != tt.adopted {
				t.Errorf("adopted %t, want %t", adopted, tt.adopted)
			}
			if !tt.adopted && l.config.current != before {
				t.Error("the config in force was replaced by one that was refused")
			}
		})
	}
}

// A host that waits for a lease has nothing to lose: it follows every valid
// config, one that makes room for it first of all.
func TestJudgeWithoutALease(t *testing.T) {
	l, _ := judging(t)
	for i, text := range []string{`{"Network":"10.5.0.0/24"}`, vxlanConfig, `{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}`} {
		l.backend, l.uplink.Link.Index = &flaky{}, 7
		doc := subnet.Document{Text: text, Modified: subnet.Revision(i + 1)}
		if err := l.judge(doc); err != nil || l.config.doc != doc || l.backend != nil || l.uplink.Link.Index != 0 {
			t.Errorf("%s: error %v, in force %+v, backend %v, uplink %d", text, err, l.config.doc, l.backend, l.uplink.Link.Index)
		}
	}
}

// A family more or less is a change that a running host refuses, too.
func TestAnotherFamilyNeedsARestart(t *testing.T) {
	v4 := testConfig(t, `{"Network":"10.5.0.0/16"}`)
	dual := testConfig(t, `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/48"}`)
	if len(needsRestart(v4, dual)) == 0 || len(needsRestart(dual, v4)) == 0 {
		t.Error("a running host would change its families")
	}
	if what := needsRestart(dual, dual); len(what) > 0 {
		t.Errorf("the same config changes %v", what)
	}
}

// A newer host's key must not stop this one, and must be heard of.
func TestUnknownKeysAreWarnedOf(t *testing.T) {
	l, log := judging(t)
	err := l.judge(subnet.Document{Text: `{"Network":"10.5.0.0/16","Colour":1,"Backend":{"Type":"host-gw","Speed":2}}`, Modified: 4})
	if err != nil || l.config.current == nil {
		t.Fatalf("error %v; want the config in force", err)
	}
	for _, key := range []string{"Colour", "Backend.Speed"} {
		if want := `level=WARN msg="unknown key in the network config is ignored" key=` + key + " revision=4"; strings.Count(log.String(), want) != 1 {
			t.Errorf("the log does not have this once: %s\n%s", want, log)
		}
	}
	if diff := cmp.Diff([]string{"Backend.Speed", "Colour"}, l.board.Snapshot().Config.Unknown); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

func TestTakeConfig(t *testing.T) {
	l, log := judging(t)
	take := func(doc subnet.Document, synced bool) error {
		l.snap = &subnet.Snapshot{Config: doc, Synced: synced}
		return l.takeConfig(context.Background())
	}
	isHarmless := func(err error) bool {
		var h *harmless
		return errors.As(err, &h)
	}
	if got, want := text(take(subnet.Document{}, false)), "waiting for etcd: there is no config yet"; got != want {
		t.Errorf("without etcd: %q, want %q", got, want)
	}
	if err := take(subnet.Document{}, true); err == nil || isHarmless(err) {
		t.Errorf("without a config: %v, want an error that ends the round", err)
	}
	if err := take(subnet.Document{Text: "{", Modified: 2}, true); err == nil || isHarmless(err) {
		t.Errorf("an invalid config at start: %v, want an error that ends the round", err)
	}
	good := subnet.Document{Text: networkConfig, Modified: 3}
	for range 3 {
		if err := take(good, true); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(log.String(), `msg="network config"`); n != 1 {
		t.Errorf("a config was taken %d times, want once", n)
	}
	bad := subnet.Document{Text: "{", Modified: 5}
	var told []string
	for range 2 {
		err := take(bad, true)
		if !isHarmless(err) {
			t.Fatalf("an invalid change: %v, want a harmless error", err)
		}
		told = append(told, text(err))
	}
	if told[0] != told[1] || !strings.Contains(told[0], "keeping that of revision 3") {
		t.Errorf("told %q", told)
	}
	if l.config.doc != good {
		t.Errorf("in force is %+v, want %+v", l.config.doc, good)
	}
	if err := take(subnet.Document{}, false); err != nil {
		t.Errorf("etcd is away and its config with it: %v, want nil", err)
	}
	if err := take(good, true); err != nil {
		t.Errorf("the change was taken back: %v, want nil", err)
	}
}
