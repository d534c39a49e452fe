// Package offload is the arithmetic of segmentation offloads: it cuts the large
// packets that a TUN device hands over into those that go on the wire, and joins
// those that come from the wire into large ones for the device. It sees bytes
// only, and makes no system call.
//
//	device --read--> [vnet header | packet] --Plan--> N wire packets --> UDP_SEGMENT
//
//	         +----------------+--------------------------------------+
//	 TCP,    | IP | TCP       | payload, up to 64 KiB                |
//	 or UDP  +----------------+--------------------------------------+
//	                             |          |          |
//	         +-------+-------+   v   +------v+------+  v
//	 Heads   | head 0| Size bytes    | head 1| Size |  ...   heads in scratch space,
//	         +-------+---------------+-------+------+        payload where it was
//
//	device <--write-- [vnet header | first packet | payload | payload ...] <--Merge-- UDP_GRO
//
// # Contract
//
//   - Cut: every byte of the payload stands in exactly one wire packet, in order;
//     each has lengths, IPv4 identification, sequence number, flags and sums as if
//     its sender had sent it alone. No wire packet is longer than head and segment
//     size. Payload is not copied. What a vnet header says is checked against the
//     packet by Plan; a lie is an error, and nothing is read or written outside.
//   - Merger: what it emits, cut again, is what was added, by Add or, where packets of a
//     flow follow each other in one arrival, by Continue: every byte once, the
//     packets of one flow in their order. Packets that cannot be joined (another
//     protocol, fragments, IP options, odd flags, a wrong sum, a gap) are emitted
//     as they came, and after everything of their flow that came before them. A
//     packet whose sum is wrong is never joined, so nothing makes it right.
//     Identifications of IPv4 packets that must not be fragmented may change,
//     for nobody reads them (RFC 6864).
//   - Neither allocates or blocks, or looks at a packet after Flush.
//
// # Words
//
// A large packet is one that stands for several of the wire. A head is the IP and
// transport header of one packet. The segment size is the payload of each but the
// last (the MSS of TCP). The vnet header is struct virtio_net_hdr (virtio 1.2,
// section 5.1.6; linux/virtio_net.h), which the TUN driver speaks in the byte order
// of the host. A partial sum is one of the pseudo header alone, which whoever sends
// the packet completes.
//
// # What profiles said
//
// On an EPYC (2 cores, both busy with other work; the best of 30 runs):
//
//   - Checksums are most of it. 64-bit additions with carry take one a cycle
//     whatever the loop looks like: 19 GB/s, and a second chain beside the first
//     gains nothing. AVX2 reaches 59 GB/s on 1,420 bytes and 82 on 64 KiB, 3 and
//     4 times as much; SSE2 was between. Below 256 bytes it gains nothing.
//   - Cutting 64 KiB takes 2.4 to 4.2 us, 50 to 90 ns for each wire packet, half of
//     it the sum. Heads get their sums from what they have in common plus what
//     differs, so no header is added up twice.
//   - Joining takes 80 to 125 ns for each packet of 1,472 bytes and 40 for one that
//     is not joined; it was 135 and 84. What helped: shapes parsed where they
//     stay and joins yielded by pointer, since a struct written by small fields
//     and then copied in large words waits for its own stores; short fields
//     compared as integers instead of by calls; the pseudo header summed once
//     for each join.
//   - Bounds checks (-d=ssa/check_bce): Sum has none. Elsewhere one is left for each
//     header, where its first field is touched at an offset known only at run
//     time. They are not visible in a profile.
package offload
