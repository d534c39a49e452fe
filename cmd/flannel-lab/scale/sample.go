package scale

import (
	"bytes"
	"debug/elf"
	"debug/gosym"
	"fmt"
	"iter"
	"strconv"
	"strings"
)

// sample is what a core was found to do.
type sample struct {
	program string
	pid     int
	// stack are addresses, the innermost first.
	stack []uint64
}

// ofFirewall reports whether the sample is of a program that writes rules for the
// daemon. Nobody else runs them while a start is sampled.
func (s sample) ofFirewall() bool {
	for _, name := range []string{"iptables", "ip6tables", "xtables", "nft"} {
		if strings.HasPrefix(s.program, name) {
			return true
		}
	}
	return false
}

// ofKernel reports whether an address is the kernel's: those are the upper half on every
// architecture with 64 bits.
func ofKernel(address uint64) bool { return address>>63 == 1 }

// readSamples reads what `perf script --fields comm,pid,ip` prints: a line with program
// and process, one with each address of the stack, and an empty one.
func readSamples(text []byte) iter.Seq[sample] {
	return func(yield func(sample) bool) {
		var s sample
		for line := range bytes.Lines(text) {
			fields := strings.Fields(string(line))
			switch {
			case len(fields) == 0:
				if s.pid != 0 && !yield(s) {
					return
				}
				s = sample{}
			case s.pid == 0 && len(fields) > 1:
				// The program's name may have spaces.
				last := len(fields) - 1
				if pid, err := strconv.Atoi(fields[last]); err == nil {
					s.program, s.pid = strings.Join(fields[:last], " "), pid
				}
			default:
				if address, err := strconv.ParseUint(fields[0], 16, 64); err == nil {
					s.stack = append(s.stack, address)
				}
			}
		}
		if s.pid != 0 {
			yield(s)
		}
	}
}

// symbols name what stands at an address of a Go program, which a stripped one can do,
// too: its own stack traces need it.
type symbols struct {
	table *gosym.Table
	// offset is from what perf says to an address: of a stripped program it says where
	// in the file a place is.
	offset uint64
}

func readSymbols(path string) (*symbols, error) {
	file, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read symbols: %w", err)
	}
	defer file.Close() //nolint:errcheck // it was read
	text, lines := file.Section(".text"), file.Section(".gopclntab")
	if text == nil || lines == nil {
		return nil, fmt.Errorf("read symbols: %s is no Go program", path)
	}
	data, err := lines.Data()
	if err != nil {
		return nil, fmt.Errorf("read symbols: %w", err)
	}
	table, err := gosym.NewTable(nil, gosym.NewLineTable(data, text.Addr))
	if err != nil {
		return nil, fmt.Errorf("read symbols: %w", err)
	}
	s := &symbols{table: table}
	if file.Section(".symtab") == nil {
		s.offset = text.Addr - text.Offset
	}
	return s, nil
}

// frame is a place in a program.
type frame struct{ function, file string }

// frames are those of a stack that are the program's, the innermost first.
func (s *symbols) frames(stack []uint64) []frame {
	var all []frame
	for i, address := range stack {
		if ofKernel(address) {
			continue
		}
		address += s.offset
		if i > 0 {
			address-- // where it returns to may be another line
		}
		if file, _, f := s.table.PCToLine(address); f != nil {
			all = append(all, frame{f.Name, file})
		}
	}
	return all
}
