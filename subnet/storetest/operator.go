package storetest

import (
	"github.com/flanneld-go/flanneld-go/subnet"
	"github.com/flanneld-go/flanneld-go/subnet/internal/layout"
)

func operatorCases() []testCase {
	return []testCase{
		{name: "PutConfig writes the first config, and another", run: putConfig},
		{name: "PutConfig fails with its sentinel and changes nothing", run: putConfigConditions},
		{name: "TTL tells the time of a lease that another granted", run: ttlForeign},
	}
}

func putConfig(e *env) {
	s := e.store()
	w := e.load(s)
	for _, text := range []string{configText, `{"Network":"10.6.0.0/16"}`} {
		doc, err := s.PutConfig(e.ctx, text, w)
		e.ok(err)
		kv := e.get(layout.Config)
		if kv.Value != text {
			e.Errorf("config %q, want %q", kv.Value, text)
		}
		e.diff("PutConfig", subnet.Document{Text: text, Modified: kv.Modified}, doc)
		w = e.load(s)
		e.diff("Load", doc, w.Config)
	}
}

func putConfigConditions(e *env) {
	for _, c := range []struct {
		name    string
		between func(*env)
		want    error
	}{
		{"text", func(e *env) { e.put(KV{Path: layout.Config, Value: "{}"}) }, subnet.ErrConfigChanged},
		{"revision", func(e *env) { e.put(KV{Path: layout.Config, Value: configText}) }, subnet.ErrConfigChanged},
		{"deleted", func(e *env) { e.remove(layout.Config) }, subnet.ErrConfigChanged},
		{"identity", func(e *env) { e.put(KV{Path: layout.Identity, Value: "another"}) }, subnet.ErrStoreChanged},
	} {
		s, w := e.seeded()
		c.between(e)
		before := e.get(layout.Config)
		_, err := s.PutConfig(e.ctx, `{"Network":"10.7.0.0/16"}`, w)
		e.is(c.name+": PutConfig", err, c.want)
		e.diff(c.name+": config", before, e.get(layout.Config))
	}
	s, w := e.seeded()
	if _, err := s.PutConfig(e.ctx, " \n", w); err == nil {
		e.Error("PutConfig of nothing succeeds")
	}
}

func ttlForeign(e *env) {
	s, w := e.seeded()
	id := e.grant(long)
	remaining, granted, err := s.TTL(e.ctx, id)
	if err != nil || granted != long || remaining <= long/2 || remaining > long {
		e.Errorf("TTL = %s of %s, %v, want almost %s", remaining, granted, err, long)
	}
	e.ok(e.Revoke(e.ctx, id))
	_, _, err = s.TTL(e.ctx, id)
	e.is("TTL of a revoked lease", err, subnet.ErrLeaseLost)
	l := e.create(s, host(1, v4("10.5.1.0/24")), 0, w)
	_, _, err = s.TTL(e.ctx, l.ID)
	e.is("TTL of a reservation", err, subnet.ErrLeaseLost)
}
