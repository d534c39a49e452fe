package page

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// ErrNoSection: the page has no place for what was found.
var ErrNoSection = errors.New("no section for it")

// Section is a place of a page that a program writes. These lines stand around
// it:
//
//	<!-- data path: written by make bench -->
//	<!-- data path: end -->
type Section struct {
	// Page is the file's name in the folder of pages.
	Page string
	// Name is what the lines around the section begin with.
	Name string
	// By is the command that writes it; empty: make bench.
	By string
	// Picture is the file's name of the picture beside the page, and Caption what
	// it shows; empty: there is none.
	Picture, Caption string
}

func (s Section) begin() string {
	return "<!-- " + s.Name + ": written by " + cmp.Or(s.By, "make bench") + " -->\n"
}
func (s Section) end() string { return "<!-- " + s.Name + ": end -->\n" }

// Write puts text into the section, and the picture beside the page, whole or not
// at all.
func (s Section) Write(folder string, text, picture []byte) error {
	path := filepath.Join(folder, s.Page)
	page, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("write section: %w", err)
	}
	if s.Picture != "" {
		text = fmt.Appendf(bytes.Clone(text), "\n![%s](%s)\n", s.Caption, s.Picture)
	}
	if page, err = s.replace(page, text); err != nil {
		return fmt.Errorf("write section: %s: %w", path, err)
	}
	// The picture first: the page that speaks of it follows.
	if s.Picture != "" {
		if err := renameio.WriteFile(filepath.Join(folder, s.Picture), picture, 0o644); err != nil {
			return fmt.Errorf("write picture: %w", err)
		}
	}
	if err := renameio.WriteFile(path, page, 0o644); err != nil {
		return fmt.Errorf("write section: %w", err)
	}
	return nil
}

// Check says whether Write will find its place, before a long run.
func (s Section) Check(folder string) error {
	path := filepath.Join(folder, s.Page)
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if _, err := s.replace(page, nil); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// replace puts text between the lines that mark the section.
func (s Section) replace(page, text []byte) ([]byte, error) {
	before, rest, found := bytes.Cut(page, []byte(s.begin()))
	if !found {
		return nil, fmt.Errorf("%w: no line %q", ErrNoSection, s.begin())
	}
	_, after, found := bytes.Cut(rest, []byte(s.end()))
	if !found {
		return nil, fmt.Errorf("%w: no line %q after %q", ErrNoSection, s.end(), s.begin())
	}
	return bytes.Join([][]byte{before, []byte(s.begin() + "\n"), text, []byte("\n" + s.end()), after}, nil), nil
}
