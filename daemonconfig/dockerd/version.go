package dockerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// Version is one of dockerd. The zero Version is unknown.
type Version struct{ Major, Minor, Patch int }

// errVersion: a text is no version, such as that of a build without one.
var errVersion = errors.New("want a version such as 28.5.2")

// ParseVersion reads 20.10.24+dfsg1, 29.0.0-rc.1 or 17.03.0-ce: what stands
// behind the numbers is left out, so that a candidate counts as its release.
func ParseVersion(text string) (Version, error) {
	numbers, _, _ := strings.Cut(strings.TrimPrefix(text, "v"), "-")
	numbers, _, _ = strings.Cut(numbers, "+")
	parts := strings.Split(numbers, ".")
	if len(parts) < 2 || len(parts) > 3 {
		return Version{}, fmt.Errorf("docker version %q: %w", text, errVersion)
	}
	var n [3]int
	for i, part := range parts {
		v, err := strconv.ParseUint(part, 10, 16)
		if err != nil {
			return Version{}, fmt.Errorf("docker version %q: %w", text, errVersion)
		}
		n[i] = int(v)
	}
	return Version{n[0], n[1], n[2]}, nil
}

// String reads as 28.5.2.
func (v Version) String() string {
	if v == (Version{}) {
		return "unknown"
	}
	return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch)
}

// AtLeast reports whether v is major.minor or later. An unknown version is
// not.
func (v Version) AtLeast(major, minor int) bool {
	return cmp.Or(cmp.Compare(v.Major, major), cmp.Compare(v.Minor, minor)) >= 0
}

// execTimeout bounds a dockerd that prints something and exits.
const execTimeout = 10 * time.Second

// BinaryVersion asks the program itself, which needs no daemon that runs.
func BinaryVersion(ctx context.Context, binary string) (Version, error) {
	ctx, cancel := context.WithTimeout(ctx, execTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return Version{}, fmt.Errorf("%s --version: %w", binary, err)
	}
	return parseBanner(string(out))
}

// parseBanner reads "Docker version 26.1.5+dfsg1, build 411e817".
func parseBanner(line string) (Version, error) {
	rest, ok := strings.CutPrefix(line, "Docker version ")
	if !ok {
		return Version{}, fmt.Errorf("dockerd --version says %.80q: %w", line, errVersion)
	}
	text, _, _ := strings.Cut(rest, ",")
	return ParseVersion(strings.TrimSpace(text))
}
