package offload

import "golang.org/x/sys/cpu"

// wideFrom is the length from which AVX2 is faster; below, setting it up and
// adding the lanes up costs what it saves.
const wideFrom = 256

// addWide adds as much of b as is worth the wide registers, and returns the
// rest.
func (s Sum) addWide(b []byte) (Sum, []byte) {
	if len(b) < wideFrom || !cpu.X86.HasAVX2 {
		return s, b
	}
	n := len(b) &^ 31
	return s.add64(sumAVX2(&b[0], n)), b[n:]
}

// sumAVX2 adds n bytes from p on as little-endian words of 32 bits. N must be
// a multiple of 32, not zero, and below 32 GiB.
//
//go:noescape
func sumAVX2(p *byte, n int) uint64
