// Probe prints both of the domain's clocks, in nanoseconds, for every line that
// it reads.
package main

import (
	"bufio"
	"fmt"
	"os"

	"github.com/flanneld-go/flanneld-go/subnet"
)

func main() {
	var clock subnet.SystemClock
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		fmt.Println(clock.Now().UnixNano(), int64(clock.Uptime()))
	}
}
