package firewalld

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"
)

// unsaved returns what a reload would change besides what is ours: the zones,
// policies, ipsets and direct rules whose configuration at run time is not the
// permanent one.
func (d *door) unsaved(ctx context.Context) ([]string, error) {
	zones, err := differing[settings](ctx, d, zoneKind())
	if err != nil {
		return nil, err
	}
	policies, err := differing[settings](ctx, d, policyKind())
	if err != nil {
		return nil, err
	}
	sets, err := differing[setSettings](ctx, d, setKind())
	if err != nil {
		return nil, err
	}
	direct, err := d.directDiffers(ctx)
	if err != nil {
		return nil, err
	}
	out := slices.Concat(zones, policies, sets)
	if direct {
		out = append(out, "direct rules")
	}
	return out, nil
}

// differing returns what is not at run time as it is permanently; the String of
// settings is the same for those of the same meaning.
func differing[S fmt.Stringer](ctx context.Context, d *door, k kind) ([]string, error) {
	var names, out []string
	if err := d.call(ctx, pathRuntime, k.iface, k.list, nil, &names); err != nil {
		return nil, err
	}
	for _, name := range names {
		if isOurs(name) {
			continue
		}
		var now, then S
		if err := d.call(ctx, pathRuntime, k.iface, k.runtime, []any{name}, &now); err != nil {
			return nil, err
		}
		var path dbus.ObjectPath
		if err := d.call(ctx, pathConfig, ifaceConfig, k.find, []any{name}, &path); err != nil {
			return nil, err
		}
		if err := d.call(ctx, path, k.config, k.permanent, nil, &then); err != nil {
			return nil, err
		}
		if now.String() != then.String() {
			out = append(out, k.name+" "+name)
		}
	}
	return out, nil
}

// String is the same for settings of the same meaning. Interfaces are left out,
// see the package's text.
func (s settings) String() string {
	var w strings.Builder
	for _, key := range slices.Sorted(maps.Keys(s)) {
		if key == "interfaces" {
			continue
		}
		v := reflect.ValueOf(s[key].Value())
		if v.Kind() != reflect.Slice {
			fmt.Fprintf(&w, "%s=%v\n", key, v)
			continue
		}
		var items []string
		for i := range v.Len() {
			items = append(items, fmt.Sprint(v.Index(i)))
		}
		slices.Sort(items)
		for _, item := range items {
			fmt.Fprintf(&w, "%s=%s\n", key, item)
		}
	}
	return w.String()
}

// direct is the configuration of direct rules: of each kind a list, in the form
// of the permanent one.
type direct struct {
	Chains       []struct{ Family, Table, Chain string }
	Rules        []directRule
	Passthroughs []struct {
		Family string
		Args   []string
	}
}

type directRule struct {
	Family, Table, Chain string
	Priority             int32
	Args                 []string
}

func (d *door) directDiffers(ctx context.Context) (bool, error) {
	var now, then direct
	for method, result := range map[string]any{
		"getAllChains": &now.Chains, "getAllRules": &now.Rules, "getAllPassthroughs": &now.Passthroughs,
	} {
		if err := d.call(ctx, pathRuntime, ifaceDirect, method, nil, result); err != nil {
			return false, err
		}
	}
	if err := d.call(ctx, pathConfig, ifaceConfig+".direct", "getSettings", nil, &then); err != nil {
		return false, err
	}
	return now.String() != then.String(), nil
}

// String is the same for the same rules in any order.
func (d direct) String() string {
	var lines []string
	for _, c := range d.Chains {
		lines = append(lines, fmt.Sprint("chain ", c))
	}
	for _, r := range d.Rules {
		lines = append(lines, fmt.Sprintf("rule %q", fmt.Sprint(r)))
	}
	for _, p := range d.Passthroughs {
		lines = append(lines, fmt.Sprint("passthrough ", p))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
