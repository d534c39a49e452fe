package faults

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// notes says which programs take part besides the present build, of those that are
// needed and there.
func notes(ctx context.Context, o Options, lacking map[string]string) ([]string, error) {
	var list []string
	needed := func(all []Fault) bool {
		for _, f := range all {
			for i := range o.Faults {
				if o.Faults[i].Name == f.Name && f.lacks != nil && lacking[f.Name] == "" {
					return true
				}
			}
		}
		return false
	}
	if needed(processFaults()) {
		version, err := versionOf(ctx, o.Previous)
		if err != nil {
			return nil, err
		}
		list = append(list, "The previous build is "+version+".")
	}
	if needed(networkdFaults()) {
		path, err := findNetworkd()
		if err != nil {
			return nil, err
		}
		version, err := versionOf(ctx, path)
		if err != nil {
			return nil, err
		}
		list = append(list, "systemd-networkd is that of "+version+".")
	}
	return list, nil
}

// versionOf is the first line of what a program says to --version.
func versionOf(ctx context.Context, path string) (string, error) {
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("ask %s for its version: %w", path, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line), nil
}
