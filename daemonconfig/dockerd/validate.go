package dockerd

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// RefusedError: dockerd would not start with a file.
type RefusedError struct {
	// Said is its own reason.
	Said string
}

// Error is dockerd's reason.
func (e *RefusedError) Error() string { return "dockerd refuses it: " + e.Said }

// Validate asks the program whether dockerd would start with a file, which it
// does not read then, and which may stand anywhere: [*RefusedError]. Any other
// error says that it could not be asked. For [Capabilities] with Validate only:
// an older dockerd knows no such flag.
func Validate(ctx context.Context, binary, path string) error {
	ctx, cancel := context.WithTimeout(ctx, execTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, "--validate", "--config-file", path).CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.Exited():
		return &RefusedError{reason(string(out), path)}
	}
	return fmt.Errorf("%s --validate: %w", binary, err)
}

// reason takes what nobody needs to read from dockerd's last line: the name of
// the file, which is a temporary one.
func reason(out, path string) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	last := lines[len(lines)-1]
	if _, rest, ok := strings.Cut(last, path+": "); ok {
		last = rest
	}
	if last == "" {
		return "without a reason"
	}
	return strings.TrimPrefix(last, "merged configuration validation from file and command line flags failed: ")
}
