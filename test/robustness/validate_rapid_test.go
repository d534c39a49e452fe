package robustness

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/flanneld-go/flanneld-go/subnet"
)

// legal is a story that is made up at random, of daemons that do what they must
// and of operators who do what they like.
type legal struct {
	*story
	r *rapid.T
	// mine is the key that each host has.
	mine map[string]string
}

// Whatever happens in a legal story, no validator complains.
func TestLegalStories(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		l := &legal{r: r, mine: map[string]string{}}
		l.story = narrate(t, rapid.IntRange(3, 5).Draw(r, "hosts"))
		for i, h := range l.Hosts {
			l.mine[h.Name] = home(i + 1)
		}
		deeds := []func(string){
			l.deleted, l.taken, l.spoilt, l.flannels, l.reserved, l.disputed, l.renamed, l.restarted, l.unconnected, l.emptied, l.rewound,
		}
		for range rapid.IntRange(1, 8).Draw(r, "deeds") {
			host := l.Hosts[rapid.IntRange(0, len(l.Hosts)-1).Draw(r, "host")].Name
			rapid.SampledFrom(deeds).Draw(r, "deed")(host)
			l.pause(12 * sec)
		}
		record := l.record()
		if found := Validate(record, Validators(DefaultBounds(record.TTL))).Violations(); len(found) > 0 {
			r.Fatal(Report(record, found))
		}
	})
}

// pause lets time pass, up to so much.
func (l *legal) pause(most time.Duration) {
	l.then(time.Duration(rapid.IntRange(0, int(most/(100*time.Millisecond))).Draw(l.r, "pause")) * 100 * time.Millisecond)
}

// slowly lets hosts see nothing new for a while that is not too long, and what
// they missed after it: two such whiles in a row would be one that is.
func (l *legal) slowly(f func(), hosts ...string) {
	for _, h := range hosts {
		l.frozen[h] = true
	}
	l.pause(4 * sec)
	f()
	for _, h := range hosts {
		l.frozen[h] = false
	}
	l.then(storySample)
}

func (l *legal) names() []string {
	var out []string
	for _, h := range l.Hosts {
		out = append(out, h.Name)
	}
	return out
}

// renumber gives a host another subnet than it had.
func (l *legal) renumber(host string) {
	for i := 1; ; i++ {
		if _, taken := l.keys[home(i)]; !taken {
			l.mine[host] = home(i)
			l.create(host, home(i))
			return
		}
	}
}

func (l *legal) deleted(host string) {
	l.byOperator(func() { l.del(l.mine[host]) })
	l.slowly(func() { l.create(host, l.mine[host]) }, host)
}

// taken: another owner holds the key for a while.
func (l *legal) taken(host string) {
	key := l.mine[host]
	l.byOperator(func() { l.put(key, stranger) })
	l.slowly(func() { l.renumber(host) }, host)
	l.pause(20 * sec)
	l.byOperator(func() { l.del(key) })
}

// spoilt: a value that cannot be read, for a while.
func (l *legal) spoilt(host string) {
	key := l.mine[host]
	l.byOperator(func() { l.put(key, "{") })
	l.slowly(func() { l.renumber(host) }, host)
	l.pause(20 * sec)
	l.byOperator(func() { l.del(key) })
}

func (l *legal) flannels(host string) {
	value := fmt.Sprintf(`{"PublicIP":"%s","BackendType":"vxlan","BackendData":{"VtepMAC":"aa:00:00:00:00:00"}}`, l.host(host).Addr)
	l.byOperator(func() { l.put(l.mine[host], value) })
	l.slowly(func() { l.take(host, l.mine[host]) }, host)
}

// reserved: the key loses its lease, and its host restarts with it; in the end it
// is deleted, and leased again.
func (l *legal) reserved(host string) {
	l.byOperator(func() { l.putBare(l.mine[host], l.value(host)) })
	l.pause(10 * sec)
	l.restart(host, sec)
	l.slowly(func() { l.take(host, l.mine[host]) }, host)
	l.pause(10 * sec)
	l.deleted(host)
}

