package native

import (
	"context"
	"errors"
	"maps"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
	"github.com/flanneld-go/flanneld-go/subnet"
)

// idle is a door to a kernel where everything is as wanted.
type idle struct {
	door
	now    Generation
	fails  error
	tables subnet.ByFamily[table]
	reads  int
}

func (k *idle) generation(context.Context) (Generation, error) { return k.now, k.fails }

func (k *idle) read(_ context.Context, f subnet.Family) (table, error) {
	k.reads++
	return k.tables[f], nil
}

// The table is read when something may have changed, and now and then.
func TestReadsWhenNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := many(3)
		k := &idle{now: Generation{1, 1}}
		for _, f := range subnet.Families() {
			var err error
			if k.tables[f], err = compile(d, f, lacks{}); err != nil {
				t.Fatal(err)
			}
		}
		table := New(Options{Log: quiet()})
		table.door = k
		apply := func(what string, reads int) {
			t.Helper()
			before := k.reads
			if err := table.Apply(t.Context(), d); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if got := (k.reads - before) / len(k.tables); got != reads {
				t.Errorf("%s: read %d times, want %d", what, got, reads)
			}
		}
		apply("at first", 1)
		apply("the same again", 0)
		k.now.id++
		apply("another generation", 1)
		apply("and again", 0)
		k.now.namespace++
		apply("another namespace", 1)
		d.Segments = slices.Clone(d.Segments)
		apply("an equal wish", 0)
		time.Sleep(ReadAnyway - time.Second) //nolint:forbidigo // the bubble's clock
		apply("shortly before the time is up", 0)
		time.Sleep(2 * time.Second) //nolint:forbidigo // the bubble's clock
		apply("when the time is up", 1)
		apply("and then", 0)
		k.fails = errors.New("not told")
		apply("no generation", 1)
		apply("still none", 1)
		k.fails = nil
		apply("told again", 1)
		apply("and trusted", 0)
	})
}

// Whatever differs in a wish counts, and what is remembered is a copy.
func TestDesiredEqual(t *testing.T) {
	base := dual()
	base.AlsoUplinks = []string{"eth1", "eth2"}
	for name, changed := range variations(reflect.ValueOf(&base).Elem(), "") {
		old := settle(Generation{1, 1}, base, subnet.ByFamily[[]string]{})
		if !old.still(Generation{1, 1}, base) {
			t.Fatalf("before %s: not equal to itself", name)
		}
		undo := changed()
		if old.still(Generation{1, 1}, base) {
			t.Errorf("a change of %s is not seen", name)
		}
		undo()
	}
}

// variations change one thing in place each, and return what undoes it.
func variations(v reflect.Value, name string) map[string]func() func() {
	out := map[string]func() func(){}
	set := func(to any) {
		out[name] = func() func() {
			old := reflect.New(v.Type()).Elem()
			old.Set(v)
			v.Set(reflect.ValueOf(to).Convert(v.Type()))
			return func() { v.Set(old) }
		}
	}
	switch v.Interface().(type) {
	case interface{ IsValid() bool }: // addresses and prefixes
		out[name] = func() func() {
			old := reflect.New(v.Type()).Elem()
			old.Set(v)
			v.SetZero()
			return func() { v.Set(old) }
		}
		return out
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			maps.Copy(out, variations(v.Field(i), name+"."+v.Type().Field(i).Name))
		}
	case reflect.Slice, reflect.Array:
		if v.Kind() == reflect.Slice && v.Len() == 0 {
			panic(name + " is empty: nothing of it would be tested")
		}
		for i := range v.Len() {
			maps.Copy(out, variations(v.Index(i), name+"["+string(rune('0'+i))+"]"))
		}
	case reflect.Bool:
		set(!v.Bool())
	case reflect.String:
		set(v.String() + "x")
	default:
		set(v.Convert(reflect.TypeFor[uint64]()).Uint() + 1)
	}
	return out
}

// What others commit moves the real generation, looking does not, and each network
// namespace has its own.
func TestCurrentGeneration(t *testing.T) {
	a, b := kerneltest.NetNS(t, kernel.Options{}), kerneltest.NetNS(t, kernel.Options{})
	ask := func(ns *kerneltest.Namespace) (g Generation) {
		ns.Do(t, func() {
			var err error
			if g, err = CurrentGeneration(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
		return g
	}
	first, other := ask(a), ask(b)
	if first == other {
		t.Errorf("two namespaces are both at %v", first)
	}
	a.Run(t, "nft", "list", "ruleset")
	if got := ask(a); got != first {
		t.Errorf("%v after a look, want %v", got, first)
	}
	a.Run(t, "nft", "add", "table", "ip", "somebody")
	if got := ask(a); got == first {
		t.Errorf("still %v after a change", got)
	}
	if got := ask(b); got != other {
		t.Errorf("%v after a change in another namespace, want %v", got, other)
	}
}

// Each deed of others is noticed by the next Apply, however often it found nothing
// to do before.
func TestNoticesOthers(t *testing.T) {
	h := newHost(t, kerneltest.NetNS(t, kernel.Options{}))
	d := dual()
	d.Tunnel.Direct = true // so that there is something for each deed
	h.apply(t, d)
	want := inOrder(h.list(t))
	for _, deed := range deeds() {
		for range 3 {
			h.apply(t, d)
		}
		h.Run(t, "nft", deed)
		before := *h.written
		h.apply(t, d)
		if got := inOrder(h.list(t)); *h.written != before+1 || got != want {
			t.Errorf("after %q: %d transactions, and\n%s\nwant\n%s", deed, *h.written-before, got, want)
		}
	}
}

// With ten thousand peers a round that finds nothing to do costs less than a
// millisecond.
func BenchmarkIdle(b *testing.B) {
	h := newHost(b, kerneltest.NetNS(b, kernel.Options{}))
	d := many(manyPeers)
	for range 2 {
		h.apply(b, d)
	}
	h.Do(b, func() {
		for b.Loop() {
			if err := h.t.Apply(context.Background(), d); err != nil {
				b.Fatal(err)
			}
		}
	})
}
