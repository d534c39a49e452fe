package robustness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flanneld-go/flanneld-go/subnet"
)

const (
	// ghostTTL is that of the leases of invented owners: longer than any run.
	ghostTTL = 24 * time.Hour
	// ghostOwner begins their node ids, garbage the values that are none.
	ghostOwner = "ghost-"
	garbage    = `{"PublicIP":!`
	// learnWithin is how long hosts are given to learn of a ghost before
	// something becomes of it.
	learnWithin = 2 * time.Second
)

// ghost invents an owner and returns its value.
func (t *trial) ghost() string {
	n := t.nextGhost()
	return ghostValue(n, n, n)
}

// nextGhost is a number that no ghost has.
func (t *trial) nextGhost() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ghosts++
	return t.ghosts
}

// ghostValue is the value of a ghost with the address and the MAC of others.
func ghostValue(n, addr, mac int) string {
	attrs := subnet.Attrs{Owner: subnet.NodeID(fmt.Sprintf("%s%d", ghostOwner, n)), Instance: "1", BackendType: "vxlan"}
	last := byte(100 + addr%100)
	attrs.PublicIP[subnet.IPv4] = netip.AddrFrom4([4]byte{198, 18, 0, last})
	attrs.BackendData[subnet.IPv4] = subnet.RawJSON(fmt.Sprintf(`{"VNI":1,"VtepMAC":%q}`, net.HardwareAddr{2, 0, 0, 0, byte(mac >> 8), byte(mac)}))
	// It is of our own making: it can be encoded.
	value, _ := attrs.MarshalJSON()
	return string(value) + byHand
}

// haunt puts a ghost's value into a key.
func (t *trial) haunt(ctx context.Context, kv *mvccpb.KeyValue, value string) error {
	lease, err := t.lease(ctx, ghostTTL)
	if err != nil {
		return err
	}
	return t.commit(ctx, unchanged(kv), clientv3.OpPut(string(kv.Key), value, lease))
}

// driveOut deletes every key with a value, where there still is one.
func (t *trial) driveOut(value string) healing {
	return func(ctx context.Context, _ *deed) error {
		return t.removeAll(ctx, func(kv *mvccpb.KeyValue) bool { return string(kv.Value) == value })
	}
}

// exorcise deletes all ghosts whom no fault under way has called: a restored
// snapshot is full of them.
func (t *trial) exorcise(ctx context.Context) error {
	return t.removeAll(ctx, func(kv *mvccpb.KeyValue) bool { return isGhost(string(kv.Value)) })
}

// isGhost tells a value that stands for no host.
func isGhost(value string) bool {
	return strings.HasPrefix(value, garbage) || strings.Contains(value, `"Owner":"`+ghostOwner)
}

// removeAll deletes the keys that match, as often as etcd needs to be asked.
func (t *trial) removeAll(ctx context.Context, match func(*mvccpb.KeyValue) bool) error {
	return t.insist(ctx, func(ctx context.Context) error {
		kvs, err := t.list(ctx)
		if err != nil {
			return err
		}
		for _, kv := range slices.DeleteFunc(kvs, func(kv *mvccpb.KeyValue) bool { return !match(kv) }) {
			if err := t.remove(ctx, kv); err != nil {
				return err
			}
		}
		return nil
	})
}

// apart cuts a host off while something is done to etcd, which is a fault of its
// own.
func (t *trial) apart(h *host, why string, do func() error) error {
	cut := deed{Fault: Fault{
		Kind: FaultCut, From: t.rec.now(), To: []string{h.name}, Unreachable: []string{h.name}, Detail: h.name + " for " + why,
	}}
	h.proxy.Cut()
	err := errors.Join(do(), h.proxy.Heal())
	cut.Until = t.rec.now()
	t.note(cut)
	return err
}

// meet ends a ghost's stay when those whom a fault concerns have been able to
// notice it for long enough.
func (t *trial) meet(values ...string) healing {
	until := t.rec.now() + quiet(t.TTL)
	return func(ctx context.Context, _ *deed) error {
		after(ctx, until-t.rec.now())
		return t.removeAll(ctx, func(kv *mvccpb.KeyValue) bool { return slices.Contains(values, string(kv.Value)) })
	}
}

