// Package systemd talks to systemd: the daemon's own state to the service
// manager that started it, and questions and requests about other units over
// D-Bus. Beside it stand the files that `make install` gives to systemd.
//
//	             READY=1 STATUS=.. WATCHDOG=1
//	Notifier ----------- datagrams ------------> NOTIFY_SOCKET
//	  Keep, Drop   FDSTORE=1 with a descriptor        |
//	  Kept <---- LISTEN_FDS, at the next start ---- store
//	                                                  |
//	UnitActive, InspectService, --- D-Bus -----> systemd
//	StartUnit, RestartUnit                            |
//	                                                  |
//	flanneld-go.service, docker.service.d/, *.link, *.network, tmpfiles
//
// # Contract
//
//   - Without NOTIFY_SOCKET every method of [Notifier] does nothing and
//     succeeds, so that a daemon started by hand needs no second path.
//   - All questions and requests connect for each call and keep nothing
//     open: the daemon asks once in a while, and a restarted bus must not matter.
//   - docker.service is ordered after flanneld-go.service. A job for Docker
//     waits until we are ready, so RestartUnit of it must come after
//     [Notifier.Ready]; before, the two would wait for each other.
//   - Only constants of systemd's own protocol are here; what a status says and
//     when Docker is restarted is the daemon's.
//   - What [Notifier.Keep] gave is with systemd until it is dropped, or until the
//     service is stopped for good or has failed: while a start of it is queued or a
//     restart awaited, it stays (systemd.service(5), FileDescriptorStoreMax=). Who
//     closes the own descriptor of a thing that must end, such as a bound port,
//     must drop the kept one as well.
package systemd
