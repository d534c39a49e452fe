// Package bench measures what it costs to join two hosts, one way beside the
// others on one lab in one run: machines differ and change by the minute, ratios
// of one round hardly do.
//
//	        one switch, one etcd
//	  ___________|_______________________
//	 |        |        |        |        |        a pair of hosts per Variant,
//	h1 h2    h3 h4    h5 h6    h7 h8    ...       all up from start to end
//	veth     vxlan    host-gw   udp
//	 |  |     |  |
//	c1 c2    c3 c4                                containers with traffic's agents
//
// # Contract
//
//   - A round measures each variant once, in turn; a Sample is what one variant
//     did in one round. A figure is the median of its rounds, a ratio the median
//     of the rounds' ratios to [Reference].
//   - Every variant has the same containers, the same bridges and the same traffic.
//     Only what joins the hosts differs.
//   - What cannot be measured fails the run. A figure that a variant has not (the
//     daemon's memory where there is no daemon) is absent, never zero.
//
// The forwarder is a floor, not a competitor: the least that a program can do to
// carry packets through a TUN device one at a time.
package bench
