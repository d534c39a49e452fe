// Package pagetest compares what is written for people with files of testdata. Its callers
// are tests; it changes nothing but the file that it is told to renew.
//
//	got ----------------+
//	                    v
//	testdata/name --> Golden --> difference --> t.Errorf
//	      ^             |
//	      +-- renew ----+
package pagetest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Golden wants got to be what testdata/name holds, which it writes first with renew.
func Golden(t *testing.T, renew bool, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if renew {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}
