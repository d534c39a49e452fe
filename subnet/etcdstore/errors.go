package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// What kept a call from being answered: the Kind of an [Error], for errors.Is.
var (
	// ErrUnreachable: no endpoint answers, or etcd has no leader.
	ErrUnreachable = errors.New("etcd is unreachable")
	// ErrTLS: one side speaks TLS and the other does not, or one does not
	// trust the other's certificate.
	ErrTLS = errors.New("etcd and we disagree on TLS")
	// ErrAuth: etcd refuses the user, the password or the permission.
	ErrAuth = errors.New("etcd refuses us")

	// ErrReadOnly: a write through a store that was opened read-only.
	ErrReadOnly = errors.New("store is read-only")
)

// Error is a call that etcd did not answer, or answered with a refusal. It is
// one line that tells the operator which endpoint and why.
type Error struct {
	// Op is what was tried: "load", "create 10.5.1.0/24".
	Op string
	// Kind is ErrUnreachable, ErrTLS or ErrAuth; nil: none of them.
	Kind error
	// Endpoints are those that Err is about.
	Endpoints []string
	// Err is the cause.
	Err error
	// Context is why the call ended when it did, if its context ended it.
	Context error
}

// Error says what was tried, where, and what came of it.
func (e *Error) Error() string {
	return e.Op + ": etcd " + strings.Join(e.Endpoints, ",") + ": " + e.Err.Error()
}

// Unwrap returns Kind, Err and Context.
func (e *Error) Unwrap() []error {
	var all []error
	for _, err := range []error{e.Kind, e.Err, e.Context} {
		if err != nil {
			all = append(all, err)
		}
	}
	return all
}

// isSentinel reports whether err is an answer that callers decide upon.
func isSentinel(err error) bool {
	for _, s := range []error{
		subnet.ErrTaken, subnet.ErrConfigChanged, subnet.ErrStoreChanged, subnet.ErrLeaseLost, subnet.ErrCompacted, ErrReadOnly,
	} {
		if errors.Is(err, s) {
			return true
		}
	}
	return false
}

// fail classifies what the client returned for op. ctx is the caller's.
func (s *Store) fail(ctx context.Context, op string, err error) error {
	switch {
	case err == nil:
		return nil
	case isSentinel(err):
		return fmt.Errorf("%s: %w", op, err)
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("%s: %w", op, ctx.Err())
	}
	e := &Error{Op: op, Endpoints: s.whereabouts(), Err: err, Context: ctx.Err()}
	if s.discovery != nil {
		if known, why := s.discovery.known(); len(known) == 0 && why != nil {
			e.Kind, e.Err = ErrUnreachable, why
			return e
		}
	}
	if errors.As(err, new(*denial)) || errors.As(err, new(*tokenRefused)) {
		e.Kind = ErrAuth
		return e
	}
	err = rpctypes.Error(err)
	if kind := kindOf(err); kind != nil {
		e.Kind, e.Err = kind, err
	}
	// An answer of etcd's own says more than the wire.
	if answer := (rpctypes.EtcdError{}); errors.As(err, &answer) {
		e.Err = s.plainAnswer(answer)
		return e
	}
	if s.wire.explain(e) {
		return e
	}
	if st, ok := status.FromError(err); ok && e.Kind != nil {
		e.Err = errors.New(st.Message())
	}
	if errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.DeadlineExceeded {
		e.Kind, e.Err = ErrUnreachable, errors.New("no answer in time")
	}
	return e
}

// plainAnswer words an answer of etcd's for the operator.
func (s *Store) plainAnswer(answer rpctypes.EtcdError) error {
	said := plainText(answer)
	switch {
	case errors.Is(answer, rpctypes.ErrUserEmpty):
		return errors.New("wants a user: --etcd-username and --etcd-password-file")
	case errors.Is(answer, rpctypes.ErrAuthFailed):
		return fmt.Errorf("%s: user %q with the password of --etcd-password-file or --etcd-password", said, s.opts.Username)
	default:
		return errors.New(said)
	}
}

// plainText is an answer without the name of who gave it.
func plainText(answer rpctypes.EtcdError) string {
	return strings.TrimPrefix(answer.Error(), "etcdserver: ")
}

// kindOf classifies an answer by its code. The client maps etcd's answers to
// rpctypes; the codes of those are the server's.
func kindOf(err error) error {
	for _, refused := range []error{
		rpctypes.ErrAuthFailed, rpctypes.ErrPermissionDenied, rpctypes.ErrUserEmpty, rpctypes.ErrUserNotFound,
		rpctypes.ErrInvalidAuthToken, rpctypes.ErrAuthOldRevision, rpctypes.ErrInvalidAuthMgmt,
	} {
		if errors.Is(err, refused) {
			return ErrAuth
		}
	}
	code := status.Code(err)
	if answer := (rpctypes.EtcdError{}); errors.As(err, &answer) {
		code = answer.Code()
	}
	switch code {
	case codes.Unavailable, codes.DeadlineExceeded:
		return ErrUnreachable
	case codes.PermissionDenied, codes.Unauthenticated:
		return ErrAuth
	default:
		return nil
	}
}

// plainly takes from a network error what names neither network nor address:
// "connection refused".
func plainly(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		return op.Err
	}
	return err
}
