package dockerd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The options of Docker's bridge driver that are looked at or set here.
const (
	optionMTU        = "com.docker.network.driver.mtu"
	optionBridge     = "com.docker.network.bridge.name"
	optionMasquerade = "com.docker.network.bridge.enable_ip_masquerade"
	optionTrusted    = "com.docker.network.bridge.trusted_host_interfaces"
)

// Label marks the networks that are ours to remove.
const Label = "io.github.flanneld-go.network"

// ErrNoNetwork: there is no network of that name.
var ErrNoNetwork = errors.New("no such docker network")

// Network is one of Docker's.
type Network struct {
	ID, Name, Driver string
	// Subnets have the gateway's address where Docker names one, as
	// docker0 has it: 10.5.72.1/24.
	Subnets []netip.Prefix
	Options map[string]string
	Labels  map[string]string
}

// Ours reports whether the network was made by [Client.Keep].
func (n Network) Ours() bool { return n.Labels[Label] != "" }

// MTU is what its containers get, in bytes; 0: Docker does not say.
func (n Network) MTU() int {
	mtu, err := strconv.Atoi(n.Options[optionMTU])
	if err != nil {
		return 0
	}
	return mtu
}

// Masquerade is whether Docker rewrites the source of what leaves it, and
// whether Docker says so.
func (n Network) Masquerade() (on, known bool) {
	on, err := strconv.ParseBool(n.Options[optionMasquerade])
	return on, err == nil
}

// UnmarshalJSON reads the engine's form.
func (n *Network) UnmarshalJSON(text []byte) error {
	var raw struct {
		ID, Name, Driver string
		IPAM             struct {
			Config []struct{ Subnet, Gateway string }
		}
		Options, Labels map[string]string
	}
	if err := json.Unmarshal(text, &raw); err != nil {
		return err
	}
	*n = Network{ID: raw.ID, Name: raw.Name, Driver: raw.Driver, Options: raw.Options, Labels: raw.Labels}
	for _, c := range raw.IPAM.Config {
		if c.Subnet == "" {
			continue // a driver without addresses of its own
		}
		p, err := netip.ParsePrefix(c.Subnet)
		if err != nil {
			return fmt.Errorf("network %s: %w", raw.Name, err)
		}
		// Docker 20.10 writes some gateways with their length.
		gateway, _, _ := strings.Cut(c.Gateway, "/")
		if addr, err := netip.ParseAddr(gateway); err == nil {
			p = netip.PrefixFrom(addr, p.Bits())
		}
		n.Subnets = append(n.Subnets, p)
	}
	return nil
}

// Spec is a bridge network on this host's subnet.
type Spec struct {
	Name string
	// Addrs are the bridge's own addresses in the subnet, with its length.
	Addrs []netip.Prefix
	// MTU is in bytes.
	MTU int
	// NoMasquerade: somebody else rewrites the source of what leaves the
	// overlay, so Docker must not.
	NoMasquerade bool
	// Trusted are the interfaces that other hosts' packets come in by; for
	// an engine with TrustedInterfaces only.
	Trusted []string
}

// names are the engine's own rule.
const names = `^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`

// CheckName reports what Docker would say of a network's name.
func CheckName(name string) error {
	if !regexp.MustCompile(names).MatchString(name) {
		return fmt.Errorf("%q: must be letters, digits, and _ . - behind the first", name)
	}
	if slices.Contains([]string{"bridge", "host", "none", "default"}, name) {
		return fmt.Errorf("%q: is a network of Docker's own", name)
	}
	return nil
}

// maxInterfaceName is the kernel's IFNAMSIZ without the final zero.
const maxInterfaceName = 15

// Bridge is the name of the network's interface: the same on every host, and
// after every renewal.
func (s Spec) Bridge() string {
	if name := "br-" + s.Name; len(name) <= maxInterfaceName {
		return name
	}
	sum := sha256.Sum256([]byte(s.Name))
	return "br-" + hex.EncodeToString(sum[:6])
}

