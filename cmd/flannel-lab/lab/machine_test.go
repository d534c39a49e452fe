package lab

import "testing"

func TestSoftnetDrops(t *testing.T) {
	tests := []struct {
		name, text string
		want       uint64
		fails      bool
	}{
		{name: "two CPUs", text: "06169a20 00000007 0000000f 00000000\n058bb121 0000001a 00000016 00000000\n", want: 33},
		{name: "empty", fails: true},
		{name: "one column", text: "06169a20\n", fails: true},
		{name: "no number", text: "06169a20 x\n", fails: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := softnetDrops(tt.text)
			if got != tt.want || (err != nil) != tt.fails {
				t.Errorf("softnetDrops = %d, %v; want %d, an error: %t", got, err, tt.want, tt.fails)
			}
		})
	}
	if _, err := MachineDrops(); err != nil {
		t.Errorf("this kernel's: %v", err)
	}
}
