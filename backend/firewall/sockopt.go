//go:build !386 && !s390x

package firewall

import "syscall"

const sysGetsockopt = syscall.SYS_GETSOCKOPT
