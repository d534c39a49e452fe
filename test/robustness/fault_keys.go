package robustness

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/subnet"
)

const (
	// byHand ends the values that the operator puts into subnets' keys. To JSON
	// it is nothing, and no daemon writes it.
	byHand = "\n"
)

// lease is an etcd lease.
func (t *trial) lease(ctx context.Context, ttl time.Duration) (clientv3.OpOption, error) {
	granted, err := t.cluster.Client().Grant(ctx, int64(ttl.Seconds()))
	if err != nil {
		return nil, err
	}
	return clientv3.WithLease(granted.ID), nil
}

// list reads all keys of subnets.
func (t *trial) list(ctx context.Context) ([]*mvccpb.KeyValue, error) {
	resp, err := t.cluster.Client().Get(ctx, subnetsPrefix, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	return resp.Kvs, nil
}

// holder is whose a key is, in the record's names; empty: nobody's of the run.
func (t *trial) holder(kv *mvccpb.KeyValue) string {
	var attrs subnet.Attrs
	if json.Unmarshal(kv.Value, &attrs) != nil {
		return ""
	}
	for _, h := range t.hosts {
		if attrs.Owner == subnet.NodeID(h.node()) || attrs.Owner == "" && attrs.PublicIP[subnet.IPv4] == h.Addrs[0].Addr() {
			return h.name
		}
	}
	return ""
}

// holders are the hosts by their keys.
func (t *trial) holders(ctx context.Context) (map[string]string, error) {
	holders := map[string]string{}
	err := t.insist(ctx, func(ctx context.Context) error {
		kvs, err := t.list(ctx)
		for _, kv := range kvs {
			holders[string(kv.Key)] = t.holder(kv)
		}
		return err
	})
	return holders, err
}

// key finds the key of the subnet that a host uses.
func (t *trial) key(ctx context.Context, h *host) (*mvccpb.KeyValue, error) {
	kvs, err := t.list(ctx)
	if err != nil {
		return nil, err
	}
	env, _ := h.ReadSubnet() // Without one, any key of the host's will do.
	using := subnetKey(env.Subnets[subnet.IPv4].Masked())
	var found *mvccpb.KeyValue
	for _, kv := range kvs {
		if t.holder(kv) == h.name && (found == nil || string(kv.Key) == using) {
			found = kv
		}
	}
	if found == nil {
		return nil, errNoKey
	}
	return found, nil
}

// unchanged compares a key with what was read.
func unchanged(kv *mvccpb.KeyValue) []clientv3.Cmp {
	return []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(string(kv.Key)), "=", kv.ModRevision)}
}

// change does something to the key of a host.
func (t *trial) change(ctx context.Context, h *host, do func(context.Context, *mvccpb.KeyValue) error) error {
	return t.operate(ctx, func(ctx context.Context) error {
		kv, err := t.key(ctx, h)
		if err != nil {
			return err
		}
		return do(ctx, kv)
	})
}

// beginKeys: a host that lives has a key back at once, unless another owner has
// it.
func (t *trial) beginKeys(ctx context.Context, s Step, f *deed) (healing, error) {
	switch s.Kind {
	case FaultRevoke:
		f.Hosts = t.misfits(t.chosen(s))
		return nil, t.eachKey(ctx, s, f, t.revoke)
	case FaultDelete:
		f.Hosts = t.misfits(t.chosen(s))
		return nil, t.eachKey(ctx, s, f, t.remove)
	case FaultReserve:
		return nil, each(t.chosen(s), func(h *host) error { return t.reserve(ctx, h) })
	case FaultExhaust:
		return t.exhaust(ctx, t.chosen(s)[0], f)
	case FaultUsurp:
		return t.usurp(ctx, s, f)
	case FaultMove:
		return t.move(ctx, s, f)
	default: // FaultOverwrite
		return t.overwrite(ctx, t.chosen(s)[0], s.Variant, f)
	}
}

// eachKey does something to the key of every host of a step. Those that refuse
// are not touched.
func (t *trial) eachKey(ctx context.Context, s Step, f *deed, do func(context.Context, *mvccpb.KeyValue) error) error {
	return each(t.chosen(s), func(h *host) error {
		err := t.change(ctx, h, do)
		var refused *refusedError
		switch {
		case errors.As(err, &refused) && !refused.open:
			f.spare(h.name)
		case err == nil:
			f.partly = true
		}
		return err
	})
}

