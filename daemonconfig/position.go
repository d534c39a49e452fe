package daemonconfig

import (
	"bytes"
	"fmt"
	"unicode/utf8"
)

// PositionError is a problem at one place of a file.
type PositionError struct {
	// Line and Column count from 1, Column in characters; 0: the whole line.
	Line, Column int
	Err          error
}

// Error reads as "line 3, column 5: cause".
func (e *PositionError) Error() string {
	if e.Column == 0 {
		return fmt.Sprintf("line %d: %v", e.Line, e.Err)
	}
	return fmt.Sprintf("line %d, column %d: %v", e.Line, e.Column, e.Err)
}

// Unwrap returns the cause.
func (e *PositionError) Unwrap() error { return e.Err }

// positionError places err at a byte offset of text. A byte order mark counts
// as nothing, since no editor shows it.
func positionError(text []byte, offset int, err error) *PositionError {
	if rest, ok := bytes.CutPrefix(text, []byte(utf8BOM)); ok {
		text, offset = rest, offset-len(utf8BOM)
	}
	before := text[:min(max(offset, 0), len(text))]
	lineStart := bytes.LastIndexByte(before, '\n') + 1
	return &PositionError{
		Line:   bytes.Count(before, []byte{'\n'}) + 1,
		Column: utf8.RuneCount(before[lineStart:]) + 1,
		Err:    err,
	}
}
