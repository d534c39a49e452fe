// Package hostgw joins hosts of one segment by plain routes: every host is the
// gateway to its own subnet. There is no tunnel and no device.
//
//	10.5.54.2 --docker0--> [host 198.18.0.1] --eth0--+
//	                                                 |  one layer-2 segment
//	10.5.33.7 <--docker0-- [host 198.18.0.2] <-eth0--+
//
//	10.5.33.0/24 via 198.18.0.2 dev eth0
//
// # Contract
//
//   - A peer that is not on the uplink's segment gets no route and an error that
//     names it: a gateway further away would need tunnels of its own.
//   - A peer that moves to another address has its route replaced in one step.
//   - What flannel's host-gw left is taken over; see [backend.Router].
package hostgw
