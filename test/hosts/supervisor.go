package hosts

import "path/filepath"

// The services of a machine, by the names that `service` knows them by.
const (
	dockerService = "docker"
	ourService    = "flanneld-go"
)

// supervisor is what boots a machine and runs its services. All but boot are
// scripts for a shell in the machine.
type supervisor struct {
	// boot is the command that boots the machine and ends with it. Its only
	// child is the machine's process 1.
	boot func(m *Machine) []string
	// keeps: what a service gives into its keeping is there after a restart.
	keeps bool
	// join: nobody but we moves what is run in the machine into its cgroups.
	join bool
	// up succeeds when process 1 can be told to start services.
	up string
	// settle succeeds when all services of a machine that is up have started.
	settle string
	// installed comes after files of services were written.
	installed string
	// enable makes later boots start our service.
	enable string
	// off ends the machine in order, and need not wait for that.
	off string
	// service does to the service $0 what $1 says: start, stop or restart.
	service string
	// log prints the end of what the service $0 printed.
	log string
}

// systemd is the real one.
func systemd() supervisor {
	return supervisor{
		boot: func(m *Machine) []string {
			return []string{
				"systemd-nspawn", "-q", "-D", m.Root, "--network-namespace-path=/run/netns/" + m.Name,
				"--capability=all", "--bind=" + filepath.Join(m.dir, "docker") + ":/var/lib/docker", "--bind=/dev/net/tun",
				"--property=DeviceAllow=/dev/net/tun rwm", "--system-call-filter=add_key keyctl bpf",
				"--register=no", "--keep-unit", "--hostname=" + m.Name, "-b",
				// systemd 256 and later want this word before they run on a host
				// with cgroups of version 1; earlier ones do not know it.
				"SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",
			}
		},
		keeps: true,
		up:    "systemctl show --property=Version",
		// Containers need to make cgroups. Without a source, mount would look for
		// one in the list of mounts, which lacks some while a boot changes it.
		settle: `for d in /sys/fs/cgroup /sys/fs/cgroup/*; do mount -o remount,rw,bind cgroup $d || exit 1; done
			systemctl is-system-running --wait && exit
			systemctl --failed --no-legend --plain; journalctl -b --no-pager -p notice -n 30; exit 1`,
		installed: "systemctl daemon-reload",
		enable:    "systemctl enable " + ourService,
		off:       "systemctl poweroff --no-block",
		// Tests restart Docker more often than its unit takes for health.
		service: `systemctl reset-failed "$0" && systemctl "$1" "$0"`,
		log:     `journalctl -u "$0" --no-pager -n 60 -o short-precise`,
	}
}

// plain is a machine whose systemd cannot run here: scripts as of old start the
// services, and process 1 reaps what they leave.
func plain() supervisor {
	return supervisor{
		boot: func(m *Machine) []string {
			return []string{
				"nsenter", "--net=/run/netns/" + m.Name, "unshare", "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--fork",
				"sh", "-c", plainInit, m.Name, m.Root, filepath.Join(m.dir, "docker"), plainScript,
			}
		},
		join: true,
		up:   "test -e /run/up",
		settle: `if [ -e /etc/init.d/` + ourService + ` ]; then service ` + ourService + ` start || exit 1; fi
			service ` + dockerService + ` start`,
		installed: "true",
		enable:    `cp /etc/init.d/` + dockerService + ` /etc/init.d/` + ourService,
		off:       `for s in ` + dockerService + ` ` + ourService + `; do service $s stop; done; kill 1`,
		service:   `service "$0" "$1"`,
		log:       `tail -n 20 "/var/log/$0.log"`,
	}
}

// plainInit makes the root $1 that of the machine $0, with /var/lib/docker from
// $2 and the script $3 for its services, and is its process 1. Each hierarchy of
// cgroups begins at the machine's own.
const plainInit = `set -e
hostname "$0"
cd "$1"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
if [ -e ` + cgroupRoot + `/cgroup.procs ]; then
	mount --bind ` + cgroupRoot + `/"$0" sys/fs/cgroup
else
	mount -t tmpfs tmpfs sys/fs/cgroup
	for d in ` + cgroupRoot + `/*/"$0"; do
		h=${d%/*}; h=sys/fs/cgroup/${h##*/}
		mkdir "$h"; mount --bind "$d" "$h"
	done
fi
mkdir -p var/lib/docker oldroot
mount --bind "$2" var/lib/docker
printf '%s' "$3" >etc/init.d/docker
pivot_root . oldroot
cd /
umount -l /oldroot
mkdir /run/lock
: >/run/up
trap exit TERM
while :; do sleep 86400 & wait; done`

// plainScript runs the service whose name it has, our daemon with what the unit
// would give it. Debian's own script for Docker wants more open files than a
// machine may allow.
const plainScript = `#!/bin/sh
### BEGIN INIT INFO
# Provides:          docker flanneld-go
# Required-Start:    $network
# Required-Stop:     $network
# Default-Start:     2 3 4 5
# Default-Stop:      0 1 6
# Short-Description: a service in the background
### END INIT INFO
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
name=${0##*/}
case $name in
docker) daemon=dockerd ;;
*) daemon=$name ;;
esac
case $1 in
start)
	mkdir -p /run/flannel
	set -a
	. "/etc/default/$name"
	set +a
	exec start-stop-daemon --start --oknodo --background --no-close --make-pidfile --pidfile "/run/$name.sv" \
		$START_OPTIONS --startas "$(command -v "$daemon")" -- $FLANNEL_OPTIONS >>"/var/log/$name.log" 2>&1 ;;
stop)
	exec start-stop-daemon --stop --oknodo --retry TERM/15/KILL/5 --remove-pidfile --pidfile "/run/$name.sv" ;;
restart)
	"$0" stop && "$0" start ;;
esac
`
