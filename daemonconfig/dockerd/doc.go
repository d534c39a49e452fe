// Package dockerd finds out what Docker is on this host, and asks it for a
// network: a small client of the Engine API on its unix socket, and what can be
// told of dockerd while it is down.
//
//	/run/docker.sock -- Client --> Engine (version, info) --\
//	dockerd --version ------------> Version ----------------+--> Capabilities
//	unit, /proc/PID/cmdline ------> Given flags ------------> Conflicts with keys
//	daemon.json, not yet in place -> Validate (dockerd --validate)
//	subnet, MTU -------------------> Client.Keep ------------> a bridge network
//
// # What a version knows
//
//	since  what                                             field
//	20.10  the oldest that is looked after
//	23.0   dockerd --validate; a byte order mark in the file  Validate
//	24.0   default-network-opts                               NetworkOpts
//	28.0   drops what comes to a container from elsewhere     Drops
//	       than its bridge: raw PREROUTING, and DOCKER
//	28.2   a network may trust interfaces                     TrustedInterfaces
//	29.0   bridge-accept-fwmark                               AcceptMark
//	29.0   firewall-backend nftables, without DOCKER-USER     Firewall
//
// allow-direct-routing (28.2) is not used. It takes away the drop in raw
// PREROUTING for every container and from everywhere, leaves the one in DOCKER,
// and 28.0 and 28.1 do not have it. An accept in raw PREROUTING ahead of the
// drop, as package firewall writes it, does all that is needed in all three, and
// is as narrow as the overlay.
//
// With nftables no accept of ours in a table of our own undoes Docker's drop.
// There the way is a mark: set before filter priority on exactly the packets
// that we would accept, and named by bridge-accept-fwmark. It undoes the drop in
// filter. The one in raw, which is there as well, it does not: a network says by
// its trusted interfaces that they are let through, and docker0, which cannot be
// told of any, needs allow-direct-routing. That is for the administrator to decide.
// No dockerd 29 was at hand: what its rules are was read in its source
// (drivers/bridge/internal/nftabler), of ours the rules and the file are tested,
// and not the traffic.
//
// # Contract
//
//   - The package changes nothing but the one network of [Client.Keep]. It
//     starts no process but dockerd with --version or --validate.
//   - No Docker is an answer: [ErrDown].
//   - A network belongs to us if it has our label. No other is ever removed,
//     nor is one that a container belongs to, running or not.
//   - What the engine says is read as far as it is needed here, in the version
//     of its API that both sides know.
//   - The package imports the standard library only. Who knows the service
//     manager fills in a [Unit].
package dockerd
