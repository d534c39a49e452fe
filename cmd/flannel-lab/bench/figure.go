package bench

import "fmt"

// Figure is one thing that is measured of every variant.
type Figure struct {
	// Key names it in JSON.
	Key   string
	Title string
	Unit  string
}

// The keys of figures that are spoken of one by one.
const (
	keyStream1  = "tcp_1_stream"
	keyStream4  = "tcp_4_streams"
	keyTwoWay   = "tcp_both_ways"
	keyMachine  = "cpu_machine"
	keyDaemons  = "cpu_daemons"
	keyResident = "daemon_memory"
	keyPing     = "ping_median"
	keyPing99   = "ping_p99"
	keyConnect  = "tcp_connections"
)

// maxLoss is how much a rate of datagrams may lose to count as carried.
const maxLoss = 0.01

// sizes are those of datagrams, in bytes of payload.
func sizes() []int { return []int{64, 512, 1200} }

func keyCarried(size int) string { return fmt.Sprintf("udp_%d_carried", size) }
func keyBlast(size int) string   { return fmt.Sprintf("udp_%d_blast", size) }

// Figures lists what is measured, in the order of tables.
func Figures() []Figure {
	all := []Figure{
		{keyStream1, "TCP, one stream", "Gb/s"},
		{keyStream4, "TCP, four streams", "Gb/s"},
		{keyTwoWay, "TCP, one stream each way, both added", "Gb/s"},
	}
	for _, size := range sizes() {
		all = append(all,
			Figure{keyCarried(size), fmt.Sprintf("datagrams of %d bytes, at most 1 %% lost", size), "1000/s"},
			Figure{keyBlast(size), fmt.Sprintf("datagrams of %d bytes, what arrives of full blast", size), "1000/s"})
	}
	return append(all,
		Figure{keyPing, "ping every ms, median", "µs"},
		Figure{keyPing99, "ping every ms, 99 of 100", "µs"},
		Figure{keyConnect, "TCP connections, one after the other", "1/s"},
		Figure{keyMachine, "CPU of the machine, one stream", "s/GB"},
		Figure{keyDaemons, "CPU of both daemons, one stream", "s/GB"},
		Figure{keyResident, "memory of a daemon, at most", "MB"},
	)
}

// figureOf finds a figure by its key.
func figureOf(key string) Figure {
	for _, f := range Figures() {
		if f.Key == key {
			return f
		}
	}
	return Figure{Key: key, Title: key}
}
