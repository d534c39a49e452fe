package robustness

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// operateWithin is how long the operator tries what etcd does not do at
	// once.
	operateWithin = 5 * time.Second
	// requestWithin bounds one request of the operator's.
	requestWithin = 2 * time.Second
)

// Why an operator's deed was not done.
var (
	errNoKey   = errors.New("the host has no key in etcd")
	errNoLease = errors.New("the key hangs on no lease")
	errRaced   = errors.New("the key changed meanwhile")
	errNoRoom  = errors.New("no subnet is free")
	// errRuledOut: another config is there, or the subnet is not of its pool.
	errRuledOut = errors.New("the config does not allow it")
)

// refusedError is a fault that could not be done because of another one: etcd did
// not answer, or the key was gone. The run goes on. Whatever else prevents a fault
// is a fault of the run's own, and fails it.
type refusedError struct {
	err error
	// open: it may have been done all the same, or be done later, since the
	// answer to a request was not received.
	open bool
}

func (e *refusedError) Error() string { return e.err.Error() }

func (e *refusedError) Unwrap() error { return e.err }

// lostError is a request that may have been served though it failed.
type lostError struct{ err error }

func (e *lostError) Error() string { return e.err.Error() }

func (e *lostError) Unwrap() error { return e.err }

// lost marks the failure of a request that writes, unless etcd itself says that
// it did nothing.
func lost(err error) error {
	switch code(err) {
	case codes.ResourceExhausted, codes.NotFound: // no space, no such lease
		return err
	default:
		return &lostError{err}
	}
}

// code is what etcd or the connection to it says of a failed request; Unknown for
// other errors.
func code(err error) codes.Code {
	var etcd rpctypes.EtcdError
	if errors.As(err, &etcd) {
		return etcd.Code()
	}
	return status.Code(err)
}

// hindered reports whether an operator's deed failed for what other faults do: to
// keys, to etcd, and to its disks.
func hindered(err error) bool {
	for _, cause := range []error{errNoKey, errNoLease, errRaced, errNoRoom, errRuledOut, context.DeadlineExceeded, context.Canceled} {
		if errors.Is(err, cause) {
			return true
		}
	}
	switch code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.NotFound:
		return true
	default:
		return false
	}
}

// refusals tells the refusals in what a fault came to from what failed the run.
func refusals(err error) (refused []*refusedError, failed error) {
	if all, joined := err.(interface{ Unwrap() []error }); joined { //nolint:errorlint // its parts are looked at one by one
		for _, part := range all.Unwrap() {
			r, f := refusals(part)
			refused, failed = append(refused, r...), errors.Join(failed, f)
		}
		return refused, failed
	}
	if r := (*refusedError)(nil); errors.As(err, &r) {
		return []*refusedError{r}, nil
	}
	return nil, err
}

// operate tries something until it works; in vain, it is refused.
func (t *trial) operate(ctx context.Context, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, operateWithin)
	defer cancel()
	return t.insist(ctx, try)
}

// insist is operate for as long as ctx lasts.
func (t *trial) insist(ctx context.Context, try func(context.Context) error) error {
	var last error
	open := false
	err := poll(ctx, func() bool {
		ctx, cancel := context.WithTimeout(ctx, requestWithin)
		defer cancel()
		last = try(ctx)
		var l *lostError
		open = open || errors.As(last, &l)
		return last == nil || errors.Is(last, errNoKey) || errors.Is(last, errNoLease) || !hindered(last)
	})
	switch {
	case last == nil:
		return nil
	case !hindered(last):
		return errors.Join(err, last)
	}
	return &refusedError{errors.Join(err, last), open}
}

// commit is one transaction of the operator's. One whose answer got lost is told
// by attribute.
func (t *trial) commit(ctx context.Context, cmps []clientv3.Cmp, ops ...clientv3.Op) error {
	resp, err := t.cluster.Client().Txn(ctx).If(cmps...).Then(ops...).Commit()
	if err != nil {
		return lost(err)
	}
	if !resp.Succeeded {
		return errRaced
	}
	t.rec.operator(resp.Header.Revision)
	return nil
}
