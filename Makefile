# flanneld-go. `make` alone says what there is.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
GO          ?= go
TOOL        := $(GO) tool -modfile=.tools.mod
BINARIES    := flanneld-go flannelctl flannel-lab
LDFLAGS     := -s -w -X github.com/flanneld-go/flanneld-go/cmd/internal/version.version=$(VERSION)
GOTESTSUM   := $(TOOL) gotestsum --format pkgname --format-hide-empty-pkg
# The names that `make demo` takes: HOSTS=5 BACKEND=vxlan KEEP=1.
HOSTS       ?= 3
DEMO_FLAGS   = --hosts $(HOSTS) $(if $(BACKEND),--backend $(BACKEND)) $(if $(KEEP),--keep)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile systemd/install.mk

.PHONY: build
build: ## build bin/flanneld-go, bin/flannelctl and bin/flannel-lab
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ $(addprefix ./cmd/,$(BINARIES))

.PHONY: demo
demo: build ## hosts in namespaces, containers that talk, each backend in turn
	bin/flannel-lab demo $(DEMO_FLAGS)

.PHONY: deps
deps: ## install what the tests need (Debian packages; needs root)
	test/install-deps

# The table that the tests on real machines leave is shown last, whatever came
# of them.
MATRIX      := $(CURDIR)/dist/hosts-matrix.txt
WITH_MATRIX  = mkdir -p $(dir $(MATRIX)); rm -f $(MATRIX); trap 'cat $(MATRIX) 2>/dev/null || true' EXIT; FLANNEL_TEST_MATRIX=$(MATRIX)

.PHONY: test
test: deps ## all tests with the race detector, the long matrices aside; skips are listed
	@$(GOTESTSUM) -- -race -shuffle=on -timeout 20m $(TESTFLAGS) $(shell $(GO) list ./... | grep -v "/test\(/\|$$\)")
	@$(WITH_MATRIX) $(GOTESTSUM) -- -race -shuffle=on -timeout 25m -p 1 $(TESTFLAGS) ./test/...

.PHONY: lint
lint: ## formatting, vet, staticcheck and the doors between packages
	$(TOOL) golangci-lint run ./...
	$(GO) vet ./...

.PHONY: hosts
hosts: deps ## the whole matrix on real machines: systemd, dockerd, every backend
	@$(WITH_MATRIX) FLANNEL_TEST_HOSTS=all $(TOOL) gotestsum --format testname -- -count=1 -timeout 120m $(TESTFLAGS) ./test/hosts/...

# How long one schedule of faults lasts, and its seed; without one, a fresh seed
# after the other until a run fails.
DURATION   ?= 10m
ROBUSTNESS := ROBUSTNESS_DURATION=$(DURATION) ROBUSTNESS_SEED=$(SEED) $(GO) test -count=1 -v -timeout 0 -run '^TestFreshSeed$$' $(TESTFLAGS) ./test/robustness

.PHONY: robustness
robustness: deps ## break a network of daemons by a schedule of faults: SEED=1 DURATION=10m
	$(if $(SEED),$(ROBUSTNESS),while $(ROBUSTNESS); do :; done; exit 1)

# The tests that print figures of whole hosts.
FIGURES := TestNoConfigYet|TestBadConfigWaitsForAGoodOne|TestPathsFollowTheStore|TestReplacedDaemonLosesNothing|TestSixtyFourDaemonsAtOnce|TestContainersTalk|TestBinarySize|TestMemoryWithAHundredPeers|TestOutageLosesNothing|TestLeaseTakenAway|TestStartWithoutEtcd|TestWipedEtcd|TestSilentlyDeadWatch|TestDaemonIsQuietWithoutEtcd

# What each part of the benchmarks is told. They wait until the machine is calm, at
# most 3 minutes each: the last part's load would be taken for that of others.
CALM        := --calm 3m --docs docs
# The data path: 7 minutes. With windows of half a second medians of five go to and fro.
BENCH_FLAGS ?= --rounds 5 --seconds 1 $(CALM)
# Many peers: less than 2 minutes.
SCALE_FLAGS ?= --rounds 3 $(CALM)
# Boot storms: 200 daemons, then 2,000 hosts in one process: 4 minutes.
STORM_FLAGS ?= --rate 5 $(CALM)

# Whatever becomes of one part, the others run; what was missed is said at the end.
.PHONY: bench
bench: deps build ## benchmarks into docs/: the data path, many peers, boot storms; batches to the kernel, diffs, whole hosts
	@missed=(); part() { echo "== $$1"; local name=$$1; shift; "$$@" || missed+=("$$name"); }; \
	suites() { local failed=0; $(GO) test -run '^$$' -bench . -benchmem $(TESTFLAGS) ./subnet ./backend/... || failed=1; \
		$(GO) test -count=1 -v -run '$(FIGURES)' ./test/netns || failed=1; return $$failed; }; \
	tables() { bin/flannel-lab calm --within 3m; suites | bin/flannel-lab parts --docs docs; }; \
	part "data path" bin/flannel-lab bench $(BENCH_FLAGS); \
	part "many peers" bin/flannel-lab scale $(SCALE_FLAGS); \
	part "boot storms" bin/flannel-lab storm $(STORM_FLAGS); \
	part "parts and whole hosts" tables; \
	for name in "$${missed[@]}"; do echo "bench: not as wanted: $$name; see its last lines" >&2; done; \
	((!$${#missed[@]}))

# Three rounds, a minute without etcd in the last one: 8 minutes, less than 10 with the
# wait for a calm machine as a rule.
FAULTS_FLAGS ?= --rounds 3 $(CALM)

.PHONY: faults
faults: deps build ## break a host in every way, into docs/: what is lost (PREVIOUS=path of an older daemon)
	$(if $(PREVIOUS),,GO=$(GO) test/previous-build dist/previous)
	bin/flannel-lab faults $(FAULTS_FLAGS) --previous $(or $(PREVIOUS),dist/previous/flanneld-go)

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist coverage.out

include systemd/install.mk
