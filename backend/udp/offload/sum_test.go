package offload

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// adders are the ways to add, which are one on most architectures.
func adders() map[string]func(Sum, []byte) Sum {
	return map[string]func(Sum, []byte) Sum{"Add": Sum.Add, "addNarrow": Sum.addNarrow}
}

func TestSum(t *testing.T) {
	tests := []struct {
		name string
		b    []byte
		want uint16
	}{
		{"nothing", nil, 0},
		{"zeros", make([]byte, 100), 0},
		{"RFC 1071, 3", []byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}, 0xddf2},
		{"odd", []byte{0x12}, 0x1200},
		{"minus zero", []byte{0xff, 0xff}, 0xffff},
		{"carry around", []byte{0xff, 0xff, 0x00, 0x01}, 0x0001},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Sum(0).Add(tt.b).Fold(); got != tt.want {
				t.Errorf("Fold() = %#04x, want %#04x", got, tt.want)
			}
		})
	}
}

// TestSumOfEveryLength also starts at every alignment, and with every byte set,
// which has the most carries.
func TestSumOfEveryLength(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 1024)
	for _, full := range []bool{false, true} {
		for i := range b {
			b[i] = byte(random.Uint32())
			if full {
				b[i] = 0xff
			}
		}
		for start := range 17 {
			for end := start; end <= len(b); end++ {
				want := slowSum(b[start:end])
				for name, add := range adders() {
					if got := add(0, b[start:end]).Fold(); got != want {
						t.Fatalf("%s of bytes %d to %d, all set %v: %#04x, want %#04x", name, start, end, full, got, want)
					}
				}
			}
		}
	}
	large := make([]byte, 65535)
	for i := range large {
		large[i] = 0xff
	}
	want := slowSum([]byte{1, 0}, large)
	for name, add := range adders() {
		if got := add(1, large).Fold(); got != want {
			t.Errorf("%s of 65535 bytes: %#04x, want %#04x", name, got, want)
		}
	}
}

func TestSumChains(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s Sum
		var pieces [][]byte
		for range rapid.IntRange(0, 4).Draw(t, "pieces") {
			b := rapid.SliceOfN(rapid.Byte(), 0, 150).Draw(t, "piece")
			b = b[:len(b)&^1]
			s, pieces = s.Add(b), append(pieces, b)
		}
		v, w := rapid.Uint16().Draw(t, "v"), rapid.Uint32().Draw(t, "w")
		s = s.Add16(v).Add32(w)
		pieces = append(pieces, []byte{byte(v >> 8), byte(v), byte(w >> 24), byte(w >> 16), byte(w >> 8), byte(w)})
		last := rapid.SliceOfN(rapid.Byte(), 0, 150).Draw(t, "last")
		if got, want := s.Add(last).Fold(), slowSum(append(pieces, last)...); got != want {
			t.Errorf("Fold() = %#04x, want %#04x", got, want)
		}
	})
}

func FuzzSum(f *testing.F) {
	f.Add([]byte{1, 2, 3}, 0)
	f.Fuzz(func(t *testing.T, b []byte, at int) {
		want := slowSum(b)
		if got := Sum(0).Add(b).Fold(); got != want {
			t.Fatalf("Fold() = %#04x, want %#04x", got, want)
		}
		if at < 0 || at > len(b) || at%2 != 0 {
			return
		}
		if got := Sum(0).Add(b[:at]).Add(b[at:]).Fold(); got != want {
			t.Fatalf("Fold() of two pieces = %#04x, want %#04x", got, want)
		}
	})
}

func BenchmarkSum(b *testing.B) {
	for name, add := range adders() {
		for _, size := range []int{20, 64, 128, 256, 536, 1200, 1420, 8900, 65536} {
			b.Run(fmt.Sprintf("%s/%d", name, size), func(b *testing.B) {
				data := make([]byte, size)
				for i := range data {
					data[i] = byte(i * 7)
				}
				b.SetBytes(int64(size))
				var s Sum
				for b.Loop() {
					s = add(s, data)
				}
				if s == 0 {
					b.Fatal("sum of bytes is zero")
				}
			})
		}
	}
}
