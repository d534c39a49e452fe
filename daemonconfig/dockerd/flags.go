package dockerd

import (
	"cmp"
	"os"
	"slices"
	"strings"
)

// Flag is one of dockerd's command line, under its long name.
type Flag struct{ Name, Value string }

// shorthands are dockerd's that matter here.
func longName(short byte) string {
	return map[byte]string{'b': "bridge", 'H': "host", 'G': "group", 'D': "debug", 'l': "log-level", 'v': "version", 's': "storage-driver", 'p': "pidfile"}[short]
}

// ParseFlags reads a command line, the program's name first. dockerd has no
// arguments but flags, so a word without a dash is the value of what stands
// before it.
func ParseFlags(argv []string) []Flag {
	var flags []Flag
	for i := 1; i < len(argv); i++ {
		word := argv[i]
		if word == "--" {
			break
		}
		if !strings.HasPrefix(word, "-") || word == "-" {
			if n := len(flags); n > 0 && flags[n-1].Value == "" {
				flags[n-1].Value = word
			}
			continue
		}
		name, value, _ := strings.Cut(strings.TrimPrefix(word, "--"), "=")
		if !strings.HasPrefix(word, "--") {
			name = longName(word[1])
			value = strings.TrimPrefix(word[2:], "=")
		}
		flags = append(flags, Flag{name, value})
	}
	return flags
}

// Given is a flag with the place that it comes from.
type Given struct {
	Flag
	// Where is a file, or says what else it is.
	Where string
}

// String reads as "--bip=10.0.0.1/24 in /etc/default/docker".
func (g Given) String() string {
	flag := "--" + g.Name
	if g.Value != "" {
		flag += "=" + g.Value
	}
	return flag + " in " + g.Where
}

// keyOf names the key of daemon.json that dockerd refuses beside a flag.
func keyOf(flag string) string {
	switch flag {
	case "default-network-opt":
		return "default-network-opts"
	case "bridge":
		return "bip" // docker0 is given up
	}
	return flag
}

// Conflicts are the flags with which dockerd does not start when daemon.json
// has keys.
func Conflicts(given []Given, keys []string) []Given {
	var list []Given
	for _, g := range given {
		if slices.Contains(keys, keyOf(g.Name)) {
			list = append(list, g)
		}
	}
	return list
}

// Socket is the unix socket that dockerd listens on by its flags. fd:// is
// systemd's, which has it in the default place.
func Socket(given []Given) string {
	for _, g := range given {
		if path, ok := strings.CutPrefix(g.Value, "unix://"); g.Name == "host" && ok && path != "" {
			return path
		}
	}
	return DefaultSocket
}

// ConfigFile is the file that dockerd reads by its flags, and the flag if it has
// one.
func ConfigFile(given []Given) (path string, flag *Given) {
	for _, g := range given {
		if g.Name == "config-file" && g.Value != "" {
			path, flag = g.Value, &g // the last counts
		}
	}
	return cmp.Or(path, DefaultConfigFile), flag
}

// DefaultConfigFile is what dockerd reads unless it is told otherwise, or runs
// rootless.
const DefaultConfigFile = "/etc/docker/daemon.json"

// Unit is what the service manager knows of docker.service.
type Unit struct {
	// Argv is ExecStart, with variables as they stand there.
	Argv []string
	// Environment are assignments, EnvironmentFiles files with more, of which
	// the last counts.
	Environment, EnvironmentFiles []string
	// Files are the unit's own file and its drop-ins, in their order.
	Files []string
}

// Flags are those that a start of the unit would give to dockerd. Files that
// cannot be read say nothing, as they do to systemd.
func (u Unit) Flags() []Given {
	env, from := u.environment()
	var all []Given
	for _, piece := range u.pieces(env) {
		for _, f := range ParseFlags(append([]string{"dockerd"}, piece.words...)) {
			where := from[piece.variable]
			if where == "" {
				where = u.fileWith(f)
			}
			all = append(all, Given{f, where})
		}
	}
	return all
}

// piece is a run of words that come from one place: the unit, or a variable.
type piece struct {
	variable string
	words    []string
}

// pieces splits the command line by where its words come from. systemd splits
// $NAME into words if it stands alone, and puts ${NAME} in as it is.
func (u Unit) pieces(env map[string]string) []piece {
	var all []piece
	var own []string
	for _, word := range u.Argv[min(1, len(u.Argv)):] {
		name, alone := strings.CutPrefix(word, "$")
		braced := strings.HasPrefix(name, "{") && strings.HasSuffix(name, "}")
		switch name = strings.Trim(name, "{}"); {
		case alone && braced:
			all = append(all, piece{words: own}, piece{name, []string{env[name]}})
		case alone:
			all = append(all, piece{words: own}, piece{name, strings.Fields(env[name])})
		default:
			own = append(own, os.Expand(word, func(name string) string { return env[name] }))
			continue
		}
		own = nil
	}
	return append(all, piece{words: own})
}

// environment returns the variables, and the file that each comes from.
func (u Unit) environment() (values, from map[string]string) {
	values, from = map[string]string{}, map[string]string{}
	set := func(assignment, where string) {
		if name, value, ok := strings.Cut(assignment, "="); ok {
			values[name], from[name] = value, where
		}
	}
	for _, assignment := range u.Environment {
		set(assignment, cmp.Or(u.containing("Environment="), "docker.service"))
	}
	for _, file := range u.EnvironmentFiles {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for _, assignment := range parseEnvironment(string(text)) {
			set(assignment, file)
		}
	}
	return values, from
}

// parseEnvironment reads a file of shell-like assignments as systemd does
// (systemd.exec(5), EnvironmentFile=).
func parseEnvironment(text string) []string {
	var list []string
	text = strings.ReplaceAll(text, "\\\n", "")
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		name, value, ok := strings.Cut(line, "=")
		if !ok || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue
		}
		value = strings.TrimSpace(value)
		if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			value = value[1 : n-1]
		}
		list = append(list, strings.TrimSpace(name)+"="+value)
	}
	return list
}

// fileWith is the unit's file that a flag stands in: the last, since a later
// ExecStart= replaces an earlier one.
func (u Unit) fileWith(f Flag) string {
	return cmp.Or(u.containing("--"+f.Name), u.containing("ExecStart="), "docker.service")
}

func (u Unit) containing(part string) string {
	for _, file := range slices.Backward(u.Files) {
		text, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(text), part) {
			return file
		}
	}
	return ""
}
