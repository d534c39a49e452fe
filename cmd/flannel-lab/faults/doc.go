// Package faults breaks hosts under traffic and measures for how long it stands
// still: one fault after the other, on a network of each backend.
//
//	        one switch, one etcd
//	  ___________|_________________________________
//	 |      |      |      |      |      |           three hosts per backend,
//	h1     h2     h3     h4     h5     h6  ...      all up from start to end
//	vxlan  vxlan  vxlan  host-gw ...
//	 |      |
//	c1 <-> c2   a ping every 5 ms, both ways
//
// The first host of a network is the one that is broken, the second its peer, and
// the third is there so that one path is not all paths. Every host drops what no
// rule accepts.
//
// # Contract
//
//   - A fault is what an operator, another program or the machine does, by their
//     own tools where there are any. It says itself since when traffic is to flow
//     again; what is lost before that is its own doing.
//   - A [Sample] is what one fault did in one round: packets lost, the longest gap
//     without an answer, and how long it was until the host was as before. The
//     table shows the worst of all rounds.
//   - What lasts is done in the last round alone; etcd goes down for all networks at
//     once.
//   - What something is missing for, such as a previous build or systemd-networkd, is
//     in the table as not run, with the reason. flannel itself is never there: what
//     stands in for it does on the host what flannel's code does at its start.
//   - A sample during which the machine itself dropped packets is taken again.
//   - A fault that is never healed is a result. The daemon is then started anew,
//     and what even that does not heal fails the run.
//   - What a backend cannot have is absent, with the reason.
package faults
