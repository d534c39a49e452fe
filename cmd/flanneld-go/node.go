package main

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// machineIDFile is machine-id(5). It must not leave the host, hence the key.
const machineIDFile = "/etc/machine-id"

// applicationKey keeps the node id from revealing the machine id, and other
// applications' derived ids from being equal to it, as sd_id128_get_machine_app_specific(3)
// does: the id is an HMAC-SHA256 of this key under the machine id, cut to 128 bits.
const applicationKey = "flanneld-go node id v1"

// nodeID returns the given name, or derives one from the machine id.
func nodeID(given, machineIDFile string) (subnet.NodeID, error) {
	if given != "" {
		return subnet.NodeID(given), nil
	}
	data, err := os.ReadFile(machineIDFile)
	if err != nil {
		return "", fmt.Errorf("read machine id: %w: run systemd-machine-id-setup, or name this host with --node-id", err)
	}
	id, err := hex.DecodeString(strings.TrimSpace(string(data)))
	if err != nil || len(id) != 16 {
		return "", fmt.Errorf("read machine id: %s: %q: must be 32 hexadecimal digits: run systemd-machine-id-setup, or name this host with --node-id", machineIDFile, strings.TrimSpace(string(data)))
	}
	mac := hmac.New(sha256.New, id)
	mac.Write([]byte(applicationKey))
	return subnet.NodeID(hex.EncodeToString(mac.Sum(nil)[:16])), nil
}

// newInstance returns a random name for this process.
func newInstance() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails, as crypto/rand documents
	return hex.EncodeToString(b[:])
}
