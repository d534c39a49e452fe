package kerneltest_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/flanneld-go/flanneld-go/backend/kernel"
	"github.com/flanneld-go/flanneld-go/backend/kernel/kerneltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFake(t *testing.T) {
	kerneltest.Suite(t, func(*testing.T) kernel.Host { return kerneltest.New() })
}

func TestNetlink(t *testing.T) {
	for name, form := range map[string]kernel.GatewayForm{
		"nexthop objects": kernel.GatewayAuto, "classic": kernel.GatewayClassic,
	} {
		t.Run(name, func(t *testing.T) {
			kerneltest.Suite(t, func(t *testing.T) kernel.Host {
				return kerneltest.NetNS(t, kernel.Options{Gateways: form})
			})
		})
	}
}
