package native

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// A set has a "typeof" where a part of its key is at a place that has no name, as
// what is in an envelope: such a part has no type that nft could write down, and
// without the expression it cannot read again what it has listed. The kernel keeps
// it as it is, among the set's user data. The numbers are those of nft and libnftnl
// (expression.h, payload.h, proto.h, udata.h), which are in rulesets on disk and
// stay what they are; integers have the byte order of the machine.
const (
	typeofExpr userdata.Type = 0 // of an expression: which
	typeofData userdata.Type = 1 // of an expression: its own

	payloadProtocol userdata.Type = 0
	payloadField    userdata.Type = 1
	payloadBase     userdata.Type = 2
	payloadOffset   userdata.Type = 3 // in bits
	payloadLength   userdata.Type = 4 // in bits

	exprPayload = 7
	exprConcat  = 13

	baseTransport = 3
)

// protocolIP and fieldSource are nft's names of an outer source address.
func protocolIP(f subnet.Family) uint32  { return [...]uint32{12, 13}[f] }
func fieldSource(f subnet.Family) uint32 { return [...]uint32{11, 8}[f] }

// typeofSender is `typeof ip saddr . @th,OFFSET,LENGTH`.
func typeofSender(outer subnet.Family, inner field) []byte {
	parts := userdata.Append(nil, 0, payload(number(payloadProtocol, protocolIP(outer)), number(payloadField, fieldSource(outer))))
	parts = userdata.Append(parts, 1, payload(
		number(payloadProtocol, 0), number(payloadField, 0), number(payloadBase, baseTransport),
		number(payloadOffset, 8*inner.offset), number(payloadLength, 8*inner.length),
	))
	data := number(userdata.NFTNL_UDATA_SET_KEYBYTEORDER, 0) // each part has its own
	return userdata.Append(data, userdata.NFTNL_UDATA_SET_KEY_TYPEOF, expression(exprConcat, parts))
}

func payload(attributes ...[]byte) []byte {
	var data []byte
	for _, a := range attributes {
		data = append(data, a...)
	}
	return expression(exprPayload, data)
}

func expression(kind uint32, data []byte) []byte {
	return userdata.Append(number(typeofExpr, kind), typeofData, data)
}

func number(t userdata.Type, n uint32) []byte {
	return userdata.Append(nil, t, binary.NativeEndian.AppendUint32(nil, n))
}

// Numbers of nf_tables (linux/netfilter/nf_tables.h).
const (
	msgNewSet       = 10<<8 | 9
	attrSetName     = 2
	attrSetUserData = 13
)

// describer gives sets their typeof on the way to the kernel.
type describer struct {
	*socket
	// typeof is of new sets; nil: they have none.
	typeof map[setID][]byte
}

// setID names a set in our table.
type setID struct {
	family byte
	name   string
}

// dialDescribing returns a connection whose new sets have a typeof. The library
// writes none, and the only place where its messages can be completed, so that all
// of them stay one transaction, is the dialer that it has for tests.
func (*netlinkDoor) dialDescribing(ctx context.Context, typeof map[setID][]byte) (conn *nftables.Conn, done func(), err error) {
	d := &describer{typeof: typeof}
	if d.socket, err = openSocket(ctx); err != nil {
		return nil, nil, fmt.Errorf("open nfnetlink: %w", err)
	}
	if err = d.widen(); err == nil {
		conn, err = nftables.New(nftables.WithTestDial(d.exchange))
	}
	if err != nil {
		d.close()
		return nil, nil, fmt.Errorf("open nfnetlink: %w", err)
	}
	return conn, d.close, nil
}

// exchange sends messages, or receives where there are none.
func (d *describer) exchange(messages []netlink.Message) ([]netlink.Message, error) {
	if len(messages) == 0 {
		return d.receive()
	}
	for i, m := range messages {
		if m.Header.Type != msgNewSet {
			continue
		}
		data, err := d.describe(m.Data)
		if err != nil {
			return nil, err
		}
		messages[i].Data = data
		messages[i].Header.Length += uint32(len(data) - len(m.Data)) //nolint:gosec // some bytes more
	}
	return nil, d.send(messages...)
}

// describe adds the typeof to a message that makes a set, if it has one.
func (d *describer) describe(data []byte) ([]byte, error) {
	attrs, err := netlink.NewAttributeDecoder(data[nfgenmsg:])
	if err != nil {
		return nil, err
	}
	id := setID{family: data[0]}
	for attrs.Next() {
		if attrs.Type() == attrSetName {
			id.name = attrs.String()
		}
	}
	if err := attrs.Err(); err != nil || d.typeof[id] == nil {
		return data, err
	}
	more, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: attrSetUserData, Data: d.typeof[id]}})
	return append(data[:len(data):len(data)], more...), err
}
