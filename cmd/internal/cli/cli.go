package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"
)

// ErrHelp is returned when help was asked for and printed.
var ErrHelp = pflag.ErrHelp

// UsageError is a mistake of who typed the command; its exit code is 2.
type UsageError struct{ Err error }

// Error returns the cause's text.
func (e *UsageError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *UsageError) Unwrap() error { return e.Err }

// Usagef makes a UsageError.
func Usagef(format string, args ...any) error {
	return &UsageError{fmt.Errorf(format, args...)}
}

// Env looks up an environment variable, as os.LookupEnv does.
type Env func(name string) (string, bool)

// EnvOf makes an Env of os.Environ's form, "NAME=value".
func EnvOf(environ []string) Env {
	vars := make(map[string]string, len(environ))
	for _, kv := range environ {
		if name, value, ok := strings.Cut(kv, "="); ok {
			vars[name] = value
		}
	}
	return func(name string) (string, bool) {
		v, ok := vars[name]
		return v, ok
	}
}

// NewFlagSet makes a flag set for Parse. Usage goes to out.
func NewFlagSet(name, usage string, out io.Writer) *pflag.FlagSet {
	fs := pflag.NewFlagSet(name, pflag.ContinueOnError)
	fs.SortFlags = false
	fs.SetOutput(out)
	fs.Usage = func() {
		fmt.Fprintf(out, "%s\n\nFlags (each also as environment variable FLANNELD_<FLAG>, a flag wins):\n%s", usage, fs.FlagUsagesWrapped(100))
	}
	return fs
}

// Parse reads args and then, for every flag not given, the environment. It
// returns ErrHelp, a UsageError with every bad variable in it, or nil.
func Parse(fs *pflag.FlagSet, args []string, env Env) error {
	if err := fs.Parse(normalize(fs, args)); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return ErrHelp
		}
		return Usagef("%w (see --help)", withoutValue(err))
	}
	var errs []error
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Changed || f.Name == "help" {
			return
		}
		for _, name := range envNames(f.Name) {
			value, ok := env(name)
			if !ok || value == "" {
				continue
			}
			if err := f.Value.Set(value); err != nil {
				errs = append(errs, fmt.Errorf("%s: %q: %w", name, value, err))
			}
			f.Changed = true
			return
		}
		if path := credential(f, env); path != "" {
			if err := f.Value.Set(path); err != nil {
				errs = append(errs, fmt.Errorf("%s: %q: %w", credentialsDirectory, path, err))
			}
		}
	})
	if len(errs) > 0 {
		return Usagef("environment: %w", errors.Join(errs...))
	}
	return nil
}

// withoutValue names an unknown flag that was given with one dash. pflag would
// quote it with its value, and -etcd-pasword=VALUE is a slip of the finger.
func withoutValue(err error) error {
	unknown := new(pflag.NotExistError)
	if errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() != "" {
		name, _, _ := strings.Cut(unknown.GetSpecifiedShortnames(), "=")
		return fmt.Errorf("unknown flag: -%s", name)
	}
	return err
}

// credentialsDirectory is where systemd puts a service's credentials.
const credentialsDirectory = "CREDENTIALS_DIRECTORY"

// credentialAnnotation holds a flag's credential: see markCredential.
const credentialAnnotation = "credential"

// markCredential makes a credential of systemd's the default of a flag that names
// a file. A flag set so does not count as given.
func markCredential(fs *pflag.FlagSet, flag, name string) {
	fs.Lookup(flag).Annotations = map[string][]string{credentialAnnotation: {name}}
}

// credential is the file of f's credential, if systemd gave us one.
func credential(f *pflag.Flag, env Env) string {
	dir, ok := env(credentialsDirectory)
	if names := f.Annotations[credentialAnnotation]; ok && dir != "" && len(names) > 0 {
		path := filepath.Join(dir, names[0])
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			return path
		}
	}
	return ""
}

// envNames returns the variables that set a flag: flannel's own, then the name
// that the packages of Fedora and CentOS use.
func envNames(flag string) []string {
	suffix := strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
	return []string{"FLANNELD_" + suffix, "FLANNEL_" + suffix}
}

// normalize rewrites -name and -name=value to --name where name is a flag of
// fs, so that the single dash of Go's flag package keeps working. It stops at
// "--". Shorthands have one letter and are left alone, as is -v without a
// value behind it.
func normalize(fs *pflag.FlagSet, args []string) []string {
	out := make([]string, 0, len(args))
	for i, arg := range args {
		if arg == "--" {
			return append(out, args[i:]...)
		}
		name, isSingle := strings.CutPrefix(arg, "-")
		name, _, _ = strings.Cut(name, "=")
		if isSingle && name != "" && name[0] != '-' && (fs.Lookup(name) != nil || name == "help") {
			arg = "-" + arg
		}
		out = append(out, arg)
	}
	return out
}
