package firewall

import (
	"fmt"
	"testing"
)

// The mark is another form of the accepts: who wants none gets none.
func TestAcceptMark(t *testing.T) {
	for _, forward := range []bool{false, true} {
		for _, mark := range []bool{false, true} {
			t.Run(fmt.Sprintf("forward %t, mark %t", forward, mark), func(t *testing.T) {
				table := &fakeNative{}
				d := vxlanDesired()
				d.ForwardRules, d.AcceptMark = forward, mark
				if err := New(Options{Log: quiet(), Tools: newFakeTools(), Native: table, Firewalld: noFirewalld{}}).Apply(t.Context(), d); err != nil {
					t.Fatal(err)
				}
				if want := forward && mark; table.want.AcceptMark != want {
					t.Errorf("our own table sets the mark: %t, want %t", table.want.AcceptMark, want)
				}
			})
		}
	}
}
