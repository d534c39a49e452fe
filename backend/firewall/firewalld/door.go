package firewalld

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/godbus/dbus/v5"
)

// Names of firewalld's on the bus.
const (
	busName      = "org.fedoraproject.FirewallD1"
	pathRuntime  = dbus.ObjectPath("/org/fedoraproject/FirewallD1")
	pathConfig   = pathRuntime + "/config"
	ifaceRuntime = busName
	ifaceZone    = busName + ".zone"
	ifacePolicy  = busName + ".policy"
	ifaceSet     = busName + ".ipset"
	ifaceDirect  = busName + ".direct"
	ifaceConfig  = busName + ".config"
)

// errAbsent: firewalld knows no policy or ipset of that name.
var errAbsent = errors.New("no such policy or ipset")

// settings are those of a zone or policy.
type settings map[string]dbus.Variant

// kind is how to ask for zones, policies or ipsets: at run time, and for the
// permanent ones, each an object with the interface config.
type kind struct{ name, iface, list, runtime, find, config, permanent string }

func zoneKind() kind {
	return kind{"zone", ifaceZone, "getZones", "getZoneSettings2", "getZoneByName", ifaceConfig + ".zone", "getSettings2"}
}

func policyKind() kind {
	return kind{"policy", ifacePolicy, "getPolicies", "getPolicySettings", "getPolicyByName", ifaceConfig + ".policy", "getSettings"}
}

func setKind() kind {
	return kind{"ipset", ifaceSet, "getIPSets", "getIPSetSettings", "getIPSetByName", ifaceConfig + ".ipset", "getSettings"}
}

// door is one visit at firewalld: a connection to the bus, for as long as Apply
// or Cleanup takes.
type door struct {
	conn *dbus.Conn
	// owner is the unique name of the firewalld that answers.
	owner string
}

// enter connects. Without a bus, or without firewalld on it, there is neither a
// door nor an error.
func (c *Client) enter(ctx context.Context) (*door, error) {
	conn, err := c.connect(ctx)
	if isAbsent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the system bus: %w", err)
	}
	owner, err := ownerOf(ctx, conn)
	if err == nil && owner != "" {
		return &door{conn, owner}, nil
	}
	return nil, errors.Join(err, conn.Close())
}

// ownerOf returns the unique name of who calls itself firewalld, "" for nobody.
func ownerOf(ctx context.Context, conn *dbus.Conn) (string, error) {
	var owner string
	err := conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, busName).Store(&owner)
	var e dbus.Error
	if errors.As(err, &e) && e.Name == "org.freedesktop.DBus.Error.NameHasNoOwner" {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("ask the bus for firewalld: %w", err)
	}
	return owner, nil
}

func (d *door) close() error {
	if err := d.conn.Close(); err != nil {
		return fmt.Errorf("close the system bus: %w", err)
	}
	return nil
}

// call does not start a firewalld that has gone meanwhile.
func (d *door) call(ctx context.Context, path dbus.ObjectPath, iface, method string, args []any, results ...any) error {
	call := d.conn.Object(d.owner, path).CallWithContext(ctx, iface+"."+method, dbus.FlagNoAutoStart, args...)
	err := call.Store(results...)
	if err == nil {
		return nil
	}
	var e dbus.Error
	if errors.As(err, &e) && (strings.HasPrefix(e.Error(), "INVALID_POLICY") || strings.HasPrefix(e.Error(), "INVALID_IPSET")) {
		return errAbsent
	}
	return fmt.Errorf("firewalld %s: %w", method, err)
}

// state is "RUNNING" if all is well.
func (d *door) state(ctx context.Context) (string, error) {
	var v dbus.Variant
	err := d.call(ctx, pathRuntime, "org.freedesktop.DBus.Properties", "Get", []any{ifaceRuntime, "state"}, &v)
	text, _ := v.Value().(string)
	return text, err
}

// rules are the rich rules that a policy has at run time.
func (d *door) rules(ctx context.Context, policy string) ([]string, error) {
	s, err := d.policy(ctx, policy)
	if err != nil {
		return nil, err
	}
	if text, _ := s["description"].Value().(string); text != description {
		return nil, &ErrForeign{policyKind().name, policy}
	}
	rules, _ := s["rich_rules"].Value().([]string)
	return rules, nil
}

func (d *door) policy(ctx context.Context, name string) (settings, error) {
	var s settings
	err := d.call(ctx, pathRuntime, ifacePolicy, "getPolicySettings", []any{name}, &s)
	return s, err
}

// setRules replaces the rich rules of a policy at run time. What is to go goes
// before what is to come comes.
func (d *door) setRules(ctx context.Context, policy string, rules []string) error {
	if rules == nil {
		rules = []string{} // of the right type on the bus
	}
	return d.call(ctx, pathRuntime, ifacePolicy, "setPolicySettings",
		[]any{policy, settings{"rich_rules": dbus.MakeVariant(rules)}})
}

// permanent returns the permanent object of a policy or set of ours.
func (d *door) permanent(ctx context.Context, k kind, name string) (dbus.ObjectPath, error) {
	var path dbus.ObjectPath
	if err := d.call(ctx, pathConfig, ifaceConfig, k.find, []any{name}, &path); err != nil {
		return "", err
	}
	text, err := d.describe(ctx, k, path)
	if err == nil && text != description {
		err = &ErrForeign{k.name, name}
	}
	return path, err
}

// describe returns the description of a permanent object.
func (d *door) describe(ctx context.Context, k kind, path dbus.ObjectPath) (text string, err error) {
	if k == setKind() {
		var s setSettings
		err := d.call(ctx, path, k.config, k.permanent, nil, &s)
		return s.Description, err
	}
	var s settings
	err = d.call(ctx, path, k.config, k.permanent, nil, &s)
	text, _ = s["description"].Value().(string)
	return text, err
}

// add makes a permanent policy without rules.
func (d *door) add(ctx context.Context, p policy) error {
	var path dbus.ObjectPath
	return d.call(ctx, pathConfig, ifaceConfig, "addPolicy", []any{p.name, settings{
		"short":         dbus.MakeVariant(p.name),
		"description":   dbus.MakeVariant(description),
		"target":        dbus.MakeVariant("CONTINUE"),
		"priority":      dbus.MakeVariant(int32(priority)),
		"ingress_zones": dbus.MakeVariant([]string{"ANY"}),
		"egress_zones":  dbus.MakeVariant([]string{p.egress}),
	}}, &path)
}

// reload makes the permanent configuration that of run time.
func (d *door) reload(ctx context.Context) error {
	return d.call(ctx, pathRuntime, ifaceRuntime, "reload", nil)
}

// masquerading returns the zone by which an interface leaves if that zone
// rewrites sources, else "".
func (d *door) masquerading(ctx context.Context, iface string) (string, error) {
	var zone string
	err := d.call(ctx, pathRuntime, ifaceZone, "getZoneOfInterface", []any{iface}, &zone)
	if err == nil && zone == "" {
		err = d.call(ctx, pathRuntime, ifaceRuntime, "getDefaultZone", nil, &zone)
	}
	if err != nil {
		return "", err
	}
	var on bool
	if err := d.call(ctx, pathRuntime, ifaceZone, "queryMasquerade", []any{zone}, &on); err != nil || !on {
		return "", err
	}
	return zone, nil
}
