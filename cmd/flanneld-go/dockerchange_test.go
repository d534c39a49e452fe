package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/internal/statedir"
	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/systemd"
)

const theirConfig = "{\n  \"debug\": true\n}\n"

// refuseOurs is a dockerd that does not start with our keys.
func (h *dockerHost) refuseOurs() error {
	if strings.Contains(h.file("docker/daemon.json"), "bip") {
		return jobFailed()
	}
	return h.obey()
}

// disk is what a kill would leave of the files around Docker.
func (h *dockerHost) disk() map[string]string {
	files := map[string]string{}
	for _, name := range []string{"docker/daemon.json", "state/docker.json", "state/docker-change.json", "state/host.json"} {
		files[name] = h.file(name)
	}
	return files
}

// lay puts such files down; empty: there is none.
func (h *dockerHost) lay(files map[string]string) {
	h.t.Helper()
	for name, text := range files {
		if text != "" {
			h.writeFile(name, text)
		} else if err := os.RemoveAll(h.path(name)); err != nil {
			h.t.Fatal(err)
		}
	}
}

// edit changes the JSON of a file.
func edit[T any](t *testing.T, files map[string]string, name string, change func(*T)) {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(files[name]), &v); err != nil {
		t.Fatal(err)
	}
	change(&v)
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	files[name] = string(text)
}

// Killed between any two steps of a change with which Docker does not start, the
// next process goes on: Docker runs again by its former file, the change is not
// tried a second time, and the host says why.
func TestKilledOverAChange(t *testing.T) {
	const before, during = "docker/daemon.json", "state/docker-change.json"
	type files = map[string]string
	forgetAttempt := func(t *testing.T, f files) {
		edit(t, f, "state/host.json", func(h *statedir.Host) { h.DockerAttempt = nil })
	}
	tests := []struct {
		name string
		// at is the hook in which the files are taken, back what of them the
		// kill came before.
		at   string
		back func(t *testing.T, f files)
		// failed: Docker has, as it was left.
		failed bool
		jobs   string
	}{
		{"before the file", "restart", func(t *testing.T, f files) {
			f[before], f["state/docker.json"] = theirConfig, ""
			edit(t, f, during, func(c *statedir.DockerChange) { c.Asked = false })
			forgetAttempt(t, f)
		}, false, "restart start"},
		{"before the restart was decided", "restart", func(t *testing.T, f files) {
			edit(t, f, during, func(c *statedir.DockerChange) { c.Asked = false })
			forgetAttempt(t, f)
		}, false, "restart start"},
		{"before the restart was remembered", "restart", forgetAttempt, false, "restart start"},
		{"before the restart", "restart", func(*testing.T, files) {}, false, "restart start"},
		{"after Docker failed", "restart", func(*testing.T, files) {}, true, "start"},
		{"before the file is back", "start", func(t *testing.T, f files) {
			edit(t, f, during, func(c *statedir.DockerChange) { f[before] = string(c.Undo.New) })
		}, true, "start"},
		{"before Docker starts again", "start", func(*testing.T, files) {}, true, "start"},
		{"after Docker started again", "start", func(*testing.T, files) {}, false, "start"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inDockerBubble(t, "26.1.5", func(h *dockerHost) {
				left := h.killed(tt.at)
				tt.back(t, left)
				h.lay(left)
				h.units.failed, h.units.jobs = tt.failed, nil
				if !tt.failed && tt.at == "restart" {
					h.units.starts = 0 // as if it had not been asked
				}
				h.start()
				h.eventually(resync, "rolled back", func() bool {
					return strings.Contains(h.problem(status.ComponentDocker).Message, "the former file is back, and docker runs by it")
				})
				p := h.problem(status.ComponentDocker)
				if !strings.Contains(p.Message, "docker does not start with our change of "+h.opts.dockerConfig+` ("bip": absent -> "`+h.own()+`"`) || p.Hint == "" {
					t.Errorf("problem %q, hint %q", p.Message, p.Hint)
				}
				for range 3 { // whoever restarts us again and again changes nothing
					time.Sleep(3 * resyncEvery)
					synctest.Wait()
					if got := h.units.done(); got != tt.jobs || h.file("docker/daemon.json") != theirConfig {
						t.Fatalf("jobs %q, want %q; file %s", got, tt.jobs, h.file("docker/daemon.json"))
					}
					h.stop()
					h.start()
				}
				h.eventually(resync, "still said", func() bool {
					return strings.Contains(h.problem(status.ComponentDocker).Message, "docker does not start with our change")
				})
				h.stop()
				if h.file("state/docker-change.json") != "" || h.file("state/docker.json") != "" {
					t.Errorf("kept %s, memory %s", h.file("state/docker-change.json"), h.file("state/docker.json"))
				}
			})
		})
	}
}

// killed runs a daemon whose change Docker refuses, and returns what a kill during
// a job leaves. Docker has done the job by then.
func (h *dockerHost) killed(during string) map[string]string {
	h.t.Helper()
	h.writeFile("docker/daemon.json", theirConfig)
	var left map[string]string
	taking := func(job string) func() error {
		return func() error {
			if job == during && left == nil {
				left = h.disk()
			}
			return h.refuseOurs()
		}
	}
	h.units.restart, h.units.start = taking("restart"), taking("start")
	h.start()
	h.eventually(resync, "killed", func() bool { return strings.Contains(h.units.done(), during) })
	h.stop()
	if left["state/docker-change.json"] == "" {
		h.t.Fatalf("nothing is kept during the %s: %v", during, maps.Keys(left))
	}
	if info, err := os.Stat(filepath.Join(h.opts.stateDir)); err != nil || info.Mode().Perm() != 0o700 {
		h.t.Errorf("the way back holds the administrator's text, in a folder of %v, %v", info.Mode(), err)
	}
	h.units.restart, h.units.start = h.refuseOurs, h.refuseOurs
	return left
}

