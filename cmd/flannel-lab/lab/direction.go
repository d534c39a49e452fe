package lab

// Direction is a way across a host's uplink, or a set of them.
type Direction uint8

// The two ways, as the host sees them.
const (
	Out Direction = 1 << iota
	In
	Both = Out | In
)

// String reads as "out", "in" or "both ways".
func (d Direction) String() string {
	switch d {
	case 0:
		return "neither way"
	case Out:
		return "out"
	case In:
		return "in"
	case Both:
		return "both ways"
	default:
		return "no direction"
	}
}

// opposite is the way back of Out or In.
func (d Direction) opposite() Direction { return Both &^ d }
