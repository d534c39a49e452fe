package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/flanneld-go/flanneld-go/subnet"
)

func TestNodeID(t *testing.T) {
	const advice = ": run systemd-machine-id-setup, or name this host with --node-id"
	path := filepath.Join(t.TempDir(), "machine-id")
	tests := []struct {
		name, given, file string
		want              subnet.NodeID
		err               string
	}{
		// python3: hmac.new(machine id, b"flanneld-go node id v1", sha256), cut
		// to 32 digits. It must never change: hosts would lose their leases.
		{name: "derived", file: "0123456789abcdef0123456789abcdef\n", want: "1549fb17c6d9cb3d6ddb09826b5f848f"},
		{name: "given", given: "web-3", want: "web-3"},
		{name: "given, with a file", given: "web-3", file: "0123456789abcdef0123456789abcdef\n", want: "web-3"},
		{name: "no file", err: "read machine id: open " + path + ": no such file or directory" + advice},
		{name: "not set up yet", file: "uninitialized\n", err: "read machine id: " + path + `: "uninitialized": must be 32 hexadecimal digits` + advice},
		{name: "empty, as in images", file: "\n", err: "read machine id: " + path + `: "": must be 32 hexadecimal digits` + advice},
		{name: "short", file: "0123456789abcdef\n", err: "read machine id: " + path + `: "0123456789abcdef": must be 32 hexadecimal digits` + advice},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			os.Remove(path)
			if tt.file != "" {
				if err := os.WriteFile(path, []byte(tt.file), 0o444); err != nil {
					t.Fatal(err)
				}
			}
			got, err := nodeID(tt.given, path)
			if got != tt.want || text(err) != tt.err {
				t.Errorf("%q, %v\nwant %q, %s", got, err, tt.want, tt.err)
			}
		})
	}
}

func TestInstancesDiffer(t *testing.T) {
	a, b := newInstance(), newInstance()
	if a == b || len(a) != 16 {
		t.Errorf("instances %q and %q", a, b)
	}
}
