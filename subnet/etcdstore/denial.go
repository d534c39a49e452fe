package etcdstore

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// span is a range of keys, as etcd's requests and permissions write it: one key
// without an end, everything from key on with an end of "\x00".
type span struct{ key, end []byte }

// everything is the end of a span that has none.
const everything = "\x00"

// limit is the first key behind s; nil: there is none.
func (s span) limit() []byte {
	switch {
	case len(s.end) == 0:
		return append(slices.Clone(s.key), 0)
	case string(s.end) == everything:
		return nil
	default:
		return s.end
	}
}

// String is a key, or what all keys of a span begin with.
func (s span) String() string {
	switch {
	case len(s.end) == 0:
		return string(s.key)
	case clientv3.GetPrefixRangeEnd(string(s.key)) == string(s.end):
		return "everything below " + string(s.key)
	case string(s.end) == everything:
		return "everything from " + string(s.key) + " on"
	default:
		return string(s.key) + " up to " + string(s.end)
	}
}

// need is a right that a request must have.
type need struct {
	span
	right authpb.Permission_Type
}

func (n need) String() string {
	if n.right == authpb.WRITE {
		return "write " + n.span.String()
	}
	return "read " + n.span.String()
}

// needsOf returns the rights that etcd demands for a request, as far as it is one
// of ours.
func needsOf(req any) []need {
	var needs []need
	switch r := req.(type) {
	case *pb.RangeRequest:
		needs = append(needs, need{span{r.Key, r.RangeEnd}, authpb.READ})
	case *pb.TxnRequest:
		for _, c := range r.Compare {
			needs = append(needs, need{span{c.Key, c.RangeEnd}, authpb.READ})
		}
		for _, op := range slices.Concat(r.Success, r.Failure) {
			switch o := op.Request.(type) {
			case *pb.RequestOp_RequestRange:
				needs = append(needs, needsOf(o.RequestRange)...)
			case *pb.RequestOp_RequestPut:
				needs = append(needs, need{span{key: o.RequestPut.Key}, authpb.WRITE})
			case *pb.RequestOp_RequestDeleteRange:
				deleted := span{o.RequestDeleteRange.Key, o.RequestDeleteRange.RangeEnd}
				needs = append(needs, need{deleted, authpb.WRITE})
				if o.RequestDeleteRange.PrevKv {
					needs = append(needs, need{deleted, authpb.READ})
				}
			}
		}
	case *pb.WatchCreateRequest:
		needs = append(needs, need{span{r.Key, r.RangeEnd}, authpb.READ})
	}
	return needs
}

// covers reports whether permissions together grant n: etcd, too, joins those
// that touch.
func covers(granted []*authpb.Permission, n need) bool {
	at, limit := n.key, n.limit()
	for limit == nil || bytes.Compare(at, limit) < 0 {
		further := at
		for _, p := range granted {
			s := span{p.Key, p.RangeEnd}
			if p.PermType != n.right && p.PermType != authpb.READWRITE || bytes.Compare(s.key, at) > 0 {
				continue
			}
			end := s.limit()
			if end == nil {
				return true
			}
			if bytes.Compare(end, further) > 0 {
				further = end
			}
		}
		if bytes.Equal(further, at) {
			return false
		}
		at = further
	}
	return true
}

// denial is etcd's refusal of a request for want of a right.
type denial struct {
	user string
	// missing are the rights that the user has not; where etcd did not tell
	// which those are, all that the request needs.
	missing []need
	err     error
}

// Error names the user and the rights.
func (d *denial) Error() string {
	if len(d.missing) == 0 {
		return fmt.Sprintf("permission denied: user %q", d.user)
	}
	var rights []string
	for _, n := range d.missing {
		if r := n.String(); !slices.Contains(rights, r) {
			rights = append(rights, r)
		}
	}
	return fmt.Sprintf("permission denied: user %q has no right to %s", d.user, strings.Join(rights, ", nor to "))
}

// Unwrap returns etcd's own error.
func (d *denial) Unwrap() error { return d.err }

// explainDenial finds out which of the rights is missing. etcd does not say it,
// but it lets everybody see what they are granted.
func (s *Store) explainDenial(ctx context.Context, needs []need, err error) error {
	d := &denial{user: s.opts.Username, missing: needs, err: rpctypes.Error(err)}
	if d.user == "" {
		d.user = s.files.commonName()
	}
	if len(needs) == 0 {
		return d
	}
	granted, asked := s.granted(ctx, d.user)
	if asked != nil {
		return d
	}
	missing := slices.DeleteFunc(slices.Clone(needs), func(n need) bool { return covers(granted, n) })
	if len(missing) > 0 { // Else the rights have changed since.
		d.missing = missing
	}
	return d
}

// granted returns the permissions of all roles of a user.
func (s *Store) granted(ctx context.Context, user string) ([]*authpb.Permission, error) {
	who, err := s.auth.UserGet(ctx, &pb.AuthUserGetRequest{Name: user})
	if err != nil {
		return nil, err
	}
	var all []*authpb.Permission
	for _, name := range who.Roles {
		role, err := s.auth.RoleGet(ctx, &pb.AuthRoleGetRequest{Role: name})
		if err != nil {
			return nil, err
		}
		all = append(all, role.Perm...)
	}
	return all, nil
}
