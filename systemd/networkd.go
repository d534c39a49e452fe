package systemd

import "embed"

// Networkd has what is installed for systemd-networkd, by the paths below its folder
// of settings.
//
//go:embed network/10-flannel.network networkd.conf.d/10-flannel.conf
var Networkd embed.FS