// usurp lets a host's lease expire while it is cut off, and a ghost have the
// subnet as soon as it is free. The two meet when the host is back, and the ghost
// stays until nobody may take the host for the owner any more.
func (t *trial) usurp(ctx context.Context, s Step, f *deed) (healing, error) {
	h, value := t.chosen(s)[0], t.ghost()
	err := t.apart(h, string(s.Kind), func() error {
		err := t.inherit(ctx, h, value)
		if err == nil {
			f.From, f.Hosts = t.rec.now(), []string{h.name}
			after(ctx, t.begun+s.until()-quiet(t.TTL)-t.rec.now())
		}
		return err
	})
	return t.meet(value), err
}

// inherit puts a ghost's value into the key that a host has now, when it is gone.
func (t *trial) inherit(ctx context.Context, h *host, value string) error {
	var key string
	err := t.change(ctx, h, func(_ context.Context, kv *mvccpb.KeyValue) error {
		if kv.Lease == 0 {
			return errNoLease // It never expires.
		}
		key = string(kv.Key)
		return nil
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*t.TTL+operateWithin)
	defer cancel()
	return t.insist(ctx, func(ctx context.Context) error { return t.settleDown(ctx, key, value) })
}

// settleDown creates a ghost's key, if there is none and the config is as it is.
func (t *trial) settleDown(ctx context.Context, key, value string) error {
	resp, err := t.cluster.Client().Get(ctx, key)
	switch {
	case err != nil:
		return err
	case len(resp.Kvs) > 0 && string(resp.Kvs[0].Value) == value:
		return nil // The answer got lost.
	case len(resp.Kvs) > 0:
		return errRaced
	}
	since, err := t.configSince(ctx)
	if err != nil {
		return err
	}
	lease, err := t.lease(ctx, ghostTTL)
	if err != nil {
		return err
	}
	free := clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
	return t.commit(ctx, []clientv3.Cmp{since, free}, clientv3.OpPut(key, value, lease))
}

// move lets a ghost live in a free subnet. While a host is cut off that knows it,
// its address or its MAC changes, and the log is compacted: nothing but a full
// load can tell the host.
func (t *trial) move(ctx context.Context, s Step, f *deed) (healing, error) {
	n, next := t.nextGhost(), t.nextGhost()
	was, is := ghostValue(n, n, n), ghostValue(n, n, next)
	if s.Variant == variantAddress {
		is = ghostValue(n, next, n)
	}
	f.To = nil
	key, err := t.moveIn(ctx, was)
	if err != nil {
		return t.meet(was), err
	}
	f.partly = true
	after(ctx, learnWithin)
	f.From = t.rec.now()
	err = t.apart(t.chosen(s)[0], s.what(), func() error {
		err := t.operate(ctx, func(ctx context.Context) error { return t.replaceValue(ctx, key, was, is) })
		if err == nil {
			err = t.compact(ctx)
		}
		after(ctx, t.begun+s.until()-quiet(t.TTL)-t.rec.now())
		return err
	})
	return t.meet(was, is), err
}

// moveIn gives a ghost some free subnet and returns its key.
func (t *trial) moveIn(ctx context.Context, value string) (string, error) {
	var key string
	err := t.operate(ctx, func(ctx context.Context) error {
		err := errNoRoom
		for _, p := range t.vacant() {
			key = subnetKey(p)
			if err = t.settleDown(ctx, key, value); !errors.Is(err, errRaced) {
				break
			}
		}
		return err
	})
	return key, err
}

// replaceValue changes a key of a ghost's, and nothing else of it.
func (t *trial) replaceValue(ctx context.Context, key, was, is string) error {
	resp, err := t.cluster.Client().Get(ctx, key)
	if err != nil {
		return err
	}
	switch {
	case len(resp.Kvs) == 0:
		return errNoKey
	case string(resp.Kvs[0].Value) == is:
		return nil // The answer got lost.
	case string(resp.Kvs[0].Value) != was:
		return errRaced
	}
	return t.commit(ctx, unchanged(resp.Kvs[0]), clientv3.OpPut(key, is, clientv3.WithIgnoreLease()))
}
