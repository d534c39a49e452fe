package udp

import (
	"bytes"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// dataPathMost is what the data path may have in memory with each page of it in use.
// What the rest of a daemon needs, some 25 MB, makes it less than 64 MB.
const dataPathMost = 36 << 20

// TestMemoryOfQueues adds up what loops and sockets of any number of queues have.
func TestMemoryOfQueues(t *testing.T) {
	for queues := 1; queues <= queuesMost; queues++ {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		var keep []any
		for range queues {
			p := &path{arrivals: arrivalsOf(queues)}
			r := newReceiver(p)
			r.parter = new(parter)
			keep = append(keep, newSender(p), r, newArrivals(p.arrivals))
			for range 1 + sourcesMost {
				keep = append(keep, new(socket))
			}
		}
		runtime.ReadMemStats(&after)
		all := after.TotalAlloc - before.TotalAlloc
		if all > dataPathMost {
			t.Errorf("%d queues have %d bytes", queues, all)
		}
		if n := arrivalsOf(queues); n < 16 || n > arrivalsMost {
			t.Errorf("%d queues read %d arrivals at a time", queues, n)
		}
		t.Logf("%d queues: %.1f MB", queues, float64(all)/1e6)
		runtime.KeepAlive(keep)
	}
}

// resident is how much memory this process has in use, in bytes: statm(5).
func resident(b *testing.B) float64 {
	b.Helper()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	if err != nil {
		b.Fatal(err)
	}
	return float64(pages * os.Getpagesize())
}

// BenchmarkResident is what the data paths of two hosts add to a process's memory while
// 48 TCP streams keep 16 queues of each busy. An iteration is 256 KiB by each stream.
func BenchmarkResident(b *testing.B) {
	runtime.GC()
	before := resident(b)
	m := twoMachines(b)
	m[0].options, m[1].options = `{"Queues":16}`, `{"Queues":16}`
	join(b, m)
	var (
		clients []net.Conn
		wait    sync.WaitGroup
	)
	for range 48 {
		client, server := stream(b, m[0], m[1], subnet.IPv4)
		clients = append(clients, client)
		wait.Go(func() {
			defer server.Close()
			_, _ = io.Copy(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{server})
		})
	}
	chunk := bytes.Repeat([]byte{1}, 256<<10)
	b.SetBytes(int64(len(clients) * len(chunk)))
	most := 0.0
	for b.Loop() {
		var writes sync.WaitGroup
		for _, c := range clients {
			writes.Go(func() { _, _ = c.Write(chunk) })
		}
		writes.Wait()
		most = max(most, resident(b))
	}
	b.ReportMetric((most-before)/2e6, "MB/host")
	busy := 0
	for i := range m[1].traffic {
		if m[1].traffic[i].in.snapshot().Packets[Forwarded] > 0 {
			busy++
		}
	}
	b.ReportMetric(float64(busy), "queues")
	for _, c := range clients {
		c.Close()
	}
	wait.Wait()
}
