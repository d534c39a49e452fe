package main

import (
	"errors"
	"fmt"
)

// hintError is an error with the command that an operator would type next.
type hintError struct {
	err  error
	hint string
}

// withHint adds to err what to type.
func withHint(err error, format string, args ...any) error {
	return &hintError{err, fmt.Sprintf(format, args...)}
}

// Error returns the cause's text.
func (e *hintError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *hintError) Unwrap() error { return e.err }

func asHint(err error, target **hintError) bool { return errors.As(err, target) }
