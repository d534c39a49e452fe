package main

import (
	"errors"
	"fmt"

	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/etcdstore"
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

// etcdHint is what to type about an error of etcd's.
func (l *loop) etcdHint(err error) string {
	etcdctl := l.opts.etcd.Etcdctl()
	switch {
	case errors.Is(err, subnet.ErrStoreChanged):
		return fmt.Sprintf("wait, if that was meant: this host keeps the paths to its peers for %s, and every host takes its former subnet again by itself; "+
			"if not, %s endpoint status --write-out=table shows which etcd answers", l.opts.leaseTTL, etcdctl)
	case errors.Is(err, subnet.ErrCompacted):
		return "wait: this host reads everything anew by itself"
	case errors.Is(err, etcdstore.ErrAuth) && l.opts.etcd.Username != "":
		return fmt.Sprintf("%s get %s/config asks for the password and tries it; with --user=root, user get %s --detail lists the user's rights",
			etcdctl, l.opts.etcd.Prefix, l.opts.etcd.Username)
	case errors.Is(err, etcdstore.ErrAuth):
		return "" // The error says it all, and an etcd that refuses us is in good health.
	}
	return etcdctl + " endpoint health"
}
