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
//	Apply, Follow -- world (peers, own addresses) --> atomic pointer
//	    \----------- slot (current Device) ----------> followed by the loops
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
//     and sends a flow to the queue by which its last answer was written. All queues
//     have the same ports, so that a flow has one whatever its queue is: it changes
//     queues at most once, with its first answer, or the first after 3 s without any
//     (the kernel forgets it then), and two hosts do not make each other change them
//     for ever.
//   - What a call costs is shared: the device hands over packets of up to 64 KiB
//     that we cut (TSO, USO), a message sends up to 64 datagrams (UDP_SEGMENT), an
//     arrival brings as many (UDP_GRO), and we join those for the device. The
//     arithmetic is package offload's; none of it shows on the wire. Each offload
//     is used where the kernel has it and given up alone where it refuses, and
//     its packets then go one by one. With Offload off there are none but the join of
//     TCP packets for the device, and calls still move several packets.
//   - Packets for nobody are answered with net unreachable, those above the MTU
//     that must not be fragmented with fragmentation needed, those whose TTL ran
//     out with time exceeded: RFC 792, 1191, 4443; rate-limited, and never about
//     ICMP errors, later fragments, multicast.
//   - Apply opens, Run moves packets. The two may be called concurrently; a
//     device deleted under the daemon is made anew by the next Apply, and Run
//     goes on with that.
//   - The packet path takes no lock and allocates nothing per packet. It sees
//     peers as one immutable value behind an atomic pointer. Follow makes the next
//     one of that by copying the levels of the table that a change is about and editing
//     the copies: 50 to 140 us for a peer of 10,000, where a table made anew takes ms.
//   - With DirectRouting, peers on the uplink's own segment that publish it too get
//     plain routes, for the family of the outer addresses. They stay in the table:
//     which way a packet takes its sender decides.
//   - A further instance on the host has a device of its own, flannel1 to flannel9, and
//     needs a Port of its own: peers learn it from the lease.
//   - The device is persistent: it outlives the daemon with address and routes,
//     until Cleanup.
//
// # Cost
//
// What profiles said, taken with hardware cycles of one TCP stream on a virtual
// machine with 2 cores, senders and receivers on it too:
//
//   - Waking is what costs. Two threads that wake each other in turn take 4 us for
//     it on one core and 64 on two, for there an idle core has to be fetched from
//     the hypervisor. Without offloads both daemons spent 41 us on a packet, half of
//     it on being woken, waking others, and batches that were short because of it.
//   - Go's scheduler wakes more threads than there are loops to run. Where calls take
//     20 us, its monitor takes the core (the P) away and gives it to another thread:
//     7,400 naps of the monitor and 2,800 futex calls a second at 37,000 packets,
//     and two calls of epoll_wait for each sleep. The calls that move packets never
//     block, so they are made without telling the scheduler (RawSyscall): 28 -> 23 s
//     of CPU for a GB without offloads, 3.1 -> 2.5 with them. A loop then keeps its
//     core until it finds nothing, and where all are busy whoever else is ready
//     waits up to 10 ms: so there are no more loops than cores, unless Queues says
//     so.
//   - Looking again before sleeping, see linger, avoids most of the waking: 23 -> 14
//     s/GB without offloads, 2.5 -> 2.2 with them, and a ping takes a fifth less. What
//     comes seldom costs next to nothing, for a loop that looks in vain backs off.
//   - What Go's poller (epoll) holds calls it back with every packet that comes or has
//     left, and most of these calls woke a thread that found nothing to do. Since a busy
//     loop is in it only while it sleeps, see handle, one stream without offloads
//     carries 12 to 20 % more: in turn with what was before, 30 to 50 rounds. To sleep in
//     poll(2) instead carries a few percent more still, but a ping takes a quarter longer.
//   - On a busy host the loops compete with the programs that send and receive, and wait
//     for them. At a niceness of -10, see precede, one stream with offloads carries more, in
//     turn with the same build without: by 4 to 20 % where its sender goes by BBR, 10 to 17
//     by CUBIC, eight times 20 to 30 rounds, sender and receiver being of the same session.
//   - A frame of 64 KiB has 45 packets of 1,472 bytes, of which a datagram train
//     (UDP_SEGMENT) holds 44: each frame alone costs two. Reading up to eight
//     frames at a time fills the trains: eight of nine.
//   - Now the loops have 96 of 100 cycles of the daemon, and four fifths of those
//     are the kernel's: sending, down to the receiver's socket, is 30 of 100, from
//     the device up to the container's socket 26, the two reads 25, mostly copies.
//     Sums are 4, looking again 4. What vxlan does not have is these copies.
//   - Of a train only the first packet of a flow is decided on: what continues it is from
//     the same sender to the same receiver. Own code of the way in: 10 -> 7 us for 64 KiB.
//   - Without a gain: to read a large packet with gaps for the heads of its wire packets, and
//     send it from there in one piece (sending costs 3 us less, reading 3 more); to hold back
//     what does not fit a train until the next frame (a fifth fewer messages, as much carried).
//   - Of many peers the cache holds a part only, and a small packet waited twice for
//     memory, for the cell and the endpoint of its peer. A batch is looked up as a whole
//     now, in passes so short that these reads overlap, and an endpoint is one line of the
//     cache: small packets to any of 10,000 endpoints cost 3 % more than to one, where it
//     was 6 to 7 (BenchmarkPeers, in turn with what was before, beside other programs).
//     With an address each it is 12 where it was 17 to 20, of which 11 to 12 are the
//     kernel's: a bare array of addresses costs them too. Frames of 64 KiB lose less than
//     a hundredth, and one TCP stream nothing that can be told from the machine's own
//     changes (BenchmarkStreamAmongPeers). docs/benchmarks.md has the figures of a run.
//   - Memory is that of the buffers of 64 KiB: 8 for frames and, with up to 8 queues, 32
//     for arrivals in each of them. With more queues they share 256, so that all have
//     at most 36 MB (TestMemoryOfQueues). A daemon of 16 queues with 32 streams had
//     47 MB at its peak, 30 with one queue.
//   - One ping in a hundred takes milliseconds with all backends: a thread that
//     does nothing but read the clock, at the highest priority, misses up to 6 ms
//     of it on this machine.
//
// # Words
//
// Outer is what the datagram has, inner what the packet in it has. A path is one
// queue with its sockets. A batch is what one call moves. A wire packet is one inner
// packet as a datagram carries it; a frame is what the device hands over, a wire
// packet or a large one. Hops is the TTL of IPv4 and the hop limit of IPv6. To tell
// is to answer a sender with an ICMP error.
package udp
