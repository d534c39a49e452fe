package scale

import "strings"

// part is what a program works for.
type part uint8

const (
	partEtcd part = iota
	partDecode
	partView
	partDiff
	partNetlink
	partFirewall
	partPrograms
	partFiles
	partDaemon
	partCollector
	partRuntime
)

// String is what a table calls it.
func (p part) String() string {
	switch p {
	case partEtcd:
		return "etcd: connection, load, watch"
	case partDecode:
		return "leases decoded"
	case partView:
		return "view of the leases"
	case partDiff:
		return "what should be, and the difference to what is"
	case partNetlink:
		return "netlink: entries listed and written"
	case partFirewall:
		return "firewall: rules compared and written"
	case partPrograms:
		return "iptables' programs"
	case partFiles:
		return "cache and files"
	case partDaemon:
		return "the rest of the daemon"
	case partCollector:
		return "Go's collector"
	case partRuntime:
	}
	return "start of the process, Go's scheduler"
}

// Parts lists them, in the order of tables where nothing else orders them.
func Parts() []part {
	return []part{
		partEtcd, partDecode, partView, partDiff, partNetlink, partFirewall, partPrograms, partFiles, partDaemon, partCollector, partRuntime,
	}
}

// own is what our packages' names begin with.
const own = "github.com/flanneld-go/flanneld-go/"

// rules say to which part a place belongs: the first whose words its file's path contains.
func rules() []struct {
	in   part
	file string
} {
	return []struct {
		in   part
		file string
	}{
		{partEtcd, own + "subnet/etcdstore/"},
		{partEtcd, "google.golang.org/grpc@"},
		{partEtcd, "go.etcd.io/etcd/"},
		{partDecode, own + "subnet/internal/layout/"},
		{partDecode, own + "subnet/codec.go"},
		{partDecode, own + "subnet/scan.go"},
		{partDecode, own + "subnet/number.go"},
		{partDecode, own + "subnet/object.go"},
		{partView, own + "subnet/"},
		{partNetlink, own + "backend/kernel/"},
		{partNetlink, "github.com/vishvananda/netlink@"},
		{partFirewall, own + "backend/firewall/"},
		{partFirewall, "github.com/coreos/go-iptables@"},
		{partFirewall, "github.com/google/nftables@"},
		{partDiff, own + "backend/"},
		{partDiff, own + "cmd/flanneld-go/desired.go"},
		{partFiles, own + "daemonconfig/"},
		{partFiles, own + "cmd/internal/statedir/"},
		{partFiles, own + "cmd/flanneld-go/recall.go"},
		{partFiles, "github.com/google/renameio/"},
		{partDaemon, own},
	}
}

// partOf is that of the innermost place which belongs to any: what a part calls works for
// it. The collector works for all of them.
func partOf(stack []frame) part {
	for _, f := range stack {
		switch f.function {
		case "runtime.gcBgMarkWorker", "runtime.gcAssistAlloc", "runtime.bgsweep", "runtime.bgscavenge", "runtime.deductSweepCredit":
			return partCollector
		}
	}
	for _, f := range stack {
		for _, r := range rules() {
			if strings.Contains(f.file, r.file) {
				return r.in
			}
		}
	}
	return partRuntime
}
