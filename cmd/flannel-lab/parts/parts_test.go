package parts

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page/pagetest"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// known is what was read of testdata.
func known(t *testing.T) Report {
	t.Helper()
	text, err := os.ReadFile("testdata/go-test.txt")
	if err != nil {
		t.Fatal(err)
	}
	var echo bytes.Buffer
	r, err := Read(bytes.NewReader(text), &echo)
	if err != nil || echo.String() != string(text) {
		t.Fatalf("%v: echoed %d bytes of %d", err, echo.Len(), len(text))
	}
	r.Machine = machine.Description{CPU: "Z80", Cores: 1, Kernel: "6.1", Arch: "z80", Go: "go1", Day: "2026-01-02", Load: 0.25}
	return r
}

func TestTables(t *testing.T) {
	var out, text bytes.Buffer
	r := known(t)
	if err := errors.Join(r.Markdown(&out), r.JSON(&text)); err != nil {
		t.Fatal(err)
	}
	pagetest.Golden(t, *update, "all.md", out.Bytes())
	var got Report
	if err := json.Unmarshal(text.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, got); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
}

// Of what an address each costs, only what is not the kernel's is ours to answer for.
func TestClaims(t *testing.T) {
	_, missed := page.Missed(known(t).Claims(), false)
	if missed == nil || strings.Count(missed.Error(), "\n") != 0 ||
		!strings.Contains(missed.Error(), "small packets, an endpoint each, at one address: 7.00 %, wanted under 5 %") {
		t.Errorf("got %v", missed)
	}
}

func TestWriteDocs(t *testing.T) {
	folder := t.TempDir()
	var text strings.Builder
	for _, s := range sections() {
		text.WriteString("<!-- " + s.Name + ": written by make bench -->\n\nold\n\n<!-- " + s.Name + ": end -->\n")
	}
	path := filepath.Join(folder, "benchmarks.md")
	if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	r := known(t)
	r.Notes = nil
	if err := r.WriteDocs(folder); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(got), r.peersTable()) || !strings.Contains(string(got), r.partsTable()) || strings.Count(string(got), "old") != 1 {
		t.Errorf("%v:\n%s", err, got)
	}
}

// The page of this project has the places that make bench writes to.
func TestOwnPage(t *testing.T) {
	if err := CheckDocs("../../../docs"); err != nil {
		t.Error(err)
	}
}
