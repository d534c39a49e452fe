// Package offload is the arithmetic of segmentation offloads: it cuts the large
// packets that a TUN device hands over into those that go on the wire, and joins
// those that come from the wire into large ones for the device. It sees bytes
// only, and makes no system call.
//
//	device --read--> [vnet header | packet] --Split--> N wire packets --> UDP_SEGMENT
//
//	         +----------------+--------------------------------------+
//	 TCP,    | IP | TCP       | payload, up to 64 KiB                |
//	 or UDP  +----------------+--------------------------------------+
//	                             |          |          |
//	         +-------+-------+   v   +------v+------+  v
//	 Split   | head 0| Size bytes    | head 1| Size |  ...   heads in scratch space,
//	         +-------+---------------+-------+------+        payload where it was
//
//	device <--write-- [vnet header | first packet | payload | payload ...] <--Merge-- UDP_GRO
//
// # Contract
//
//   - Split: every byte of the payload stands in exactly one wire packet, in order;
//     each has lengths, IPv4 identification, sequence number, flags and sums as if
//     its sender had sent it alone. No wire packet is longer than head and segment
//     size. Payload is not copied.
//   - Merger: what it emits, cut again, is what was added: every byte once, the
//     packets of one flow in their order. Packets that cannot be joined (another
//     protocol, fragments, IP options, odd flags, a wrong sum, a gap) are emitted
//     as they came, and after everything of their flow that came before them. A
//     packet whose sum is wrong is never joined, so nothing makes it right.
//   - Neither allocates, blocks or keeps a reference after Flush.
//
// # Words
//
// A large packet is one that stands for several of the wire. A head is the IP and
// transport header of one packet. The segment size is the payload of each but the
// last (the MSS of TCP). The vnet header is struct virtio_net_hdr (virtio 1.2,
// section 5.1.6; linux/virtio_net.h), which the TUN driver speaks in the byte order
// of the host. A partial sum is one of the pseudo header alone, which whoever sends
// the packet completes.
package offload
