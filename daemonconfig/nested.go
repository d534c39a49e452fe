package daemonconfig

import (
	"errors"
	"fmt"
)

// A value may stand inside of objects that other people have keys in:
//
//	"default-network-opts": {"bridge": {"com.docker.network.driver.mtu": "1450", "x": "theirs"}}
//
// The functions here work on the text of the outermost object. Its path is the
// names inside of it; with an empty path the text is the value itself. An empty
// text is an absent value.

// lookup returns the value at path; empty: there is none. An error says that
// something else than an object is in the way.
func lookup(text string, path []string) (string, error) {
	for _, name := range path {
		if absent(text) {
			return "", nil
		}
		o, err := parseObject([]byte(text))
		if err != nil {
			return "", err
		}
		text = o.get(name)
	}
	return text, nil
}

// graft returns text with another value at path, or with none where to is
// empty. Missing objects are made; one that is empty at the end is removed,
// unless like, a former text of the whole, has it too.
func graft(text string, path []string, to, like string) (string, error) {
	if len(path) == 0 {
		return to, nil
	}
	if absent(text) {
		if to == "" {
			return text, nil
		}
		inner, err := graft("", path[1:], to, "")
		return fmt.Sprintf("{%q: %s}", path[0], inner), err
	}
	o, err := parseObject([]byte(text))
	if err != nil {
		return "", err
	}
	if len(o.members) == 0 && to != "" {
		return graft("", path, to, "") // on one line, as it would be if it had been absent
	}
	innerLike, err := lookup(like, path[:1])
	if err != nil {
		innerLike = "" // like was no object: it has nothing of this
	}
	inner, err := graft(o.get(path[0]), path[1:], to, innerLike)
	if err != nil {
		return "", err
	}
	if inner != "" {
		o, err = o.set(path[0], inner)
	} else {
		o, err = o.remove(path[0])
	}
	if err != nil {
		return "", err
	}
	if len(o.members) == 0 && like == "" {
		return "", nil
	}
	return string(o.text), nil
}

// absent reports whether text holds nothing: to dockerd null is the same.
func absent(text string) bool { return text == "" || text == "null" }

// misplaced says at which key of the file something else than an object, or a
// broken one, stands in the way of a value of ours.
func (o *object) misplaced(key string, err error) error {
	var inside *PositionError
	if errors.As(err, &inside) {
		err = inside.Err // its place is relative to the value
	}
	at := 0
	if i := o.find(key); i >= 0 {
		at = o.members[i].start
	}
	return positionError(o.text, at, fmt.Errorf("value of %q: %w", key, err))
}
