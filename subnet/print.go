package subnet

import (
	"encoding/json"
	"net/netip"
	"strconv"
	"strings"
)

// AppendJSON appends l as encoding/json encodes it. Most leases it writes in one pass:
// who keeps those of thousands of hosts in a file writes each again and again.
func (l *Lease) AppendJSON(b []byte) ([]byte, error) {
	if out, usual := l.print(b); usual {
		return out, nil
	}
	text, err := json.Marshal(l)
	return append(b, text...), err
}

// print is the other way of [scanAttrs]: usual is what encoding/json would write as it
// stands.
func (l *Lease) print(b []byte) (out []byte, usual bool) {
	p := printer{b, true}
	p.raw(`{"Subnet":[`)
	p.prefix(l.Subnet[IPv4])
	p.raw(`,`)
	p.prefix(l.Subnet[IPv6])
	p.raw(`],"Attrs":`)
	p.attrs(&l.Attrs)
	p.number(`,"ID":`, int64(l.ID))
	p.number(`,"TTL":`, int64(l.TTL))
	p.number(`,"Created":`, int64(l.Created))
	p.number(`,"Modified":`, int64(l.Modified))
	p.raw(`}`)
	return p.text, p.usual
}

// printer appends to text. What is not usual makes that worthless.
type printer struct {
	text  []byte
	usual bool
}

func (p *printer) raw(s string) { p.text = append(p.text, s...) }

func (p *printer) number(name string, n int64) {
	p.raw(name)
	p.text = strconv.AppendInt(p.text, n, 10)
}

func (p *printer) prefix(of netip.Prefix) {
	p.raw(`"`)
	if of.IsValid() {
		p.text = of.AppendTo(p.text)
	}
	p.usual = p.usual && (of.IsValid() || of == netip.Prefix{})
	p.raw(`"`)
}

func (p *printer) attrs(a *Attrs) {
	p.usual = p.usual && a.Challenge.IsZero()
	p.raw(`{"PublicIP":`)
	p.address(a.PublicIP[IPv4], `"`+noPublicIP+`"`)
	p.raw(`,"PublicIPv6":`)
	p.address(a.PublicIP[IPv6], `null`)
	p.string(`,"BackendType":`, a.BackendType)
	p.data(`,"BackendData":`, a.BackendData[IPv4])
	p.data(`,"BackendV6Data":`, a.BackendData[IPv6])
	p.string(`,"Owner":`, string(a.Owner))
	p.string(`,"Instance":`, a.Instance)
	p.raw(`}`)
}

func (p *printer) address(a netip.Addr, none string) {
	if !a.IsValid() {
		p.raw(none)
		return
	}
	p.usual = p.usual && a.Zone() == ""
	p.raw(`"`)
	p.text = a.AppendTo(p.text)
	p.raw(`"`)
}

// string writes a field that is left out when it is empty.
func (p *printer) string(name, value string) {
	if value == "" {
		return
	}
	p.usual = p.usual && plain(value) && !strings.ContainsAny(value, `"\`)
	p.raw(name)
	p.raw(`"`)
	p.raw(value)
	p.raw(`"`)
}

// data writes a value that is JSON, if it is of the form that encoding/json leaves as it is.
func (p *printer) data(name string, value RawJSON) {
	if value == "" {
		return
	}
	p.raw(name)
	at := len(p.text)
	p.raw(string(value))
	if p.usual && value != "null" {
		s := scanner{p.text[at:]}
		p.usual = s.object() && len(s.rest) == 0 && plain(string(value))
	}
}

// plain reports whether encoding/json escapes nothing of a text, but what it must.
func plain(text string) bool {
	for _, c := range []byte(text) {
		if c < ' ' || c > '~' || c == '<' || c == '>' || c == '&' {
			return false
		}
	}
	return true
}
