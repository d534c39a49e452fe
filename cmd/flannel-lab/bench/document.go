package bench

import (
	"bytes"
	"fmt"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/page"
)

// section is where a run's tables and its plot go.
func section() page.Section {
	return page.Section{
		Page: "benchmarks.md", Name: "data path",
		Picture: "benchmarks.svg", Caption: "what each way to join two hosts carries",
	}
}

// WriteDocs puts the tables and the plot into a folder of pages, whole or not at
// all.
func (r Report) WriteDocs(folder string) error {
	var text bytes.Buffer
	if err := r.Markdown(&text); err != nil {
		return fmt.Errorf("write docs: %w", err)
	}
	return section().Write(folder, text.Bytes(), r.Plot())
}

// CheckDocs says whether WriteDocs will find its place, before a long run.
func CheckDocs(folder string) error { return section().Check(folder) }