// disputed: somebody with the same node asks, and is answered, or not.
func (l *legal) disputed(host string) {
	l.put(l.mine[host], l.value(host, askedBy("clone", "198.18.0.88")))
	if rapid.Bool().Draw(l.r, "answered") {
		l.pause(2 * sec)
		l.take(host, l.mine[host])
		return
	}
	l.then(subnet.ChallengeWait)
	l.put(l.mine[host], l.value(host, at("198.18.0.88"), as("clone")))
	l.pause(10 * sec)
	l.put(l.mine[host], l.value(host, at("198.18.0.88"), as("clone"), askedBy(l.attrs(host).Instance, l.host(host).Addr.String())))
	l.then(subnet.ChallengeWait)
	l.take(host, l.mine[host])
}

// renamed: another address or MAC, and back.
func (l *legal) renamed(host string) {
	change := rapid.SampledFrom([]func(*subnet.Attrs){
		at("198.18.0.77"),
		func(a *subnet.Attrs) { a.BackendData[subnet.IPv4] = `{"VNI":1,"VtepMAC":"aa:00:00:00:00:ff"}` },
	}).Draw(l.r, "change")
	l.put(l.mine[host], l.value(host, change))
	l.slowly(func() { l.take(host, l.mine[host]) }, l.names()...)
}

// restarted: and meanwhile the lease may expire, or go to somebody else.
func (l *legal) restarted(host string) {
	key := l.mine[host]
	l.end(host, killed)
	l.pause(8 * sec)
	what := rapid.IntRange(0, 2).Draw(l.r, "meanwhile")
	switch what {
	case 1:
		l.del(key)
	case 2:
		l.byOperator(func() { l.put(key, stranger) })
	}
	l.pause(8 * sec)
	l.start(host)
	l.slowly(func() {
		switch what {
		case 0:
			l.take(host, key)
		case 1:
			l.create(host, key)
		case 2:
			l.renumber(host)
		}
	}, host)
	if what == 2 {
		l.byOperator(func() { l.del(key) })
	}
}

// unconnected: a host sees nothing, while its key goes and others come.
func (l *legal) unconnected(host string) {
	l.cutOff(20*sec, host)
	l.frozen[host] = true
	l.pause(5 * sec)
	key := l.mine[host]
	gone := rapid.Bool().Draw(l.r, "gone")
	if gone {
		l.del(key)
	}
	other := l.Hosts[0].Name
	if other != host {
		l.deleted(other)
	}
	l.frozen[host] = true
	l.to(l.Faults[len(l.Faults)-1].Until)
	l.slowly(func() {
		if gone {
			l.create(host, key)
		}
	}, host)
}

// emptied: etcd loses everything, and everybody returns.
func (l *legal) emptied(string) {
	l.cutOff(0, l.names()...)
	l.wipe()
	l.slowly(func() {
		l.byOperator(func() { l.put("config", storyConfig) })
		for _, h := range l.Hosts {
			l.create(h.Name, l.mine[h.Name])
		}
	}, l.names()...)
}

// rewound: etcd gets back what it had a while ago, and whoever was not there yet
// or was somebody else writes what is true now.
func (l *legal) rewound(host string) {
	keys, rev := cloneKeys(l.keys), l.rev
	l.restarted(host)
	l.pause(10 * sec)
	l.restore(keys, rev)
	l.slowly(func() {
		for _, h := range l.Hosts {
			switch e, there := l.keys[l.mine[h.Name]]; {
			case !there:
				l.create(h.Name, l.mine[h.Name])
			case !strings.Contains(e.Value, l.attrs(h.Name).Instance):
				l.take(h.Name, l.mine[h.Name])
			}
		}
		for _, key := range sortedKeys(l.keys) {
			old := strings.HasPrefix(key, keySubnets)
			for _, mine := range l.mine {
				old = old && key != mine
			}
			if old {
				l.del(key)
			}
		}
	}, l.names()...)
}
