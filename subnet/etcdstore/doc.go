// Package etcdstore is a [subnet.Store] in etcd, and the only importer of its
// client.
//
//	Load ------ one transaction -------+
//	Create ---- grant, CAS ------------+--> [ etcd: <prefix>/config           ]
//	Renew ----- keep alive, prove -----+    [       <prefix>/subnets/...      ]
//	Update ---- CAS, lease kept -------+    [       <prefix>/flanneld-go/store ]
//	Watch <---- one stream, verified --+
//
// # Contract
//
//   - New reads the files that its options name and nothing else: the first
//     call asks DNS, where endpoints are to be discovered, and connects.
//   - Those files may be replaced at any time: see files. Tokens end and are
//     renewed: see tokens.
//   - Every write is one transaction that compares what it rests upon, the
//     store's identity included, and whose other branch reads why it failed.
//   - Calls end when their context ends. An error then is an [*Error] with a
//     line for the operator: which endpoint, and why. The cause is what was
//     seen on the wire, since gRPC's own errors do not tell it; where rights
//     are missing, it names them, since etcd does not.
//   - What etcd sends is read at once: each of up to 40 messages a second for ever, and
//     of more than that a first few dozen. Where little comes more often, some of it is
//     read together and up to 80 ms late, since each wake costs more than what it brings:
//     see intake. Nothing is left out or comes in another order.
//   - No secret is in any error, log or value that package fmt can print.
//   - No write is repeated by itself. An error that is none of package
//     subnet's sentinels leaves the outcome open: Load finds out.
//
// The client's own watcher is not used. After a connection breaks it resumes
// silently, and it would do so on an etcd that has lost its data; it also takes
// its position from progress notifications, which etcd before 3.4.25 and 3.5.8
// may send ahead of the events that they cover (etcd issue 15220). Here a
// stream is never resumed: it is opened again, and nothing of it is believed
// before a linearizable read has found the same identity and no lower revision.
package etcdstore
