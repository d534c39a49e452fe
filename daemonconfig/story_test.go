package daemonconfig_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/flanneld-go/flanneld-go/daemonconfig"
)

// storyEnv makes this test binary a process that plays one story on the files
// of a directory, and says by a signal to itself where the story begins.
const storyEnv = "DAEMONCONFIG_TEST_STORY"

// stories are what a daemon does to Docker's file, from the state in which the
// one before it ended.
func stories() []struct {
	name string
	play func(c daemonconfig.DockerConfig) error
} {
	commit := func(want daemonconfig.Docker) func(daemonconfig.DockerConfig) error {
		return func(c daemonconfig.DockerConfig) error {
			p, err := c.Plan(want)
			if err != nil {
				return err
			}
			return c.Commit(p)
		}
	}
	moved := everything()
	moved.BIP, moved.MTU, moved.NetworkMTU = netip.MustParsePrefix("10.5.9.1/24"), 1400, 1400
	return []struct {
		name string
		play func(c daemonconfig.DockerConfig) error
	}{
		{"first lease", commit(everything())},
		{"renumbered", commit(moved)},
		{"renumbered, with the way back", func(c daemonconfig.DockerConfig) error {
			p, err := c.Plan(everything())
			if err != nil || len(p.Changes) == 0 {
				return err
			}
			text, err := json.Marshal(c.Undo(p))
			if err != nil {
				return err
			}
			_, err = daemonconfig.Write(c.Path+".undo", text, daemonconfig.WriteOptions{})
			return errors.Join(err, c.Commit(p))
		}},
		{"reverted", func(c daemonconfig.DockerConfig) error {
			text, err := os.ReadFile(c.Path + ".undo")
			if err != nil {
				return err
			}
			var u daemonconfig.Undo
			return errors.Join(json.Unmarshal(text, &u), u.Revert())
		}},
		{"withdrawn", func(c daemonconfig.DockerConfig) error {
			_, err := daemonconfig.Withdraw(c.MemoryPath)
			return err
		}},
	}
}

// playStory is the child's main.
func playStory(dir, name string) error {
	runtime.LockOSThread()                                                                  // one thread makes all changes
	if err := syscall.Tgkill(os.Getpid(), syscall.Gettid(), syscall.SIGWINCH); err != nil { // nobody listens to it
		return err
	}
	c := daemonconfig.DockerConfig{Path: filepath.Join(dir, "daemon.json"), MemoryPath: filepath.Join(dir, "state", "docker.json")}
	for _, s := range stories() {
		if s.name == name {
			return s.play(c)
		}
	}
	return fmt.Errorf("no story %q", name)
}
