package etcdstore

import (
	"context"
	"errors"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/metadata"
)

// tokens keeps the token that etcd gives a user for the password. It lives for
// some minutes, less if etcd restarts or an operator changes users and roles;
// that it has ended shows when it is refused.
//
// The client would do all of this, but not to etcd 3.4: it sends the token that
// has ended with the request for another, which 3.4 refuses for that, and begins
// anew without a pause. It also asks for a token at each stream, and each time
// the server hashes a password by bcrypt.
type tokens struct {
	user   string
	secret func() Secret
	auth   pb.AuthClient
	// turn is taken by who asks for a token.
	turn chan struct{}

	mu sync.Mutex
	// The fields below are guarded by mu.

	// token is empty while etcd's authentication is off.
	token string
	// stale: etcd has refused the token, or there was none yet. A call without
	// one might get through, as the user of our certificate.
	stale bool
}

func newTokens(user string, secret func() Secret) *tokens {
	return &tokens{user: user, secret: secret, turn: make(chan struct{}, 1), stale: user != ""}
}

// get returns the token to use, another if the former was refused.
func (k *tokens) get(ctx context.Context) (string, error) {
	if token, stale := k.current(); !stale {
		return token, nil
	}
	select {
	case k.turn <- struct{}{}:
		defer func() { <-k.turn }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if token, stale := k.current(); !stale {
		return token, nil // Somebody else's turn got it.
	}
	resp, err := k.auth.Authenticate(ctx, &pb.AuthenticateRequest{Name: k.user, Password: string(k.secret())})
	if err != nil && !errors.Is(rpctypes.Error(err), rpctypes.ErrAuthNotEnabled) {
		return "", err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.token, k.stale = resp.GetToken(), false
	return k.token, nil
}

func (k *tokens) current() (token string, stale bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.token, k.stale
}

// refused is told what came of a token, and reports whether another may help.
func (k *tokens) refused(token string, err error) bool {
	if k.user == "" || !wantsToken(err) {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stale = k.stale || k.token == token
	return true
}

// wantsToken reports whether etcd refused a request, before anything was done,
// because of its token.
func wantsToken(err error) bool {
	err = rpctypes.Error(err)
	return errors.Is(err, rpctypes.ErrUserEmpty) || errors.Is(err, rpctypes.ErrInvalidAuthToken) || errors.Is(err, rpctypes.ErrAuthOldRevision)
}

// with adds a token to a call.
func with(ctx context.Context, token string) context.Context {
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, token)
}

// tokenRefused is etcd's answer to one token after another. It does not unwrap to
// that answer: the client knows it, and would try again and again.
type tokenRefused struct{ answer rpctypes.EtcdError }

func (e *tokenRefused) Error() string {
	return "one token after another is refused: " + plainText(e.answer)
}
