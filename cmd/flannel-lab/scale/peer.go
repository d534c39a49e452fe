package scale

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/lab"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// MaxPeers is how many simulated hosts fit the network, beside the real ones and
// those that join.
const MaxPeers = 64000

// peer is a simulated host, by its number from 0. It may move from one address to
// another.
type peer struct{ number, moved int }

// subnet is the peer's /24, from 10.0.1.0 on: the first of a network is not leased.
func (p peer) subnet() netip.Prefix {
	return netip.PrefixFrom(ipv4(10<<24+uint32(p.number+1)<<8), 24)
}

// public is the peer's address, out of 100.64.0.0/10: 17 bits for its number, 5 for
// how often it moved.
func (p peer) public() netip.Addr {
	return ipv4(100<<24 + 64<<16 + uint32(p.moved%32)<<17 + uint32(p.number))
}

func (p peer) mac() kernel.MAC {
	m := kernel.MAC{2, 0x53}
	binary.BigEndian.PutUint32(m[2:], uint32(p.number))
	return m
}

func ipv4(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

// key is the peer's in etcd.
func (p peer) key() string {
	return lab.Prefix + "/subnets/" + subnet.Subnet{subnet.IPv4: p.subnet()}.Key()
}

// value is what stands there, as a daemon would write it.
func (p peer) value(over Backend) (string, error) {
	attrs := subnet.Attrs{Owner: subnet.NodeID(fmt.Sprintf("simulated-%05d", p.number)), Instance: "5ca1ab1e"}
	attrs.PublicIP[subnet.IPv4] = p.public()
	over.publish(p, &attrs)
	text, err := json.Marshal(attrs)
	return string(text), err
}

// numbered are the peers below a number, none of which has moved.
func numbered(count int) []peer {
	peers := make([]peer, count)
	for n := range peers {
		peers[n].number = n
	}
	return peers
}

// population is the simulated peers' keys in etcd, all on one lease.
type population struct {
	client *clientv3.Client
	over   Backend
	lease  clientv3.LeaseID
	// count is how many there are, numbered from 0.
	count int
}

// leaseSeconds outlasts every run.
const leaseSeconds = 24 * 60 * 60

// perTxn is how many keys are put at once: etcd takes 128 operations.
const perTxn = 128

func newPopulation(ctx context.Context, client *clientv3.Client, over Backend) (*population, error) {
	lease, err := client.Grant(ctx, leaseSeconds)
	if err != nil {
		return nil, fmt.Errorf("grant a lease for the peers: %w", err)
	}
	return &population{client: client, over: over, lease: lease.ID}, nil
}

// grow adds peers up to a number of them.
func (p *population) grow(ctx context.Context, count int) error {
	for p.count < count {
		var ops []clientv3.Op
		for n := p.count; n < min(count, p.count+perTxn); n++ {
			who := peer{number: n}
			value, err := who.value(p.over)
			if err != nil {
				return fmt.Errorf("put peers: %w", err)
			}
			ops = append(ops, clientv3.OpPut(who.key(), value, clientv3.WithLease(p.lease)))
		}
		if _, err := p.client.Txn(ctx).Then(ops...).Commit(); err != nil {
			return fmt.Errorf("put peers: %w", err)
		}
		p.count += len(ops)
	}
	return nil
}

// put writes one peer, new or moved.
func (p *population) put(ctx context.Context, who peer) error {
	value, err := who.value(p.over)
	if err == nil {
		_, err = p.client.Put(ctx, who.key(), value, clientv3.WithLease(p.lease))
	}
	if err != nil {
		return fmt.Errorf("put peer %s: %w", who.subnet(), err)
	}
	return nil
}

// remove deletes one peer.
func (p *population) remove(ctx context.Context, who peer) error {
	if _, err := p.client.Delete(ctx, who.key()); err != nil {
		return fmt.Errorf("delete peer %s: %w", who.subnet(), err)
	}
	return nil
}

// clear removes all peers.
func (p *population) clear(ctx context.Context) error {
	if _, err := p.client.Revoke(ctx, p.lease); err != nil {
		return fmt.Errorf("remove peers: %w", err)
	}
	return nil
}

// restore makes the keys what grow left: nobody has joined or moved.
func (p *population) restore(ctx context.Context) error {
	if err := p.clear(ctx); err != nil {
		return err
	}
	fresh, err := newPopulation(ctx, p.client, p.over)
	if err != nil {
		return err
	}
	count := p.count
	*p = *fresh
	return p.grow(ctx, count)
}