func (t *trial) revoke(ctx context.Context, kv *mvccpb.KeyValue) error {
	if kv.Lease == 0 {
		return errNoLease
	}
	resp, err := t.cluster.Client().Revoke(ctx, clientv3.LeaseID(kv.Lease))
	if err != nil {
		return lost(err)
	}
	t.rec.operator(resp.Header.Revision)
	return nil
}

func (t *trial) remove(ctx context.Context, kv *mvccpb.KeyValue) error {
	return t.commit(ctx, unchanged(kv), clientv3.OpDelete(string(kv.Key)))
}

// detach puts the value again without a lease, which makes it a reservation.
func (t *trial) detach(ctx context.Context, kv *mvccpb.KeyValue) error {
	return t.commit(ctx, unchanged(kv), clientv3.OpPut(string(kv.Key), strings.TrimSuffix(string(kv.Value), byHand)+byHand))
}

// reserve has flannelctl make a host's lease a reservation. It must manage that
// where the operator's own requests are served and the config is what it should be.
func (t *trial) reserve(ctx context.Context, h *host) error {
	return t.change(ctx, h, func(ctx context.Context, kv *mvccpb.KeyValue) error {
		if kv.Lease == 0 {
			return errNoLease
		}
		var attrs subnet.Attrs
		if err := attrs.UnmarshalJSON(kv.Value); err != nil || attrs.Owner != subnet.NodeID(h.node()) {
			return errRaced // It is the host's when that has taken it over.
		}
		s, err := subnet.ParseSubnet(strings.TrimPrefix(string(kv.Key), subnetsPrefix))
		if err != nil {
			return err
		}
		if err := t.serves(ctx); err != nil {
			return err
		}
		before := t.allowed(ctx, s)
		t.announce(keySubnets + s.Key())
		_, err = t.lab.Switch.Run(ctx, t.Ctl, "reserve", s.String(), "--node="+h.node(),
			"--etcd-endpoints="+t.lab.EtcdURL(), "--etcd-prefix="+lab.Prefix)
		if err == nil {
			return nil
		}
		return lost(cmp.Or(ctx.Err(), t.serves(ctx), t.raced(ctx, kv), before, t.allowed(ctx, s), err))
	})
}

// serves asks etcd for something that it must write down.
func (t *trial) serves(ctx context.Context) error {
	_, err := t.lease(ctx, t.TTL)
	return err
}

// allowed reports whether the config is the one that is meant to be there, and
// lets a subnet be had.
func (t *trial) allowed(ctx context.Context, s subnet.Subnet) error {
	resp, err := t.cluster.Client().Get(ctx, configKey)
	if err != nil {
		return err
	}
	meant := len(resp.Kvs) > 0 && string(resp.Kvs[0].Value) == t.network.config()
	if !meant || !slices.Contains(t.network.pool, s[subnet.IPv4]) {
		return errRuledOut
	}
	return nil
}

// raced reports whether a key is not what it was.
func (t *trial) raced(ctx context.Context, kv *mvccpb.KeyValue) error {
	resp, err := t.cluster.Client().Get(ctx, string(kv.Key))
	if err == nil && (len(resp.Kvs) == 0 || resp.Kvs[0].ModRevision != kv.ModRevision) {
		err = errRaced
	}
	return err
}

// announce notes what flannelctl is asked to do. Asked again for the same it
// does one deed, not two.
func (t *trial) announce(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.rec.now()
	for _, r := range t.reserved {
		if r.key == key && now <= r.at+reserveWithin {
			return
		}
	}
	t.reserved = append(t.reserved, reserved{key, now})
}

// reserved is a deed of flannelctl's: it does not say at which revision, and may
// have done it though it could not say so.
type reserved struct {
	key string
	at  time.Duration
}

// reserveWithin is how long after its start such a deed may show in the record.
const reserveWithin = operateWithin + 5*time.Second // what was asked for may be done later

// did reports whether an event may be the deed: the key hangs on no lease then.
func (r reserved) did(e Event) bool {
	return e.Key == r.key && !e.Deleted && e.Lease == 0 && r.at <= e.At && e.At <= r.at+reserveWithin
}

// overwrite puts another value into a host's key.
func (t *trial) overwrite(ctx context.Context, h *host, variant string, f *deed) (healing, error) {
	switch variant {
	case variantDetached:
		return nil, t.change(ctx, h, t.detach)
	case variantFlannel:
		return nil, t.change(ctx, h, t.asFlannel)
	case variantForeign:
		f.Hosts = []string{h.name}
		value := t.ghost()
		return t.driveOut(value), t.change(ctx, h, func(ctx context.Context, kv *mvccpb.KeyValue) error { return t.haunt(ctx, kv, value) })
	default: // variantGarbage
		f.Hosts = []string{h.name}
		value := fmt.Sprintf("%s%d%s", garbage, t.rec.now(), byHand)
		return t.driveOut(value), t.change(ctx, h, func(ctx context.Context, kv *mvccpb.KeyValue) error { return t.haunt(ctx, kv, value) })
	}
}

