package main

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld-go/flanneld-go/cmd/internal/status"
	"github.com/flanneld-go/flanneld-go/systemd"
)

// jobFailed is how systemd says that dockerd did not come up.
func jobFailed() error {
	return fmt.Errorf("restart docker.service: %w", &systemd.JobError{Unit: dockerUnit, Result: "failed"})
}

// A Docker that does not start with our keys runs again without them, once, and
// the host says so until somebody changes the file.
func TestDockerIsRolledBack(t *testing.T) {
	for _, dead := range []bool{false, true} {
		t.Run(fmt.Sprintf("dead anyway %t", dead), func(t *testing.T) {
			inDockerBubble(t, "20.10.24+dfsg1", func(h *dockerHost) {
				const theirs = "{\n  \"debug\": true\n}\n"
				h.writeFile("docker/daemon.json", theirs)
				h.units.restart = jobFailed
				says := "the former file is back, and docker runs by it"
				if dead {
					h.units.start = jobFailed
					says = "the former file is back, and docker does not start with that either: "
				}
				h.start()
				h.eventually(resync, "rolled back", func() bool {
					return strings.Contains(h.problem(status.ComponentDocker).Message, says)
				})
				time.Sleep(10 * resyncEvery)
				synctest.Wait()
				p := h.problem(status.ComponentDocker)
				for _, part := range []string{h.opts.dockerConfig, `"bip": absent -> "` + h.own() + `"`, "job of docker.service: failed"} {
					if !strings.Contains(p.Message, part) {
						t.Errorf("problem %q does not say %s", p.Message, part)
					}
				}
				if !strings.HasPrefix(p.Hint, "journalctl -u docker -n 50") || p.Blocking {
					t.Errorf("hint %q, blocking %t", p.Hint, p.Blocking)
				}
				if got := h.file("docker/daemon.json"); got != theirs {
					t.Errorf("daemon.json is %s, want the former text", got)
				}
				if got := h.units.done(); got != "restart start" {
					t.Errorf("jobs %q, want one restart and one start", got)
				}
				if got := h.file("state/docker.json"); got != "" {
					t.Errorf("memory of keys that are not there: %s", got)
				}
				// What the administrator changes is worth another try.
				h.units.mu.Lock()
				h.units.restart, h.units.start = h.obey, nil
				h.units.mu.Unlock()
				h.writeFile("docker/daemon.json", "{}\n")
				h.settled()
				if got := h.units.done(); got != "restart start restart" || !strings.Contains(h.file("docker/daemon.json"), h.own()) {
					t.Errorf("jobs %q: want it tried again; file %s", got, h.file("docker/daemon.json"))
				}
				h.stop()
			})
		})
	}
}

// Whoever starts us again and again does not restart Docker with it, be it that
// Docker has not got what its file says or that it did not start with that. What
// has another cause is worth a restart.
func TestRestartsOfOursDoNotRestartDocker(t *testing.T) {
	for _, tt := range []struct {
		name       string
		restart    func(h *dockerHost) error
		jobs, says string
	}{
		{"has not got it", (*dockerHost).obeyNothing, "restart", "docker0 has not "},
		{"does not start with it", func(*dockerHost) error { return jobFailed() }, "restart start", "the former file is back, and docker runs by it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inDockerBubble(t, "20.10.24", func(h *dockerHost) {
				const theirs = "{}\n"
				h.writeFile("docker/daemon.json", theirs)
				h.units.restart = func() error { return tt.restart(h) }
				for range 4 {
					h.start()
					h.eventually(resync, "said", func() bool {
						p := h.problem(status.ComponentDocker)
						return strings.Contains(p.Message, tt.says) && p.Hint != ""
					})
					time.Sleep(3 * resyncEvery)
					synctest.Wait()
					h.stop()
				}
				if got := h.units.done(); got != tt.jobs {
					t.Errorf("jobs %q, want %q", got, tt.jobs)
				}
				if back := h.file("docker/daemon.json") == theirs; back != (tt.jobs == "restart start") {
					t.Errorf("daemon.json is %s", h.file("docker/daemon.json"))
				}
				// What the administrator changes, or mends, is worth another try.
				h.units.mu.Lock()
				h.units.restart = h.obey
				h.units.mu.Unlock()
				if tt.jobs == "restart" {
					if err := h.obey(); err != nil {
						t.Fatal(err)
					}
				} else {
					h.writeFile("docker/daemon.json", "{ }\n")
				}
				h.start()
				h.settled()
				h.stop()
				jobs := h.units.done()
				if want := map[string]string{"restart": "restart", "restart start": "restart start restart"}[tt.jobs]; jobs != want {
					t.Errorf("jobs %q, want %q", jobs, want)
				}
				// Once it was right a loss has another cause.
				h.writeFile("docker/daemon.json", theirs)
				h.setBridge("172.17.0.1/16", 1500, true)
				h.start()
				h.settled()
				h.stop()
				if got := h.units.done(); got != jobs+" restart" {
					t.Errorf("jobs %q, want one more restart", got)
				}
			})
		})
	}
}

