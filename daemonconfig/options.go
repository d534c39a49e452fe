package daemonconfig

import (
	"bytes"
	"fmt"
	"strings"
)

// OptionsStyle says how [Options] prints. The zero value is the default of
// flannel's mk-docker-opts.sh.
type OptionsStyle struct {
	// Individual prints a variable per option and Combined one variable with
	// all of them; neither means both.
	Individual, Combined bool
	// Key names the combined variable; empty: DOCKER_OPTS.
	Key string
	// OmitIPMasq leaves --ip-masq out, for dockerd before 1.x.
	OmitIPMasq bool
}

// Options returns dockerd's options as a file of shell variables, byte for byte
// what mk-docker-opts.sh writes: IPv4 only, and --ip-masq the inverse of
// FLANNEL_IPMASQ, since one of the two must masquerade and never both.
func Options(e Env, style OptionsStyle) []byte {
	type option struct{ name, value string }
	var options []option
	if subnet := e.Subnets[0]; subnet.IsValid() {
		options = append(options, option{"BIP", fmt.Sprintf("--bip=%s", HostAddr(subnet))})
	}
	if !style.OmitIPMasq {
		options = append(options, option{"IPMASQ", fmt.Sprintf("--ip-masq=%t", !e.IPMasq)})
	}
	if e.MTU > 0 {
		options = append(options, option{"MTU", fmt.Sprintf("--mtu=%d", e.MTU)})
	}

	both := !style.Individual && !style.Combined
	var b bytes.Buffer
	if style.Individual || both {
		for _, o := range options {
			fmt.Fprintf(&b, "DOCKER_OPT_%s=\"%s\"\n", o.name, o.value)
		}
	}
	if style.Combined || both {
		key := style.Key
		if key == "" {
			key = "DOCKER_OPTS"
		}
		var all strings.Builder
		for _, o := range options {
			all.WriteString(" " + o.value) // the script's leading blank is part of the format
		}
		fmt.Fprintf(&b, "%s=\"%s\"\n", key, all.String())
	}
	return b.Bytes()
}

// OptionsFile is the options file that the daemon keeps for a drop-in of
// docker.service: the script's default, and the combined variable once more
// under the name that Fedora's unit expands. Debian's expands DOCKER_OPTS.
func OptionsFile(e Env) []byte {
	fedora := OptionsStyle{Combined: true, Key: "DOCKER_NETWORK_OPTIONS"}
	return append(Options(e, OptionsStyle{}), Options(e, fedora)...)
}
