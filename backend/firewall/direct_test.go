package firewall

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const jumpRaw = "-j FLANNELD-GO-RAW"

// Where our accept in raw PREROUTING stands, and where there is none.
func TestDirectDrops(t *testing.T) {
	bridges := "*filter\n:DOCKER - [0:0]\n-A DOCKER ! -i docker0 -o docker0 -j DROP\nCOMMIT\n"
	drop := "-d 10.5.3.2/32 ! -i docker0 -j DROP"
	cases := []struct {
		name string
		// filter is what others have there, raw what they append in
		// PREROUTING; neither: there is no raw table.
		filter string
		raw    []string
		want   []string
	}{
		{name: "nobody has anything"},
		{name: "a Docker that does not drop", filter: "*filter\n:DOCKER - [0:0]\n-A DOCKER -d 10.5.3.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT\nCOMMIT\n"},
		{name: "before the first container", filter: bridges, want: []string{jumpRaw}},
		{name: "known by its chain", filter: "*filter\n:DOCKER-FORWARD - [0:0]\nCOMMIT\n", want: []string{jumpRaw}},
		{name: "one container", raw: []string{drop}, want: []string{jumpRaw, drop}},
		{
			name: "a user's drop in front", raw: []string{"-s 10.5.9.9/32 -j DROP", drop},
			want: []string{"-s 10.5.9.9/32 -j DROP", jumpRaw, drop},
		},
		{
			name: "a user's drop before the first container", filter: bridges, raw: []string{"-s 10.5.9.9/32 -j DROP"},
			want: []string{"-s 10.5.9.9/32 -j DROP", jumpRaw},
		},
		{
			name: "containers of another network", filter: bridges, raw: []string{"-d 172.18.0.2/32 ! -i br-1 -j DROP", drop},
			want: []string{"-d 172.18.0.2/32 ! -i br-1 -j DROP", jumpRaw, drop},
		},
		{
			name: "28.0: a published port", raw: []string{"-d 127.0.0.1/32 ! -i lo -p tcp -m tcp --dport 8080 -j DROP", "-d 10.5.3.2/32 ! -i docker0 -p tcp -m tcp --dport 80 -j DROP"},
			want: []string{"-d 127.0.0.1/32 ! -i lo -p tcp -m tcp --dport 8080 -j DROP", jumpRaw, "-d 10.5.3.2/32 ! -i docker0 -p tcp -m tcp --dport 80 -j DROP"},
		},
		{
			name: "29: a whole network", raw: []string{"-d 10.5.3.0/24 -i lo -j ACCEPT", "-d 10.5.3.0/24 ! -i docker0 -j DROP"},
			want: []string{"-d 10.5.3.0/24 -i lo -j ACCEPT", jumpRaw, "-d 10.5.3.0/24 ! -i docker0 -j DROP"},
		},
		{
			name: "drops that are not Docker's", raw: []string{"-d 10.5.3.2/32 -i docker0 -j DROP", "-d 10.5.3.2/32 -j DROP", "-s 10.5.0.0/16 -d 10.5.3.2/32 ! -i docker0 -j DROP"},
			want: []string{"-d 10.5.3.2/32 -i docker0 -j DROP", "-d 10.5.3.2/32 -j DROP", "-s 10.5.0.0/16 -d 10.5.3.2/32 ! -i docker0 -j DROP"},
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			onEach(t, func(t *testing.T, b *bench) {
				b.useTables(t)
				b.others(t, c.filter)
				b.appendRaw(t, c.raw...)
				before := b.save(t)
				b.apply(t, vxlanDesired())
				b.wantChain(t, tableRaw, "PREROUTING", c.want...)

				b.cleanup(t)
				if diff := cmp.Diff(sorted(before), sorted(b.save(t))); diff != "" {
					t.Errorf("after Cleanup (-before +after):\n%s", diff)
				}
			})
		})
	}
}

// useTables makes the tables that the kernel would keep after us: legacy ones,
// once used, stay.
func (b *bench) useTables(t *testing.T) {
	t.Helper()
	if !b.v.NFT {
		for _, name := range tableNames() {
			b.others(t, "*"+name+"\nCOMMIT\n")
		}
	}
}

func (b *bench) appendRaw(t *testing.T, specs ...string) {
	t.Helper()
	if len(specs) > 0 {
		b.others(t, "*raw\n-A PREROUTING "+strings.Join(specs, "\n-A PREROUTING ")+"\nCOMMIT\n")
	}
}

// What Docker appends comes behind ours by itself, and when Docker's rules go,
// ours goes behind the user's.
func TestDirectDropsComeAndGo(t *testing.T) {
	onEach(t, func(t *testing.T, b *bench) {
		b.others(t, dockerWrites(t, "28.5", 3))
		b.apply(t, vxlanDesired())
		const user = "-s 10.5.9.9/32 -j DROP"
		drop := func(n int) string { return fmt.Sprintf("-d 10.5.3.%d/32 ! -i docker0 -j DROP", n) }
		b.appendRaw(t, drop(4), user)
		want := []string{jumpRaw, drop(2), drop(3), drop(4), user}
		b.wantChain(t, tableRaw, "PREROUTING", want...)
		b.apply(t, vxlanDesired())
		b.wantChain(t, tableRaw, "PREROUTING", want...)

		b.others(t, "*raw\n-D PREROUTING "+drop(2)+"\n-D PREROUTING "+drop(3)+"\n-D PREROUTING "+drop(4)+"\nCOMMIT\n")
		b.apply(t, vxlanDesired())
		b.wantChain(t, tableRaw, "PREROUTING", user, jumpRaw)

		// Forwards are switched off, or Docker was removed.
		d := vxlanDesired()
		d.ForwardRules = false
		b.apply(t, d)
		b.wantChain(t, tableRaw, "PREROUTING", user)
		b.apply(t, vxlanDesired())
		b.others(t, "*filter\n-D FORWARD -j DOCKER-FORWARD\n-F DOCKER-FORWARD\n-X DOCKER-FORWARD\n-F DOCKER\nCOMMIT\n")
		b.apply(t, vxlanDesired())
		b.wantChain(t, tableRaw, "PREROUTING", user)
	})
}
