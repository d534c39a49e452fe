//go:build 386 || s390x

package firewall

// sysGetsockopt came to these machines with Linux 4.3, too late for package
// syscall.
const sysGetsockopt = 365
