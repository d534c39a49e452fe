package lab

import (
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// keptFor is how long the folder of a lab that was killed, or that failed, is there for a
// look.
const keptFor = 12 * time.Hour

// unnamed are the names that labs get which ask for none: nobody will ask for them again.
var unnamed = regexp.MustCompile(`^lab[0-9]+-[0-9a-f]+$`)

// sweep removes the folders below dir that labs without a name left before a time. One
// that is running has its folder locked, and one whose namespaces are still there is left
// to whoever looks into them. What cannot be removed is in nobody's way.
func sweep(dir string, before time.Time) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.IsDir() || !unnamed.MatchString(e.Name()) || info.ModTime().After(before) {
			continue
		}
		c := &claim{lab: e.Name(), dir: filepath.Join(dir, e.Name())}
		if c.acquire() != nil {
			continue
		}
		left, err := leftNamespaces(c.lab)
		_ = c.release(err != nil || len(left) > 0)
	}
}
