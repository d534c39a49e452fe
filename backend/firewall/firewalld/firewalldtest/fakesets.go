package firewalldtest

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"
)

// set is an ipset on the bus. Entries are never changed in place.
type set struct {
	Version, Short, Description, Type string
	Options                           map[string]string
	Entries                           []string
}

func refuse(code, name string) *dbus.Error {
	return dbus.NewError(busName+".Exception", []any{code + ": " + name})
}

func (f *Fake) sets() ([]string, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	names := []string{}
	for name := range f.now.sets {
		names = append(names, name)
	}
	return names, nil
}

func (f *Fake) set(of *config, name string) (set, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := of.sets[name]
	if !ok {
		return set{}, refuse("INVALID_IPSET", name)
	}
	return s, nil
}

// change replaces the entries of a set by what fn makes of them.
func (f *Fake) change(name string, fn func(entries []string) ([]string, *dbus.Error)) *dbus.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.now.sets[name]
	if !ok {
		return refuse("INVALID_IPSET", name)
	}
	var err *dbus.Error
	if s.Entries, err = fn(slices.Clone(s.Entries)); err != nil {
		return err
	}
	f.now.sets[name] = s
	return nil
}

func (f *Fake) setEntries(name string, entries []string) *dbus.Error {
	return f.change(name, func([]string) ([]string, *dbus.Error) { return entries, nil })
}

func (f *Fake) addEntry(name, entry string) *dbus.Error {
	return f.change(name, func(entries []string) ([]string, *dbus.Error) {
		if slices.Contains(entries, entry) {
			return nil, refuse("ALREADY_ENABLED", entry)
		}
		return append(entries, entry), nil
	})
}

func (f *Fake) removeEntry(name, entry string) *dbus.Error {
	return f.change(name, func(entries []string) ([]string, *dbus.Error) {
		i := slices.Index(entries, entry)
		if i < 0 {
			return nil, refuse("NOT_ENABLED", entry)
		}
		return slices.Delete(entries, i, i+1), nil
	})
}

// checkSources refuses rules that speak of a set that does not exist.
func (f *Fake) checkSources(s settings) *dbus.Error {
	rules, _ := s["rich_rules"].Value().([]string)
	for _, m := range regexp.MustCompile(`ipset="([^"]*)"`).FindAllStringSubmatch(strings.Join(rules, "\n"), -1) {
		if _, ok := f.now.sets[m[1]]; !ok {
			return refuse("INVALID_IPSET", m[1])
		}
	}
	return nil
}

func setObject(name string) dbus.ObjectPath {
	return path + dbus.ObjectPath("/config/ipset/"+strings.ReplaceAll(name, "-", "_"))
}

func (f *Fake) findSet(name string) (dbus.ObjectPath, *dbus.Error) {
	_, err := f.set(&f.saved, name)
	return setObject(name), err
}

func (f *Fake) addSet(t testing.TB, name string, s set) (dbus.ObjectPath, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.saved.sets[name]; ok {
		return "", refuse("NAME_CONFLICT", name)
	}
	f.saved.sets[name] = s
	f.export(t, setObject(name), busName+".config.ipset", map[string]any{
		"getSettings": func() (set, *dbus.Error) { return f.set(&f.saved, name) },
		"remove": func() *dbus.Error {
			f.mu.Lock()
			defer f.mu.Unlock()
			delete(f.saved.sets, name)
			return nil
		},
	})
	return setObject(name), nil
}