// options are those of the bridge driver.
func (s Spec) options() map[string]string {
	o := map[string]string{optionBridge: s.Bridge(), optionMTU: strconv.Itoa(s.MTU)}
	if s.NoMasquerade {
		o[optionMasquerade] = "false"
	}
	if len(s.Trusted) > 0 {
		o[optionTrusted] = strings.Join(s.Trusted, ":")
	}
	return o
}

// body is the request that makes it.
func (s Spec) body() any {
	type config struct{ Subnet, Gateway string }
	var configs []config
	six := false
	for _, p := range s.Addrs {
		configs = append(configs, config{p.Masked().String(), p.Addr().String()})
		six = six || p.Addr().Is6()
	}
	return map[string]any{
		"Name": s.Name, "CheckDuplicate": true, "Driver": "bridge", "EnableIPv6": six,
		"IPAM":    map[string]any{"Driver": "default", "Config": configs},
		"Options": s.options(), "Labels": map[string]string{Label: "1"},
	}
}

// Differences are what of n is not as s wants it, each as "mtu: 1500, want
// 1450".
func (s Spec) Differences(n Network) []string {
	var list []string
	differ := func(what string, have, want any) {
		list = append(list, fmt.Sprintf("%s: %v, want %v", what, have, want))
	}
	if n.Driver != "bridge" {
		differ("driver", n.Driver, "bridge")
	}
	if have, want := sorted(n.Subnets), sorted(s.Addrs); !slices.Equal(have, want) {
		differ("subnet", have, want)
	}
	want := s.options()
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if have := n.Options[key]; have != want[key] {
			differ(key[strings.LastIndexByte(key, '.')+1:], orAbsent(have), want[key])
		}
	}
	for _, key := range []string{optionMasquerade, optionTrusted} {
		have := n.Options[key]
		if _, ok := want[key]; !ok && have != "" && have != "true" {
			differ(key[strings.LastIndexByte(key, '.')+1:], have, "absent")
		}
	}
	return list
}

func orAbsent(text string) string {
	if text == "" {
		return "absent"
	}
	return text
}

func sorted(list []netip.Prefix) []netip.Prefix {
	return slices.SortedFunc(slices.Values(list), netip.Prefix.Compare)
}

// Kept is what [Client.Keep] did.
type Kept uint8

// The outcomes of Keep.
const (
	// Unchanged: the network was right.
	Unchanged Kept = iota
	// Created: there was none.
	Created
	// Recreated: it was another one of ours.
	Recreated
)

// InUseError: the network must be made anew, and containers belong to it.
type InUseError struct {
	Network     string
	Differences []string
	Containers  []string
}

// Error names what differs and who is in the way.
func (e *InUseError) Error() string {
	return fmt.Sprintf("docker network %s must be made anew (%s), but containers belong to it: %s",
		e.Network, strings.Join(e.Differences, "; "), strings.Join(e.Containers, ", "))
}

// ForeignError: somebody else made a network of our name, and it will not do.
type ForeignError struct {
	Network     string
	Differences []string
}

// Error names what differs.
func (e *ForeignError) Error() string {
	return fmt.Sprintf("docker network %s was made by somebody else and is not as it must be (%s)", e.Network, strings.Join(e.Differences, "; "))
}

// Keep makes Docker have the network, and calls it right if it is, whoever made
// it. One of ours that is not right is made anew, if no container belongs to it:
// [*InUseError], [*ForeignError]. Containers that are stopped count: they would
// not start again.
func (c *Client) Keep(ctx context.Context, s Spec) (Kept, error) {
	if err := CheckName(s.Name); err != nil {
		return Unchanged, fmt.Errorf("docker network %w", err)
	}
	api, _, err := c.negotiate(ctx)
	if err != nil {
		return Unchanged, err
	}
	n, err := c.network(ctx, api, s.Name)
	if errors.Is(err, ErrNoNetwork) {
		return Created, c.create(ctx, api, s)
	}
	if err != nil {
		return Unchanged, err
	}
	differences := s.Differences(n)
	if len(differences) == 0 {
		return Unchanged, nil
	}
	if !n.Ours() {
		return Unchanged, &ForeignError{s.Name, differences}
	}
	members, err := c.members(ctx, api, n.ID)
	if err != nil {
		return Unchanged, err
	}
	if len(members) > 0 {
		return Unchanged, &InUseError{s.Name, differences, members}
	}
	if err := c.remove(ctx, api, n); err != nil {
		return Unchanged, err
	}
	return Recreated, c.create(ctx, api, s)
}

