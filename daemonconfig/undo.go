package daemonconfig

import "fmt"

// Undo is the way back from a change of a file of Docker's, should dockerd not
// start with it. As JSON it can be kept for a later process.
type Undo struct {
	Path string `json:"path"`
	// Old is the text before the change, New the one after it; nil: no file.
	Old []byte `json:"old"`
	New []byte `json:"new"`
	// MemoryPath is where it is remembered what is ours in the file, Before and
	// After what that was; empty: all of the file is ours.
	MemoryPath string `json:"memory_path,omitempty"`
	Before     Memory `json:"before,omitzero"`
	After      Memory `json:"after,omitzero"`
}

// Undo returns the way back from a Commit of p. What stood in another file
// before, as the memory of p had it, stays withdrawn.
func (c DockerConfig) Undo(p Plan) Undo {
	u := Undo{Path: c.Path, Old: p.Old, New: p.Text, MemoryPath: c.MemoryPath, After: p.Memory}
	if p.before.Path == c.Path {
		u.Before = p.before
	}
	return u
}

// Undo returns the way back from a Commit.
func (s Swap) Undo() Undo { return Undo{Path: s.Path, Old: s.Old, New: s.Text} }

// Over returns the way back from u to before earlier, if u changed what earlier
// left; otherwise u.
func (u Undo) Over(earlier Undo) Undo {
	if u.Path == earlier.Path && u.MemoryPath == earlier.MemoryPath && sameText(u.Old, earlier.New) {
		u.Old, u.Before = earlier.Old, earlier.Before
	}
	return u
}

// Empty reports that the text after the change is the one before it.
func (u Undo) Empty() bool { return sameText(u.Old, u.New) }

// Stands reports whether the file is as the change left it.
func (u Undo) Stands() (bool, error) {
	now, err := readText(u.Path)
	return err == nil && sameText(now, u.New), err
}

// Revert puts the former text and memory back. [ErrChanged]: somebody else has
// written the file since, and it stays as it is. Nothing is checked: dockerd ran
// with it. Killed between any two steps, it can be called again.
func (u Undo) Revert() error {
	now, err := readText(u.Path)
	if err != nil {
		return err
	}
	back := sameText(now, u.Old)
	if !back && !sameText(now, u.New) {
		return fmt.Errorf("%s: %w", u.Path, ErrChanged)
	}
	if !back && u.MemoryPath != "" {
		if err := saveMemory(u.MemoryPath, u.After.join(u.Before)); err != nil {
			return err
		}
	}
	if err := putText(u.Path, u.Old, WriteOptions{}); err != nil {
		return err
	}
	if u.MemoryPath == "" {
		return nil
	}
	return saveMemory(u.MemoryPath, u.Before)
}
