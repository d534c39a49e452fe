package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// The page that a run rewrites a section of, and the picture beside it.
const (
	pageName = "benchmarks.md"
	plotName = "benchmarks.svg"
)

// What stands around the section, each on a line of its own.
const (
	sectionBegin = "<!-- data path: written by make bench -->"
	sectionEnd   = "<!-- data path: end -->"
)

// ErrNoSection: the page has no place for what was found.
var ErrNoSection = errors.New("no section for the data path")

// WriteDocs puts the tables and the plot into a folder of pages, whole or not at
// all.
func (r Report) WriteDocs(folder string) error {
	path := filepath.Join(folder, pageName)
	page, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("write docs: %w", err)
	}
	var section bytes.Buffer
	if err := r.Markdown(&section); err != nil {
		return fmt.Errorf("write docs: %w", err)
	}
	fmt.Fprintf(&section, "\n![what each way to join two hosts carries](%s)\n", plotName)
	if page, err = replaceSection(page, section.Bytes()); err != nil {
		return fmt.Errorf("write docs: %s: %w", path, err)
	}
	// The picture first: the page that speaks of it follows.
	if err := renameio.WriteFile(filepath.Join(folder, plotName), r.Plot(), 0o644); err != nil {
		return fmt.Errorf("write docs: %w", err)
	}
	if err := renameio.WriteFile(path, page, 0o644); err != nil {
		return fmt.Errorf("write docs: %w", err)
	}
	return nil
}

// CheckDocs says whether WriteDocs will find its place, before a long run.
func CheckDocs(folder string) error {
	path := filepath.Join(folder, pageName)
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if _, err := replaceSection(page, nil); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// replaceSection puts text between the lines that mark the section.
func replaceSection(page, text []byte) ([]byte, error) {
	before, rest, found := bytes.Cut(page, []byte(sectionBegin+"\n"))
	if !found {
		return nil, fmt.Errorf("%w: no line %q", ErrNoSection, sectionBegin)
	}
	_, after, found := bytes.Cut(rest, []byte(sectionEnd+"\n"))
	if !found {
		return nil, fmt.Errorf("%w: no line %q after %q", ErrNoSection, sectionEnd, sectionBegin)
	}
	return bytes.Join([][]byte{before, []byte(sectionBegin + "\n\n"), text, []byte("\n" + sectionEnd + "\n"), after}, nil), nil
}
