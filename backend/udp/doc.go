// Package udp joins hosts by plain UDP datagrams, flannel's default backend: it
// needs no kernel module but tun, and passes wherever UDP does.
//
//	containers                                                      peers
//	    |  route 10.5.0.0/16 dev flannel0                             |
//	    v                                                             v
//	+--------+ Read  +--------------------------------+ WriteBatch +--------+
//	|        |------>| sender:   plan cut, outbound,  |----------->|        |
//	| Device | Frames|           hop - 1, pack        |  Messages  |  Conn  |
//	|  (TUN) |<------| receiver: inbound, hop - 1,    |<-----------| (UDP)  |
//	+--------+ Write |           merge                |  ReadBatch +--------+
//	    ^     Joined +---------------+----------------+  Arrivals
//	    |  Inject (raw socket)       | dropped
//	    |                            v
//	    +-------------------- answers (slow path): ICMP errors
//
//	Apply --- world (peers, own addresses) ---> atomic pointer
//	      \-- slot (current Device) ----------> followed by the loops
//
// # Contract
//
//   - On the wire (docs/compatibility.md): the payload of a datagram is exactly
//     one inner IP packet, sent to the peer's port. Each side takes one from the
//     inner TTL, as flannel does. The sender's port is not looked at.
//   - To hosts that may be flannel's everything is sent from our port; to those that
//     publish theirs, each flow from one of a few, so that their receive queues,
//     and paths of equal cost, share the flows. A flow keeps its order.
//   - An inner source must belong to the peer whose address the datagram came
//     from; anything else is dropped and counted by reason, see [Verdict].
//   - The device has several queues, and each a socket: one path of two goroutines,
//     which shares nothing with the others but what it reads, and sockets of its
//     own to send from. The kernel keeps what comes from one port on one socket,
//     and a flow on one queue.
//   - What a call costs is shared: the device hands over packets of up to 64 KiB
//     that we cut (TSO, USO), a message sends up to 64 datagrams (UDP_SEGMENT), an
//     arrival brings as many (UDP_GRO), and we join those for the device. The
//     arithmetic is package offload's; none of it shows on the wire. Each offload
//     is used where the kernel has it and given up alone where it refuses.
//   - Packets for nobody are answered with net unreachable, those above the MTU
//     that must not be fragmented with fragmentation needed, those whose TTL ran
//     out with time exceeded: RFC 792, 1191, 4443; rate-limited, and never about
//     ICMP errors, later fragments, multicast.
//   - Apply opens, Run moves packets. The two may be called concurrently; a
//     device deleted under the daemon is made anew by the next Apply, and Run
//     goes on with that.
//   - The packet path takes no lock and allocates nothing per packet. It sees
//     peers as one immutable value behind an atomic pointer.
//   - The device is persistent: it outlives the daemon with address and routes,
//     until Cleanup.
//
// # Words
//
// Outer is what the datagram has, inner what the packet in it has. A path is one
// queue with its sockets. A batch is what one call moves. A wire packet is one inner
// packet as a datagram carries it; a frame is what the device hands over, a wire
// packet or a large one. Hops is the TTL of IPv4 and the hop limit of IPv6. To tell
// is to answer a sender with an ICMP error.
package udp
