package daemonconfig

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
)

// DockerConfig is a daemon.json on disk, and the memory of what is ours in it.
type DockerConfig struct {
	// Path is daemon.json, MemoryPath a file of ours in the state directory.
	Path, MemoryPath string
	// Options are for writing daemon.json.
	Options WriteOptions
}

// ErrChanged: somebody else wrote daemon.json between Plan and Commit. Plan
// again.
var ErrChanged = errors.New("was changed meanwhile by somebody else")

// Plan is a change of daemon.json that is decided and not done.
type Plan struct {
	// Old is the present text; nil: there is no file.
	Old []byte
	Merged
	before Memory
}

// Plan reads the file and decides what Commit would write. It touches nothing.
func (c DockerConfig) Plan(want Docker) (Plan, error) {
	before, err := LoadMemory(c.MemoryPath)
	if err != nil {
		return Plan{}, err
	}
	old, err := c.read()
	if err != nil {
		return Plan{}, err
	}
	memory := before
	if before.Path != c.Path {
		memory = Memory{Path: c.Path}
	}
	merged, err := Merge(old, want, memory)
	if err != nil {
		return Plan{}, fmt.Errorf("docker config %s: %w", c.Path, err)
	}
	return Plan{Old: old, Merged: merged, before: before}, nil
}

// Commit does what p says, unless the file is no longer as p found it:
// [ErrChanged]. If the memory is about another file, what is ours there is
// withdrawn first. Killed between any two steps, it leaves the old or the new
// daemon.json, and a memory that knows our values in either.
func (c DockerConfig) Commit(p Plan) error {
	if now, err := c.read(); err != nil {
		return err
	} else if !sameText(now, p.Old) {
		return fmt.Errorf("docker config %s: %w", c.Path, ErrChanged)
	}
	if p.before.Path != "" && p.before.Path != c.Path {
		if _, err := Withdraw(c.MemoryPath); err != nil {
			return err
		}
		p.before = Memory{}
	}
	if len(p.Changes) > 0 {
		if err := saveMemory(c.MemoryPath, p.before.join(p.Memory)); err != nil {
			return err
		}
	}
	if err := c.put(p.Text); err != nil {
		return err
	}
	return saveMemory(c.MemoryPath, p.Memory)
}

// Get returns the JSON text of a key of the file; empty: there is no such key, or
// no file.
func (c DockerConfig) Get(key string) (string, error) {
	text, err := c.read()
	if err != nil {
		return "", err
	}
	o, err := parseObject(text)
	if err != nil {
		return "", fmt.Errorf("docker config %s: %w", c.Path, err)
	}
	return o.get(key), nil
}

// Withdraw takes back whatever the memory at memoryPath says is ours, in the
// file that it names, and forgets it. It returns what it changed; without a
// memory that is nothing.
func Withdraw(memoryPath string) ([]Change, error) {
	memory, err := LoadMemory(memoryPath)
	if err != nil || memory.Path == "" {
		return nil, err
	}
	c := DockerConfig{Path: memory.Path, MemoryPath: memoryPath}
	p, err := c.Plan(Docker{})
	if err != nil {
		return nil, err
	}
	if err := c.Commit(p); err != nil {
		return nil, err
	}
	return p.Changes, nil
}

// LoadMemory reads a memory; one that does not exist is empty.
func LoadMemory(path string) (Memory, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Memory{}, nil
	}
	if err != nil {
		return Memory{}, fmt.Errorf("read memory of docker config: %w", err)
	}
	var m Memory
	if err := json.Unmarshal(text, &m); err != nil {
		return Memory{}, fmt.Errorf("read memory of docker config: %s: %w (remove it to forget which of Docker's keys are ours)", path, err)
	}
	return m, nil
}

// saveMemory keeps m, or removes the file when there is nothing to remember.
func saveMemory(path string, m Memory) error {
	if len(m.Keys) == 0 {
		_, err := Remove(path)
		return err
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("save memory of docker config: %w", err)
	}
	_, err = Write(path, append(text, '\n'), WriteOptions{Perm: 0o600, DirPerm: 0o700})
	return err
}

// join returns a memory that knows the values of m and of next, which replaces
// it, for the time in which the file may hold either.
func (m Memory) join(next Memory) Memory {
	if m.Path != next.Path && next.Path != "" {
		return next
	}
	joined := m.clone()
	joined.Created = m.Created || next.Created
	for key, r := range next.Keys {
		r.Wrote = slices.Concat(m.Keys[key].Wrote, r.Wrote)
		slices.Sort(r.Wrote)
		r.Wrote = slices.Compact(r.Wrote) // a commit that fails is tried for ever
		joined.Keys[key] = r
	}
	return joined
}

// read returns the file's text; nil: there is no file.
func (c DockerConfig) read() ([]byte, error) {
	text, err := readText(c.Path)
	if err != nil {
		return nil, fmt.Errorf("docker config %w", err)
	}
	return text, nil
}

// put writes the file, or removes it when text is nil.
func (c DockerConfig) put(text []byte) error { return putText(c.Path, text, c.Options) }
