package robustness

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Violation is one thing that must never happen, and did.
type Violation struct {
	// Validator is the name of the one that found it.
	Validator string
	At        time.Duration
	// Host may be empty.
	Host string
	// Message says what is wrong, and what would be right.
	Message string
}

// Error prints all of it in a line.
func (v Violation) Error() string {
	where := v.Host
	if where != "" {
		where += ": "
	}
	return fmt.Sprintf("%s at %s: %s%s", v.Validator, v.At.Round(time.Millisecond), where, v.Message)
}

// Validator judges one property.
type Validator struct {
	Name string
	// Property is the rule, in a sentence.
	Property string
	Check    func(*Record) []Violation
}

// Validate returns what every validator finds in r, in the order of time.
func Validate(r *Record, validators []Validator) []Violation {
	var found []Violation
	for _, v := range validators {
		found = append(found, v.Check(r)...)
	}
	slices.SortStableFunc(found, func(a, b Violation) int { return cmp.Compare(a.At, b.At) })
	return found
}
