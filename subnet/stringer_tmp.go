package subnet

import "strings"

// String returns the prefixes, joined by "," where there are two.
func (s Subnet) String() string {
	var parts []string
	for _, p := range s {
		if p.IsValid() {
			parts = append(parts, p.String())
		}
	}
	return strings.Join(parts, ",")
}
