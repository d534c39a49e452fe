package daemonconfig

import (
	"bytes"
	"fmt"
)

// Swap is a change of a file that is ours as a whole.
type Swap struct {
	Path string
	// Old is the present text, Text the one that it is to have; nil: no file.
	Old, Text []byte
	// Options are for writing the file.
	Options WriteOptions
}

// PlanSwap reads the file. It touches nothing.
func PlanSwap(path string, text []byte, o WriteOptions) (Swap, error) {
	old, err := readText(path)
	return Swap{Path: path, Old: old, Text: text, Options: o}, err
}

// Changes reports whether there is anything to do.
func (s Swap) Changes() bool { return !sameText(s.Old, s.Text) }

// Commit writes the text.
func (s Swap) Commit() error { return putText(s.Path, s.Text, s.Options) }

// sameText tells an empty file from none.
func sameText(a, b []byte) bool { return bytes.Equal(a, b) && (a == nil) == (b == nil) }

// readText returns the text of the file that path leads to; nil: there is none.
func readText(path string) ([]byte, error) {
	target, err := followLinks(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	file, err := readExisting(target)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return file.data, nil
}

// putText writes a file, or removes it when text is nil.
func putText(path string, text []byte, o WriteOptions) error {
	if text != nil {
		_, err := Write(path, text, o)
		return err
	}
	_, err := Remove(path)
	return err
}
