package catalog

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/subnet"
)

func TestCheck(t *testing.T) {
	tests := []struct {
		name, text string
		unknown    []string
		err        string
	}{
		{name: "no backend", text: `{"Network":"10.5.0.0/16"}`},
		{name: "alloc", text: `{"Network":"10.5.0.0/16","Backend":{"Type":"alloc"}}`},
		{name: "host-gw", text: `{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}`},
		{name: "udp", text: `{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Port":7890}}`},
		{name: "vxlan, both families", text: `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/48","Backend":{"Type":"VXLAN","VNI":7,"Port":4789,"MTU":1400,"DirectRouting":true,"GBP":true,"Learning":false}}`},
		{name: "unknown keys everywhere", text: `{"Network":"10.5.0.0/16","Zone":1,"Backend":{"Type":"vxlan","Vni":7,"Speed":1}}`, unknown: []string{"Backend.Speed", "Zone"}},
		{name: "unknown key of alloc", text: `{"Network":"10.5.0.0/16","Backend":{"Type":"alloc","VNI":1}}`, unknown: []string{"Backend.VNI"}},
		{name: "unknown key of host-gw", text: `{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw","VNI":1}}`, unknown: []string{"Backend.VNI"}},
		{name: "unknown key of udp", text: `{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Porf":1}}`, unknown: []string{"Backend.Porf"}},
		{
			name: "all problems of a backend", text: `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":17000000,"MTU":70000,"GBP":"yes"}}`,
			err: "Backend.VNI: 17000000: must be between 1 and 16777215\nBackend.MTU: 70000: must be between 0 and 65485\nBackend.GBP: yes: must be true or false",
		},
		{name: "a port of udp", text: `{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Port":0}}`, err: "Backend.Port: 0: must be between 1 and 65535"},
		{name: "no such backend", text: `{"Network":"10.5.0.0/16","Backend":{"Type":"gre"}}`, err: `Backend.Type: "gre": must be one of alloc, host-gw, udp, vxlan: unknown backend`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := subnet.ParseConfig(tt.text)
			if err != nil {
				t.Fatal(err)
			}
			before := len(cfg.Unknown)
			unknown, err := Check(cfg)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if diff := cmp.Diff(tt.err, got); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			if tt.err == "" {
				if diff := cmp.Diff(tt.unknown, unknown); diff != "" {
					t.Errorf("unknown keys (-want +got):\n%s", diff)
				}
			}
			if len(cfg.Unknown) != before {
				t.Error("Check changed the config")
			}
		})
	}
}

func TestUnknownBackendCanBeTold(t *testing.T) {
	if _, err := Detached(&subnet.Config{BackendType: "gre"}, 0, nil, nil); !errors.Is(err, ErrUnknown) {
		t.Errorf("error %v, want ErrUnknown", err)
	}
}

func TestParse(t *testing.T) {
	tests := []struct {
		name, text string
		unknown    []string
		err        string
	}{
		{name: "good", text: `{"Network":"10.5.0.0/16","Zone":1,"Backend":{"Type":"vxlan","Speed":1}}`, unknown: []string{"Backend.Speed", "Zone"}},
		{
			name: "problems on both sides", text: `{"Network":"10.5.0.0/16","SubnetLen":31,"Backend":{"Type":"vxlan","VNI":17000000}}`,
			err: "SubnetLen: 31: must be between 18 and 30, so that 10.5.0.0/16 holds at least four subnets of at least four addresses\nBackend.VNI: 17000000: must be between 1 and 16777215",
		},
		{name: "the backend's alone", text: `{"Network":"10.5.0.0/16","Backend":{"Type":"gre"}}`, err: `Backend.Type: "gre": must be one of alloc, host-gw, udp, vxlan: unknown backend`},
		{name: "no type, said once", text: `{"Network":"10.5.0.0/31","Backend":{}}`, err: "Network: 10.5.0.0/31: is too small: must be a /28 or larger to hold four subnets of four addresses\nBackend.Type: missing: is required in Backend"},
		{name: "no backend", text: `{"Network":"10.5.0.0/31"}`, err: "Network: 10.5.0.0/31: is too small: must be a /28 or larger to hold four subnets of four addresses"},
		{name: "not JSON, said once", text: `{`, err: "line 1, column 2: unexpected end of JSON input"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := Parse(tt.text)
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Errorf("got %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.unknown, cfg.Unknown); diff != "" {
				t.Errorf("unknown keys (-want +got):\n%s", diff)
			}
		})
	}
}
