package parts

import (
	"bufio"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"github.com/flanneld-go/flanneld-go/cmd/flannel-lab/machine"
)

// Benchmark is what one found.
type Benchmark struct {
	// Package is its last element's path, Name what follows "Benchmark".
	Package string `json:"package"`
	Name    string `json:"name"`
	// Metrics are by their units.
	Metrics map[string]float64 `json:"metrics"`
}

// Note is a line that a test logged.
type Note struct {
	Test string `json:"test"`
	Text string `json:"text"`
}

// Report is what a run of `go test` found.
type Report struct {
	Machine    machine.Description `json:"machine"`
	Benchmarks []Benchmark         `json:"benchmarks"`
	Notes      []Note              `json:"notes"`
}

var (
	// A name ends with the number of processors.
	benchmarkLine = regexp.MustCompile(`^Benchmark(\S+?)(?:-\d+)?\s+\d+\s+(.*\S)\s*$`)
	testLine      = regexp.MustCompile(`^=== (?:RUN|CONT|NAME)\s+(\S+)`)
	noteLine      = regexp.MustCompile(`^\s+[a-z0-9_]+_test\.go:\d+: (.*\S)\s*$`)
)

// Read reads what `go test` prints, in which names have underscores for spaces. Echo is
// told every line.
func Read(text io.Reader, echo io.Writer) (Report, error) {
	var r Report
	where, test := "", ""
	lines := bufio.NewScanner(text)
	for lines.Scan() {
		line := lines.Text()
		fmt.Fprintln(echo, line)
		if p, ok := strings.CutPrefix(line, "pkg: "); ok {
			where = p[strings.LastIndexByte(p, '/')+1:]
		} else if m := benchmarkLine.FindStringSubmatch(line); m != nil {
			b := Benchmark{Package: where, Name: strings.ReplaceAll(m[1], "_", " "), Metrics: map[string]float64{}}
			fields := strings.Fields(m[2])
			for i := 0; i+1 < len(fields); i += 2 {
				if v, err := strconv.ParseFloat(fields[i], 64); err == nil {
					b.Metrics[fields[i+1]] = v
				}
			}
			r.Benchmarks = append(r.Benchmarks, b)
		} else if m := testLine.FindStringSubmatch(line); m != nil {
			test = strings.ReplaceAll(m[1], "_", " ")
		} else if m := noteLine.FindStringSubmatch(line); m != nil && test != "" {
			r.Notes = append(r.Notes, Note{test, m[1]})
		}
	}
	if err := lines.Err(); err != nil {
		return r, fmt.Errorf("read what go test prints: %w", err)
	}
	return r, nil
}