// asFlannel puts what flannel would: the host's own value without what is ours,
// under a new lease.
func (t *trial) asFlannel(ctx context.Context, kv *mvccpb.KeyValue) error {
	var attrs subnet.Attrs
	if err := json.Unmarshal(kv.Value, &attrs); err != nil {
		return err
	}
	attrs.Owner, attrs.Instance = "", ""
	value, err := json.Marshal(attrs)
	if err != nil {
		return err
	}
	lease, err := t.lease(ctx, t.TTL)
	if err != nil {
		return err
	}
	return t.commit(ctx, unchanged(kv), clientv3.OpPut(string(kv.Key), string(value)+byHand, lease))
}

// vacant are the subnets that no host uses: one without a key may be about to
// have it again.
func (t *trial) vacant() []netip.Prefix {
	vacant := slices.Clone(t.network.pool)
	for _, h := range t.hosts {
		// A host that uses none has no file.
		if env, err := h.ReadSubnet(); err == nil {
			used := env.Subnets[subnet.IPv4].Masked()
			vacant = slices.DeleteFunc(vacant, func(p netip.Prefix) bool { return p == used })
		}
	}
	return vacant
}

// exhaust lets ghosts have every free subnet of the pool and that of the host. It
// is healed by freeing one, and the others later.
func (t *trial) exhaust(ctx context.Context, h *host, f *deed) (healing, error) {
	var last string
	err := t.operate(ctx, func(ctx context.Context) error {
		since, err := t.configSince(ctx)
		if err != nil {
			return err
		}
		for _, p := range t.vacant() {
			value := t.ghost()
			lease, err := t.lease(ctx, ghostTTL)
			if err != nil {
				return err
			}
			free := clientv3.Compare(clientv3.CreateRevision(subnetKey(p)), "=", 0)
			err = t.commit(ctx, []clientv3.Cmp{since, free}, clientv3.OpPut(subnetKey(p), value, lease))
			if err != nil && !errors.Is(err, errRaced) {
				return err
			}
			if err == nil {
				last, f.partly = value, true
			}
		}
		return nil
	})
	if err == nil {
		f.Hosts = []string{h.name}
		value := t.ghost()
		err = t.eachKey(ctx, Step{Hosts: []int{h.Number}}, f, func(ctx context.Context, kv *mvccpb.KeyValue) error { return t.haunt(ctx, kv, value) })
	}
	return func(ctx context.Context, f *deed) error {
		// From here on no ghost may come that was called before.
		err := errors.Join(t.putConfig(ctx, f), t.driveOut(last)(ctx, f))
		f.Until = t.rec.now()
		after(ctx, 2*t.TTL)
		return errors.Join(err, t.exorcise(ctx))
	}, err
}

// beginConfig: running hosts keep what they have.
func (t *trial) beginConfig(ctx context.Context, s Step) (healing, error) {
	op := clientv3.OpPut(configKey, t.network.variant(s.Variant))
	if s.Kind == FaultNoConfig {
		op = clientv3.OpDelete(configKey)
	}
	return t.putConfig, t.operate(ctx, func(ctx context.Context) error { return t.replaceConfig(ctx, op) })
}

// putConfig puts the config that is meant to be there.
func (t *trial) putConfig(ctx context.Context, _ *deed) error {
	return t.insist(ctx, func(ctx context.Context) error {
		return t.replaceConfig(ctx, clientv3.OpPut(configKey, t.network.config()))
	})
}

// replaceConfig changes the config if nobody else does: a request that was given
// up may lie in a member that is paused, and must do nothing when that goes on.
func (t *trial) replaceConfig(ctx context.Context, op clientv3.Op) error {
	since, err := t.configSince(ctx)
	if err != nil {
		return err
	}
	return t.commit(ctx, []clientv3.Cmp{since}, op)
}

// configSince compares the config with what it is now.
func (t *trial) configSince(ctx context.Context) (clientv3.Cmp, error) {
	resp, err := t.cluster.Client().Get(ctx, configKey)
	if err != nil {
		return clientv3.Cmp{}, err
	}
	var modified int64
	if len(resp.Kvs) > 0 {
		modified = resp.Kvs[0].ModRevision
	}
	return clientv3.Compare(clientv3.ModRevision(configKey), "=", modified), nil
}
