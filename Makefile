# skep: run `make help` for the targets.
SHELL      := /bin/sh
.DEFAULT_GOAL := help

GO         ?= go
VERSION    ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo 0.1.0-dev)
COMMIT     ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
LDFLAGS    := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)
GOBUILD    := CGO_ENABLED=0 $(GO) build -trimpath -ldflags "$(LDFLAGS)"
# Tools need no version: without it their binaries stay the same over commits.
GOTOOL     := CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w"
export PATH := $(CURDIR)/bin:$(PATH)

.PHONY: up
up: install-deps docker-cli build ## start a one-node swarm here and the demo stack: nginx, a web program in three replicas, Redis (PORT=8080 REPLICAS=3)
	@hack/up.sh

.PHONY: down
down: build ## stop what `make up` started and leave nothing behind
	@env -u DOCKER_HOST -u DOCKER_CONTEXT -u SKEP_HOST bin/skep down

.PHONY: build
build: ## build bin/skep with its helpers embedded, and the tools of demo and tests
	@for h in skep-shim skep-keeper; do \
	  $(GOTOOL) -o .cache/helpers/$$h ./cmd/$$h && gzip -9nc .cache/helpers/$$h >internal/embedded/bin/$$h.gz && \
	  sha256sum <.cache/helpers/$$h | cut -d' ' -f1 >internal/embedded/bin/$$h.sum || exit 1; \
	done; rm -f internal/embedded/bin/skep-shim internal/embedded/bin/skep-keeper
	@$(GOBUILD) -o bin/skep ./cmd/skep
	@$(GOTOOL) -o bin/mkimage ./cmd/mkimage
	@$(GOTOOL) -o bin/skep-bench ./cmd/skep-bench

.PHONY: test
test: install-deps docker-cli build ## run every test, the ones on real kernels and containers too
	@$(GO) run ./hack/gotest

.PHONY: sim
sim: ## replay one simulated history, event by event (SEED=…, MUTATION=… to break a law); without SEED run 1,000 seeds
	@$(GO) test ./internal/sim -count=1 $(if $(SEED),-run '^TestReplay$$' -v -args -seed $(SEED) $(if $(MUTATION),-mutation $(MUTATION)),-run '^TestSeeds$$' -v)

.PHONY: soak
soak: ## run fresh seeds of the simulator for an hour (SOAK=10m for less)
	@$(GO) test ./internal/sim -count=1 -timeout 0 -run '^TestSoak$$' -v -args -soak $(or $(SOAK),1h)

.PHONY: check
check: ## format, vet, staticcheck, import floors
	@out=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
	  if [ -n "$$out" ]; then echo "not gofmt'ed:"; echo "$$out"; exit 1; fi
	@$(GO) vet ./...
	@$(GO) tool -modfile=hack/tools/go.mod staticcheck ./...
	@$(GO) test ./internal/floors
	@echo "check: format, vet, staticcheck and floors are fine"

.PHONY: bench
bench: install-deps build ## measure the planner; virtual addresses and published ports; start, CPU, memory and removal of 1 to 100 replicas (BENCH_DOCKER_HOST=… to compare, BENCH_FLAGS="-profile cpu.prof")
	@$(GO) run ./hack/planbench
	@$(GO) run ./hack/netbench
	@bin/skep-bench -skep bin/skep $(BENCH_FLAGS)

.PHONY: bench-planner
bench-planner: ## measure the planner alone: CPU time to decide and commit swarms of up to 1,000,000 tasks
	@$(GO) run ./hack/planbench

.PHONY: install-deps
install-deps: ## install the Debian packages that skep and its tests need (quick when all is there)
	@hack/install-deps.sh

.PHONY: docker-cli
docker-cli: ## build bin/docker when the docker CLI on PATH is missing or older than 28
	@hack/docker-cli.sh

.PHONY: clean
clean: ## remove what was built (images cached for demo and tests too)
	rm -rf bin .cache internal/embedded/bin/skep-*

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile
