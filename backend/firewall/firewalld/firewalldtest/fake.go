package firewalldtest

import (
	"maps"
	"strconv"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"
)

const (
	busName = "org.fedoraproject.FirewallD1"
	path    = dbus.ObjectPath("/org/fedoraproject/FirewallD1")
)

type settings = map[string]dbus.Variant

// Fake answers on the bus as firewalld does to a firewalld.Client, without a
// kernel. It has one zone, "public".
type Fake struct {
	conn *dbus.Conn

	mu sync.Mutex
	// state is what it says of itself.
	state string
	// now is the configuration of run time, saved the permanent one.
	now, saved config
	// numbers of the objects of permanent policies.
	objects map[string]int
}

type config struct {
	zones, policies map[string]settings
	sets            map[string]set
}

func (c config) clone() config {
	return config{cloneAll(c.zones), cloneAll(c.policies), maps.Clone(c.sets)}
}

func cloneAll(all map[string]settings) map[string]settings {
	out := map[string]settings{}
	for name, s := range all {
		out[name] = maps.Clone(s)
	}
	return out
}

// NewFake puts a fake on the bus until the test ends.
func NewFake(t testing.TB, bus *Bus) *Fake {
	t.Helper()
	conn, err := bus.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // the bus may have ended
	f := &Fake{conn: conn, state: "RUNNING", objects: map[string]int{}}
	f.saved = config{
		zones:    map[string]settings{"public": {"masquerade": dbus.MakeVariant(false), "target": dbus.MakeVariant("default")}},
		policies: map[string]settings{}, sets: map[string]set{},
	}
	f.now = f.saved.clone()
	for iface, methods := range map[string]map[string]any{
		"org.freedesktop.DBus.Properties": {"Get": f.get},
		busName:                           {"reload": f.reload, "getDefaultZone": func() (string, *dbus.Error) { return "public", nil }},
		busName + ".zone": {
			"getZones":           func() ([]string, *dbus.Error) { return []string{"public"}, nil },
			"getZoneSettings2":   func(name string) (settings, *dbus.Error) { return f.zone(&f.now, name) },
			"setZoneSettings2":   f.setZone,
			"getZoneOfInterface": func(string) (string, *dbus.Error) { return "", nil },
			"queryMasquerade":    f.queryMasquerade,
		},
		busName + ".policy": {"getPolicies": f.policies, "getPolicySettings": f.policy, "setPolicySettings": f.setPolicy},
		busName + ".ipset": {
			"getIPSets": f.sets, "getIPSetSettings": func(name string) (set, *dbus.Error) { return f.set(&f.now, name) },
			"setEntries": f.setEntries, "addEntry": f.addEntry, "removeEntry": f.removeEntry,
		},
		busName + ".direct": {
			"getAllChains":       func() ([]struct{ A, B, C string }, *dbus.Error) { return nil, nil },
			"getAllRules":        func() ([]rule, *dbus.Error) { return nil, nil },
			"getAllPassthroughs": func() ([]passthrough, *dbus.Error) { return nil, nil },
		},
	} {
		f.export(t, path, iface, methods)
	}
	f.export(t, path+"/config", busName+".config", map[string]any{
		"getZoneByName":   func(string) (dbus.ObjectPath, *dbus.Error) { return path + "/config/zone/0", nil },
		"getPolicyByName": f.find, "addPolicy": func(name string, s settings) (dbus.ObjectPath, *dbus.Error) { return f.add(t, name, s) },
		"getIPSetByName": f.findSet, "addIPSet": func(name string, s set) (dbus.ObjectPath, *dbus.Error) { return f.addSet(t, name, s) },
	})
	f.export(t, path+"/config", busName+".config.direct", map[string]any{
		"getSettings": func() (direct, *dbus.Error) { return direct{}, nil },
	})
	f.export(t, path+"/config/zone/0", busName+".config.zone", map[string]any{
		"getSettings2": func() (settings, *dbus.Error) { return f.zone(&f.saved, "public") },
	})
	if _, err := conn.RequestName(busName, dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	return f
}

// The types of direct rules on the bus.
type (
	rule struct {
		Family, Table, Chain string
		Priority             int32
		Args                 []string
	}
	passthrough struct {
		Family string
		Args   []string
	}
	direct struct {
		Chains       []struct{ A, B, C string }
		Rules        []rule
		Passthroughs []passthrough
	}
)

func (f *Fake) export(t testing.TB, at dbus.ObjectPath, iface string, methods map[string]any) {
	t.Helper()
	if err := f.conn.ExportMethodTable(methods, at, iface); err != nil {
		t.Fatal(err)
	}
}

// Fail makes it say that it has failed.
func (f *Fake) Fail() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state = "FAILED"
}

func unknown(name string) *dbus.Error {
	return dbus.NewError(busName+".Exception", []any{"INVALID_POLICY: " + name})
}

func (f *Fake) get(string, string) (dbus.Variant, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return dbus.MakeVariant(f.state), nil
}

func (f *Fake) reload() *dbus.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = f.saved.clone()
	if err := f.conn.Emit(path, busName+".Reloaded"); err != nil {
		return dbus.MakeFailedError(err)
	}
	return nil
}

func (f *Fake) zone(of *config, name string) (settings, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(of.zones[name]), nil
}

func (f *Fake) setZone(name string, s settings) *dbus.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.Copy(f.now.zones[name], s)
	return nil
}

func (f *Fake) queryMasquerade(name string) (bool, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	on, _ := f.now.zones[name]["masquerade"].Value().(bool)
	return on, nil
}

func (f *Fake) policies() ([]string, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	names := []string{}
	for name := range f.now.policies {
		names = append(names, name)
	}
	return names, nil
}

func (f *Fake) policy(name string) (settings, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.now.policies[name]
	if !ok {
		return nil, unknown(name)
	}
	return maps.Clone(s), nil
}

func (f *Fake) setPolicy(name string, s settings) *dbus.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	old, ok := f.now.policies[name]
	if !ok {
		return unknown(name)
	}
	if err := f.checkSources(s); err != nil {
		return err
	}
	maps.Copy(old, s)
	return nil
}

func object(n int) dbus.ObjectPath {
	return path + dbus.ObjectPath("/config/policy/"+strconv.Itoa(n))
}

func (f *Fake) find(name string) (dbus.ObjectPath, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.saved.policies[name]; !ok {
		return "", unknown(name)
	}
	return object(f.objects[name]), nil
}

func (f *Fake) add(t testing.TB, name string, s settings) (dbus.ObjectPath, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.saved.policies[name]; ok {
		return "", dbus.NewError(busName+".Exception", []any{"NAME_CONFLICT: " + name})
	}
	f.saved.policies[name] = maps.Clone(s)
	f.objects[name] = len(f.objects)
	f.export(t, object(f.objects[name]), busName+".config.policy", map[string]any{
		"getSettings": func() (settings, *dbus.Error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			return maps.Clone(f.saved.policies[name]), nil
		},
		"remove": func() *dbus.Error {
			f.mu.Lock()
			defer f.mu.Unlock()
			delete(f.saved.policies, name)
			return nil
		},
	})
	return object(f.objects[name]), nil
}