// Killed before it put the file back, and Docker has started with the change since:
// what it had failed of is over, and nothing is taken back below a Docker that runs.
func TestDockerStartsAfterAll(t *testing.T) {
	inDockerBubble(t, "26.1.5", func(h *dockerHost) {
		left := h.killed("start")
		edit(t, left, "state/docker-change.json", func(c *statedir.DockerChange) {
			if c.Failed == "" {
				t.Error("not kept that it failed")
			}
			left["docker/daemon.json"] = string(c.Undo.New)
		})
		edit(t, left, "state/host.json", func(s *statedir.Host) { s.DockerAttempt = nil })
		h.lay(left)
		h.units.jobs, h.units.start, h.units.restart = nil, h.obey, h.obey
		if err := h.obey(); err != nil {
			t.Fatal(err)
		}
		h.start()
		h.eventually(resync, "settled", func() bool { return h.file("state/docker-change.json") == "" })
		time.Sleep(3 * resyncEvery)
		synctest.Wait()
		if p := h.problem(status.ComponentDocker); p.Message != "" || h.units.done() != "" || !strings.Contains(h.file("docker/daemon.json"), "bip") {
			t.Errorf("problem %q, jobs %q, file %s", p.Message, h.units.done(), h.file("docker/daemon.json"))
		}
		h.stop()
	})
}

// Not only a restart of ours proves a change, or does not: at a boot Docker starts
// by itself when we are ready, and elsewhere an operator restarts it.
func TestOthersStartDocker(t *testing.T) {
	for _, fails := range []bool{false, true} {
		t.Run(fmt.Sprintf("fails %t", fails), func(t *testing.T) {
			inDockerBubble(t, "20.10.24", func(h *dockerHost) {
				h.writeFile("docker/daemon.json", theirConfig)
				h.opts.dockerRestart, h.units.active = "never", false
				h.units.start = h.refuseOurs
				h.start()
				kept := func() bool { return h.file("state/docker-change.json") != "" }
				h.eventually(resync, "written", func() bool { return strings.Contains(h.file("docker/daemon.json"), "bip") })
				time.Sleep(3 * resyncEvery)
				synctest.Wait()
				if !kept() || h.units.done() != "" {
					t.Errorf("kept %t, jobs %q: nobody has started Docker yet", kept(), h.units.done())
				}
				h.units.mu.Lock()
				h.units.active, h.units.failed, h.units.starts = !fails, fails, 1
				h.units.mu.Unlock()
				h.eventually(2*resyncEvery, "settled", func() bool { return !kept() })
				synctest.Wait()
				p := h.problem(status.ComponentDocker)
				if ours := strings.Contains(h.file("docker/daemon.json"), "bip"); ours == fails ||
					fails != strings.Contains(p.Message, "docker.service has failed: ") || fails != (h.units.done() == "start") {
					t.Errorf("problem %q, jobs %q, file %s", p.Message, h.units.done(), h.file("docker/daemon.json"))
				}
				h.stop()
			})
		})
	}
}

// What is not ours to take back stays: Docker had failed before, somebody else has
// written the file since, or systemd starts nothing for now.
func TestNothingIsTakenBack(t *testing.T) {
	const again = 7 // starts of Docker since
	tests := []struct {
		name  string
		cause func(h *dockerHost)
	}{
		{"failed before", func(h *dockerHost) { h.units.failed = true }},
		{"written since", func(h *dockerHost) {
			h.units.failed, h.units.starts = true, again
			h.writeFile("docker/daemon.json", "{\"bip\": \"192.0.2.1/24\"}\n")
		}},
		{"started too often", func(h *dockerHost) {
			h.units.starts, h.units.state, h.units.result = again, "failed", systemd.StartLimitHit
		}},
		{"stopped", func(h *dockerHost) { h.units.starts, h.units.state = again, "inactive" }},
		{"starting", func(h *dockerHost) { h.units.starts, h.units.state = again, "activating" }},
		{"not known", func(h *dockerHost) { h.units.failed, h.units.unknown = true, true }},
		{"not known before", func(h *dockerHost) { h.units.failed, h.units.unknown, h.units.starts = true, false, again }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inDockerBubble(t, "20.10.24", func(h *dockerHost) {
				h.writeFile("docker/daemon.json", theirConfig)
				h.opts.dockerRestart, h.units.unknown = "never", tt.name == "not known before"
				h.start()
				ours := func() bool { return strings.Contains(h.file("docker/daemon.json"), h.own()) }
				h.eventually(resync, "written", ours)
				h.stop()
				tt.cause(h)
				h.start()
				time.Sleep(3 * resyncEvery)
				synctest.Wait()
				if got := h.units.done(); got != "" || !ours() || strings.Contains(h.file("state/host.json"), "docker_attempt") {
					t.Errorf("jobs %q, file %s, kept %s", got, h.file("docker/daemon.json"), h.file("state/host.json"))
				}
				h.stop()
			})
		})
	}
}
