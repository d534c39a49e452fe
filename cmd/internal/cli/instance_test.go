package cli

import (
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
)

func TestInstance(t *testing.T) {
	type paths struct{ Socket, Env, Dir string }
	first := paths{"/run/flannel/d.sock", "/run/flannel/subnet.env", "/var/lib/d"}
	tests := []struct {
		name string
		args []string
		env  []string
		want paths
		unit string
		err  string
	}{
		{name: "the first", want: first, unit: "flanneld-go"},
		{name: "the first, said", args: []string{"--instance=0"}, want: first, unit: "flanneld-go"},
		{name: "another", args: []string{"--instance=1"}, want: paths{"/run/flannel/d1.sock", "/run/flannel/subnet1.env", "/var/lib/d1"}, unit: "flanneld-go@1"},
		{name: "by the environment", env: []string{"FLANNELD_INSTANCE=9"}, want: paths{"/run/flannel/d9.sock", "/run/flannel/subnet9.env", "/var/lib/d9"}, unit: "flanneld-go@9"},
		{
			name: "what is given stays", args: []string{"--instance=2", "--dir=/srv/state"}, env: []string{"FLANNELD_SOCKET=/srv/s"},
			want: paths{"/srv/s", "/run/flannel/subnet2.env", "/srv/state"}, unit: "flanneld-go@2",
		},
		{name: "too many", args: []string{"--instance=10"}, err: "--instance: 10: must be between 0 and 9"},
		{name: "negative", args: []string{"--instance=-1"}, err: "--instance: -1: must be between 0 and 9"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got paths
			var i Instance
			fs := NewFlagSet("test", "usage", io.Discard)
			i.Register(fs)
			fs.StringVar(&got.Socket, "socket", first.Socket, "")
			fs.StringVar(&got.Env, "env", first.Env, "")
			fs.StringVar(&got.Dir, "dir", first.Dir, "")
			err := Parse(fs, tt.args, EnvOf(tt.env))
			if err == nil {
				err = i.Take(fs, "socket", "env", "dir")
			}
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Errorf("got %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("paths (-want +got):\n%s", diff)
			}
			if i.Unit() != tt.unit {
				t.Errorf("unit %s, want %s", i.Unit(), tt.unit)
			}
		})
	}
	if kernel.MostInstance != 9 {
		t.Error("the text of --instance says 0 to 9")
	}
}