// Drop removes the network if it is ours and no container belongs to it, and
// reports whether there is none of ours any more.
func (c *Client) Drop(ctx context.Context, name string) (gone bool, err error) {
	api, _, err := c.negotiate(ctx)
	if err != nil {
		return false, err
	}
	n, err := c.network(ctx, api, name)
	if errors.Is(err, ErrNoNetwork) || err == nil && !n.Ours() {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	members, err := c.members(ctx, api, n.ID)
	if err != nil {
		return false, err
	}
	if len(members) > 0 {
		return false, &InUseError{name, []string{"it is no longer wanted"}, members}
	}
	return true, c.remove(ctx, api, n)
}

// Networks lists all networks.
func (c *Client) Networks(ctx context.Context) ([]Network, error) {
	api, _, err := c.negotiate(ctx)
	if err != nil {
		return nil, err
	}
	var list []Network
	if err := c.call(ctx, http.MethodGet, "/v"+api+"/networks", nil, &list); err != nil {
		return nil, fmt.Errorf("list docker networks: %w", err)
	}
	return list, nil
}

// network returns the one of that name. [ErrNoNetwork]: there is none.
func (c *Client) network(ctx context.Context, api, name string) (Network, error) {
	var n Network
	err := c.call(ctx, http.MethodGet, "/v"+api+"/networks/"+url.PathEscape(name), nil, &n)
	var refusal *APIError
	if errors.As(err, &refusal) && refusal.Status == http.StatusNotFound {
		return Network{}, fmt.Errorf("%w: %s", ErrNoNetwork, name)
	}
	if err == nil && n.Name != name {
		return Network{}, fmt.Errorf("%w: %s", ErrNoNetwork, name) // the engine also finds by the start of an id
	}
	if err != nil {
		return Network{}, fmt.Errorf("look at docker network %s: %w", name, err)
	}
	return n, nil
}

func (c *Client) create(ctx context.Context, api string, s Spec) error {
	if err := c.call(ctx, http.MethodPost, "/v"+api+"/networks/create", s.body(), nil); err != nil {
		return fmt.Errorf("create docker network %s: %w", s.Name, err)
	}
	return nil
}

func (c *Client) remove(ctx context.Context, api string, n Network) error {
	if err := c.call(ctx, http.MethodDelete, "/v"+api+"/networks/"+url.PathEscape(n.ID), nil, nil); err != nil {
		return fmt.Errorf("remove docker network %s: %w", n.Name, err)
	}
	return nil
}

// members are the names of the containers that belong to a network, running or
// not.
func (c *Client) members(ctx context.Context, api, id string) ([]string, error) {
	filters, err := json.Marshal(map[string][]string{"network": {id}})
	if err != nil {
		return nil, err
	}
	var list []struct {
		ID    string `json:"Id"`
		Names []string
	}
	path := "/v" + api + "/containers/json?all=1&filters=" + url.QueryEscape(string(filters))
	if err := c.call(ctx, http.MethodGet, path, nil, &list); err != nil {
		return nil, fmt.Errorf("list docker containers: %w", err)
	}
	var members []string
	for _, m := range list {
		name := m.ID
		if len(m.Names) > 0 {
			name = strings.TrimPrefix(m.Names[0], "/")
		}
		members = append(members, name)
	}
	slices.Sort(members)
	return members, nil
}
