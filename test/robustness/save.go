package robustness

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// recordName is the file of a record: JSON, zipped, since most of it is the same
// again and again. zcat shows it.
const recordName = "record.json.gz"

// saved is a record on disk. What a host looks like is written once for all the
// samples that are alike.
type saved struct {
	Record
	// Samples hides the record's own.
	Samples []savedSample
	Looks   []Sample
}

// savedSample is one sample: when it was taken, and which of Looks it shows.
type savedSample struct {
	Look        int
	From, Until time.Duration
}

// Save writes the record into a folder, which it makes.
func (r *Record) Save(dir string) error {
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = writePacked(dir, r.pack())
	}
	if err != nil {
		return fmt.Errorf("save record: %w", err)
	}
	return nil
}

func writePacked(dir string, s saved) (err error) {
	f, err := os.Create(filepath.Join(dir, recordName))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	zip := gzip.NewWriter(f)
	if err := json.NewEncoder(zip).Encode(s); err != nil {
		return err
	}
	return zip.Close()
}

// pack replaces samples by their looks.
func (r *Record) pack() saved {
	s := saved{Record: *r}
	s.Record.Samples = nil
	last := map[string]int{} // of Looks, by host
	for _, sample := range r.Samples {
		look := sample
		look.From, look.Until = 0, 0
		n, seen := last[sample.Host]
		if !seen || !s.Looks[n].equal(look) {
			n = len(s.Looks)
			s.Looks = append(s.Looks, look)
			last[sample.Host] = n
		}
		s.Samples = append(s.Samples, savedSample{n, sample.From, sample.Until})
	}
	return s
}

// errLook: a file that Save did not write.
var errLook = errors.New("a sample shows a look that is not there")

// LoadRecord reads what Save wrote into a folder.
func LoadRecord(dir string) (_ *Record, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("load record: %w", err)
		}
	}()
	f, err := os.Open(filepath.Join(dir, recordName))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	zip, err := gzip.NewReader(bufio.NewReader(f))
	if err != nil {
		return nil, err
	}
	var s saved
	if err := json.NewDecoder(zip).Decode(&s); err != nil {
		return nil, err
	}
	// The checksum stands at the end.
	if _, err := io.Copy(io.Discard, zip); err != nil {
		return nil, err
	}
	for _, sample := range s.Samples {
		if sample.Look < 0 || sample.Look >= len(s.Looks) {
			return nil, errLook
		}
		look := s.Looks[sample.Look]
		look.From, look.Until = sample.From, sample.Until
		s.Record.Samples = append(s.Record.Samples, look)
	}
	return &s.Record, zip.Close()
}