// An options file is put back, too, and a start that hangs is as bad as one that
// fails.
func TestEveryFailedStartIsRolledBack(t *testing.T) {
	const theirs = "DOCKER_OPTS=\"--debug\"\n"
	tests := []struct {
		name, state, old string
		hangs            bool
		jobs, says       string
	}{
		{"options file", "failed", theirs, false, "restart start", "docker does not start with our change of FILE (now DOCKER_NETWORK_OPTIONS=\" --bip=OWN --ip-masq=true --mtu=1500\"): restart docker.service: job of docker.service: failed; the former file is back, and docker runs by it"},
		{"no options file before", "failed", "", false, "restart start", "the former file is back, and docker runs by it"},
		{"a start that hangs", "activating", theirs, true, "restart stop start", "docker has not started within 2m0s: restart docker.service: wait for the job: context deadline exceeded; the former file is back, and docker runs by it"},
		{"a stop that takes long", "deactivating", theirs, true, "restart", "docker has not stopped its containers within 2m0s, and starts when it has: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inDockerBubble(t, "26.1.5+dfsg1", func(h *dockerHost) {
				h.opts.dockerConfig, h.opts.dockerOptions = "", h.path("run/docker")
				if tt.old != "" {
					h.writeFile("run/docker", tt.old)
				}
				h.units.restart, h.units.hangs, h.units.state = jobFailed, tt.hangs, tt.state
				h.start()
				h.eventually(dockerStart+resync, "said", func() bool {
					says := strings.NewReplacer("FILE", h.opts.dockerOptions, "OWN", h.own()).Replace(tt.says)
					return strings.Contains(h.problem(status.ComponentDocker).Message, says)
				})
				p, lines := h.problem(status.ComponentDocker), h.log.count("component=docker")
				if !strings.HasPrefix(p.Hint, "journalctl -u docker -n 50") || p.Blocking {
					t.Errorf("hint %q, blocking %t", p.Hint, p.Blocking)
				}
				time.Sleep(10 * resyncEvery)
				synctest.Wait()
				if got := h.units.done(); got != tt.jobs {
					t.Errorf("jobs %q, want %q", got, tt.jobs)
				}
				kept := tt.jobs == "restart"
				if got := h.file("run/docker"); kept != strings.Contains(got, h.own()) || !kept && got != tt.old {
					t.Errorf("options file is %q", got)
				}
				if got := h.log.count("component=docker"); got > lines+1 {
					t.Errorf("%d lines about it, and %d more while nothing changed:\n%s", lines, got-lines, h.log.buf.String())
				}
				if kept {
					h.stop()
					return
				}
				// What the administrator changes is worth another try.
				h.units.mu.Lock()
				h.units.restart, h.units.hangs = h.obeyNothing, false
				h.units.mu.Unlock()
				h.writeFile("run/docker", "DOCKER_OPTS=\"\"\n")
				h.eventually(resync, "tried again", func() bool {
					return strings.Contains(h.file("run/docker"), h.own()) && h.units.done() == tt.jobs+" restart"
				})
				h.stop()
			})
		})
	}
}

// docker0 gives the subnet up by a restart, but not while containers of
// live-restore run.
func TestLiveRestoreKeepsTheSubnet(t *testing.T) {
	inDockerBubble(t, "28.5.2", func(h *dockerHost) {
		h.start()
		h.settled()
		h.stop()
		h.opts.dockerNetwork = "flannel"
		h.engine.Info = `{"LiveRestoreEnabled": true, "ContainersRunning": 2}`
		h.start()
		h.eventually(resync, "said", func() bool {
			p := h.problem(status.ComponentDocker)
			return strings.HasPrefix(p.Message, "docker network flannel cannot be made yet: ") && strings.HasSuffix(p.Message, "as long as any of the 2 containers runs") &&
				p.Hint == "docker stop $(docker ps -q), then systemctl restart docker"
		})
		if got := h.units.done(); got != "restart" {
			t.Errorf("jobs %q: another restart would change nothing", got)
		}
		h.stop()
	})
}

// obeyNothing is a dockerd that starts, whatever its file says.
func (h *dockerHost) obeyNothing() error { return nil }

// Systemd does not start a service that others have just restarted too often, and
// has stopped it by then: that is not our file's fault, and Docker must come back.
func TestRestartedTooOften(t *testing.T) {
	for _, again := range []bool{false, true} {
		t.Run(fmt.Sprintf("again %t", again), func(t *testing.T) {
			inDockerBubble(t, "28.5.2", func(h *dockerHost) {
				h.units.restart, h.units.result = jobFailed, systemd.StartLimitHit
				h.units.start = h.obey
				if again {
					h.units.start = jobFailed
				}
				h.start()
				if !again {
					h.settled()
				} else {
					h.eventually(resync, "said", func() bool {
						p := h.problem(status.ComponentDocker)
						return strings.Contains(p.Message, "docker is down: systemd does not start it, since it is restarted again and again, and not by us (start-limit-hit)") &&
							strings.HasSuffix(p.Hint, "then systemctl reset-failed docker && systemctl start docker")
					})
				}
				time.Sleep(3 * resyncEvery)
				synctest.Wait()
				if got := h.units.done(); got != "restart start" {
					t.Errorf("jobs %q, want one start after the restart", got)
				}
				if !strings.Contains(h.file("docker/daemon.json"), h.own()) {
					t.Errorf("a file that is right was put back: %s", h.file("docker/daemon.json"))
				}
				h.line("docker was restarted too often in a short time for systemd, starting it all the same")
				h.stop()
			})
		})
	}
}

// Somebody else's job in place of ours says nothing about our file.
func TestRestartIsCancelled(t *testing.T) {
	inDockerBubble(t, "28.5.2", func(h *dockerHost) {
		h.units.restart = func() error {
			return fmt.Errorf("restart docker.service: %w", &systemd.JobError{Unit: dockerUnit, Result: "canceled"})
		}
		h.start()
		h.eventually(resync, "said", func() bool {
			return strings.Contains(h.problem(status.ComponentDocker).Message, "job of docker.service: canceled")
		})
		if !strings.Contains(h.file("docker/daemon.json"), h.own()) || h.units.done() != "restart" {
			t.Errorf("jobs %q, file %s", h.units.done(), h.file("docker/daemon.json"))
		}
		h.stop()
	})
}
