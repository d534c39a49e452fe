package udp

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// FuzzReadData: what a peer publishes is refused with a reason, or read; and what was
// read, written as we publish it, is read as the same.
func FuzzReadData(f *testing.F) {
	for _, data := range []string{
		"", "null", "{}", `{"Port":8285}`, `{"Port":8285,"DirectRouting":true}`, `{"Port":0}`, `{"Port":65536}`, `{"port":-1}`, `{"Port":null,"DirectRouting":false}`,
		`{"Port":1e3}`, `{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}`, `[1]`, `{"Port":1}{}`, `"8285"`, "{", `{"Port":1,"PORT":2}`,
	} {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data string) {
		fields, err := readData(subnet.RawJSON(data))
		if err != nil {
			if !strings.HasPrefix(err.Error(), "read its backend data "+data+": ") {
				t.Errorf("error %q", err)
			}
			return
		}
		if fields.Port != nil && *fields.Port == 0 {
			t.Error("Port is 0")
		}
		if data != "" && !json.Valid([]byte(data)) {
			t.Error("no JSON, and no error")
		}
		again, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		got, err := readData(subnet.RawJSON(again))
		if diff := cmp.Diff(fields, got); err != nil || diff != "" {
			t.Errorf("read again from %s: %v (-want +got):\n%s", again, err, diff)
		}
	})
}

// line is s as /proc/net/udp or udp6 has it.
func (s boundSocket) line() string {
	b := s.at.Addr().AsSlice()
	for i := 0; i < len(b); i += 4 {
		binary.BigEndian.PutUint32(b[i:], binary.NativeEndian.Uint32(b[i:]))
	}
	return fmt.Sprintf("1: %X:%04X 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 %s 2 0 0\n", b, s.at.Port(), s.inode)
}

// FuzzParseSockets: each line is a socket or nothing, whatever stands around it, and a
// socket written as the kernel does is read as the same.
func FuzzParseSockets(f *testing.F) {
	const (
		title = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n"
		four  = "  357: 0100007F:205D 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 23456 2 0000000000000000 0\n"
		six   = "  357: 00000000000000000000000001000000:205D 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 23457 2 0000000000000000 0\n"
		mixed = "  357: 0000000000000000FFFF00000100007F:205D 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 23458 2 0000000000000000 0\n"
	)
	for _, text := range []string{"", title, title + four + six + mixed, four[:40], "a b c d e f g h i j", "1: 0100007F:XX a b c d e f g h i", "1: 01007F:2020 a b c d e f g h i", "1: :1 a b c d e f g h i"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		list := parseSockets(text)
		if lines := strings.Count(text, "\n") + 1; len(list) > lines {
			t.Errorf("%d sockets in %d lines", len(list), lines)
		}
		var again strings.Builder
		for _, s := range list {
			if !s.at.IsValid() || s.at.Addr().Is4In6() || s.inode == "" || !strings.Contains(text, s.inode) {
				t.Errorf("socket %+v", s)
			}
			again.WriteString(title + s.line())
		}
		if got := parseSockets(again.String()); !slices.Equal(got, list) {
			t.Errorf("read again as %v, want %v", got, list)
		}
		// A slow reading of one line.
		for line := range strings.Lines(text) {
			fields := strings.Fields(line)
			if len(fields) < 10 {
				continue
			}
			var b []byte
			var port uint16
			local, number, _ := strings.Cut(fields[1], ":")
			_, err := fmt.Sscanf(number+" ", "%04x ", &port)
			b, hexErr := hex.DecodeString(local)
			sound := err == nil && hexErr == nil && (len(b) == 4 || len(b) == 16) && len(number) == 4 && !strings.ContainsAny(number, "_+-xX")
			if n := len(parseSockets(line)); sound && n != 1 {
				t.Errorf("%q is %d sockets", line, n)
			}
		}
	})
}

// FuzzParseOptions: options are refused with the key that is wrong, or within their
// bounds; and those that are within, written out, are parsed as the same.
func FuzzParseOptions(f *testing.F) {
	for _, options := range []string{
		"", "{}", "null", "[]", `{"Type":"udp"}`, `{"Port":9000,"Queues":16,"Offload":"off","SourcePorts":"fixed","DirectRouting":true}`,
		`{"Port":0,"Queues":17,"Offload":"on"}`, `{"Port":0}`, `{"Queues":17}`, `{"port":1,"Port":2}`, `{"Port":"8285"}`, `{"Queues":-1}`, `{"Offload":null}`, `{"Backend":{}}`, `{"Port":1.5}`, `{"VNI":1}`, "{",
	} {
		f.Add(options)
	}
	f.Fuzz(func(t *testing.T, text string) {
		o, unknown, err := ParseOptions(&subnet.Config{Backend: subnet.RawJSON(text)})
		if err != nil {
			if !strings.Contains(err.Error(), "Backend") {
				t.Errorf("%q does not say where", err)
			}
			return
		}
		if o.Port == 0 || o.Queues < 0 || o.Queues > queuesMost {
			t.Errorf("out of bounds: %+v", o)
		}
		for _, key := range unknown {
			if !strings.HasPrefix(key, "Backend.") || strings.EqualFold(key, "Backend.Type") {
				t.Errorf("unknown key %q", key)
			}
		}
		word := func(is bool, yes, no string) string {
			if is {
				return yes
			}
			return no
		}
		again, err := json.Marshal(map[string]any{
			"Port": o.Port, "Queues": o.Queues, "DirectRouting": o.DirectRouting,
			"Offload": word(o.Whole, "off", "auto"), "SourcePorts": word(o.FixedSource, "fixed", "vary"),
		})
		if err != nil {
			t.Fatal(err)
		}
		got, unknown, err := ParseOptions(&subnet.Config{Backend: subnet.RawJSON(again)})
		if err != nil || len(unknown) != 0 || got != o {
			t.Errorf("%s is parsed as %+v, unknown %q, %v; want %+v", again, got, unknown, err, o)
		}
	})
}
