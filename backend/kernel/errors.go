package kernel

import (
	"errors"
	"fmt"
	"syscall"
)

// Error is the kernel's refusal. It is one of this package's sentinels as well
// as a syscall.Errno, for errors.Is.
type Error struct {
	Code syscall.Errno
	// Message is what the kernel added (extended acknowledgement), or empty.
	Message string
}

// Error reads as "network is unreachable: Nexthop has invalid gateway".
func (e *Error) Error() string {
	if e.Message == "" {
		return e.Code.Error()
	}
	return e.Code.Error() + ": " + e.Message
}

// Is maps the code to ErrNotFound, ErrExists and ErrPermission.
func (e *Error) Is(target error) bool {
	switch target { //nolint:errorlint // sentinels are compared by identity here
	case ErrNotFound:
		return gone(e.Code)
	case ErrExists:
		return e.Code == syscall.EEXIST
	case ErrPermission:
		return e.Code == syscall.EPERM || e.Code == syscall.EACCES || e.Code == syscall.EROFS
	default:
		return false
	}
}

// Unwrap returns the code.
func (e *Error) Unwrap() error { return e.Code }

// gone reports whether code says that what was asked for is not there: a link
// (ENODEV), a route (ESRCH), an address (EADDRNOTAVAIL), anything else (ENOENT).
func gone(code syscall.Errno) bool {
	switch code {
	case syscall.ENODEV, syscall.ENOENT, syscall.ESRCH, syscall.EADDRNOTAVAIL:
		return true
	default:
		return false
	}
}

// UnsupportedError says that the running kernel lacks a feature.
type UnsupportedError struct {
	Feature, MinKernel string
}

// Error names the feature and the first kernel that has it.
func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("%s: not supported by this kernel (needs %s)", e.Feature, e.MinKernel)
}

// Is makes every UnsupportedError an errors.ErrUnsupported.
func (e *UnsupportedError) Is(target error) bool { return target == errors.ErrUnsupported } //nolint:errorlint // a sentinel
