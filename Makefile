# Spillway. `make` alone prints what there is.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

GO          ?= go
BIN         := $(CURDIR)/bin
VERSION     := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS     := -s -w -X main.version=$(VERSION)
# nethttpomithttp2 leaves HTTP/2 out, half a megabyte: S3 does not speak it.
BUILD       := CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -tags nethttpomithttp2

# Tools and test servers, pinned. None of them reaches go.mod.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
NATS_SERVER := github.com/nats-io/nats-server/v2@v2.15.2
VERSITYGW   := github.com/versity/versitygw/cmd/versitygw@v1.8.0
NFPM        := github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.0

T ?= .
P ?= ./...
FUZZTIME ?= 20s
BUDGET ?= 20
N ?= 200
SEED ?= 1
COUNT ?= 3
bench: N = 2000000
power: N = 500
kill: N = 1000

help: ## what there is
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## bin/spillway, everything in it
	$(BUILD) -o $(BIN)/spillway ./edge

build-small: ## bin/spillway-small, without S3
	$(BUILD),no_s3 -o $(BIN)/spillway-small ./edge
	@ls -l $(BIN)/spillway-small

run: build servers local ## the agent on loopback with a real JetStream and a real S3 beside it; Ctrl-C stops all
	@exec $(BIN)/local

local:
	@cd test && $(GO) build -o $(BIN)/local ./local

check: build $(BIN)/staticcheck ## build, vet, staticcheck, unit tests (seconds)
	@test -z "$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go'))" || { gofmt -l $$(git ls-files -co --exclude-standard '*.go'); echo 'gofmt these files'; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags no_s3 ./edge
	$(BIN)/staticcheck ./...
	$(GO) test -skip 'TestMutants$$' -run '$(T)' $(P)

test: tools check race mutants e2e ## everything CI runs: unit, race, conformance and end-to-end against real servers
	@echo 'make test: all passed'

# What runs in one goroutine is left out: framing, the ledger, records of 30 MiB, and the simulation of disks.
race: ## unit tests under the race detector
	$(GO) test -race -skip 'TestMutants$$|TestSalvage|TestRecordTooLarge|$(SIMULATED)' -run '$(T)' $$($(GO) list $(P) | grep -v '/framing\|/ledger')

mutants: ## the tests of the buffer against seeded bugs (half a minute)
	@set -o pipefail; $(GO) test -count=1 -v -run 'TestMutants$$' ./buffer | grep -v '^ *===\|^ *--- PASS'

e2e: build tools local ## conformance and end-to-end tests against the real servers and senders
	cd test && $(GO) vet -tags realvault ./... && $(BIN)/staticcheck -tags realvault ./... && $(GO) test -count=1 -run '$(T)' $(P)

tools: servers apt $(BIN)/staticcheck $(BIN)/nfpm $(BIN)/cyclonedx-gomod ## install what the tests need

servers: $(BIN)/nats-server $(BIN)/versitygw ## build the two test servers, once

$(BIN)/nats-server:
	@echo 'building nats-server (once; about half a minute)'
	@GOBIN=$(BIN) $(GO) install -v $(NATS_SERVER) 2>&1 | $(progress)

$(BIN)/versitygw:
	@echo 'building the S3 server versitygw (once; two or three minutes)'
	@GOBIN=$(BIN) $(GO) install -v $(VERSITYGW) 2>&1 | $(progress)

$(BIN)/staticcheck:
	GOBIN=$(BIN) $(GO) install $(STATICCHECK)

$(BIN)/nfpm:
	GOBIN=$(BIN) $(GO) install $(NFPM)

# It can't be installed by version: test/tools/cyclonedx says which.
$(BIN)/cyclonedx-gomod: test/tools/cyclonedx/go.mod
	cd test/tools/cyclonedx && $(GO) build -mod=readonly -o $@ github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod

# A dot for every tenth line of output, the last lines when the command failed.
progress = awk '{ l[NR % 20] = $$0 } NR % 10 == 0 { printf "." ; fflush() } END { print "" }'; status=$${PIPESTATUS[0]}; test $$status = 0 || { echo "failed: run the command above by hand to see why"; exit $$status; }

# What the end-to-end tests call, as program or file:package. syslog-ng can't be
# installed beside rsyslog: it is unpacked into bin, and what it needs is installed.
NEED := systemctl:systemd /usr/sbin/haproxy:haproxy mkfs.xfs:xfsprogs mkfs.ext4:e2fsprogs qemu-aarch64:qemu-user rpm:rpm logger:bsdutils curl:curl nc:netcat-openbsd zstd:zstd openssl:openssl python3:python3 /usr/sbin/rsyslogd:rsyslog \
	/usr/lib/*/rsyslog/lmnsd_gtls.so:rsyslog-gnutls /usr/lib/*/rsyslog/lmnsd_ossl.so:rsyslog-openssl $(BIN)/syslog-ng/usr/sbin/syslog-ng:syslog-ng-core
APT := DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300
apt:
	@for p in $(NEED); do ls $$(command -v $${p%:*} || echo $${p%:*}) >/dev/null 2>&1 || missing="$$missing $${p##*:}"; done; \
	test -z "$$missing" && exit 0; \
	test "$$(id -u)" = 0 && command -v apt-get >/dev/null || { echo "the tests need these packages of Debian:$$missing; as root, make tools installs them"; exit 1; }; \
	echo "installing$$missing"; set -e; $(APT) update; $(APT) install -y --no-install-recommends $${missing/ syslog-ng-core}; \
	case $$missing in *syslog-ng-core) mkdir -p $(BIN)/syslog-ng; cd $(BIN)/syslog-ng; $(APT) -o APT::Sandbox::User=root download syslog-ng-core; dpkg -x syslog-ng-core_*.deb .; \
	  $(APT) install -y --no-upgrade --no-install-recommends $$(dpkg-deb -f syslog-ng-core_*.deb Depends | sed 's/([^)]*)//g; s/|[^,]*//g; s/,/ /g');; esac

power: apt ## N (500) real power cuts on each of ext4, ext4 with fast commits and xfs, from SEED (1)
	cd test && SPILLWAY_POWER_N=$(N) SPILLWAY_CRASH_SEED=$(SEED) $(GO) test -count=1 -timeout 24h -v -run TestPowerCuts ./crash

kill: build apt ## N (1000) times kill -9 or SIGTERM of the agent under load from four inputs, from SEED (1)
	cd test && SPILLWAY_KILL_N=$(N) SPILLWAY_CRASH_SEED=$(SEED) $(GO) test -count=1 -timeout 24h -v -run TestKill ./crash

# Tests of the buffer on simulated disks.
SIMULATED := PowerCuts|EveryCall|EveryFault|BitFlips|EveryByte|SectorFaults|StrayWrites|FilesBetweenRuns|CursorSlots|AnyClock|TestClocks|TestModel
crash: ## simulated power cuts and faults, BUDGET times what make test does, from SEED; BUDGET=full for all of docs/reliability.md
	SPILLWAY_CRASH_BUDGET=$(BUDGET) SPILLWAY_CRASH_SEED=$(SEED) $(GO) test -count=1 -timeout 24h -v -run '$(SIMULATED)' ./buffer
ifeq ($(BUDGET),full)
	$(MAKE) power N=500 SEED=$(SEED)
	$(MAKE) kill N=1000 SEED=$(SEED)
endif

chaos: build servers ## N (200) random schedules of faults at every part, from SEED (1); a failure names its seed
	cd test && SPILLWAY_CHAOS_N=$(N) SPILLWAY_CHAOS_SEED=$(SEED) $(GO) test -count=1 -timeout 24h -v -run TestSchedules ./chaos

failover: build servers ## what failover is to show, with a million lines and two minutes of a cluster (about ten minutes)
	cd test && SPILLWAY_FAILOVER_FULL=1 $(GO) test -count=1 -timeout 1h -v -run TestFailover ./e2e

vault: build servers ## what docs/inputs.md says of Vault, with a real one: VAULT=/usr/bin/vault (ten minutes)
	cd test && SPILLWAY_VAULT_FULL=1 SPILLWAY_VAULT_BIN='$(VAULT)' $(GO) test -tags realvault -count=1 -timeout 1h -v -run TestRealVault ./e2e

bench: build servers ## the performance goals as a table; ROWS=raw,parsed N=2000000 COUNT=3 for some (docs/performance.md)
	@cd test && $(GO) test -c -o $(BIN)/bench ./bench
	@mkdir -p tmp/bench
	@cd test/bench && TMPDIR=$(CURDIR)/tmp/bench $(BIN)/bench -test.run '^TestGoals$$' -test.timeout 1h -rows '$(ROWS)' -messages $(N) -rounds $(COUNT) -profile '$(abspath $(PROFILE))' -results $(CURDIR)/tmp/bench.jsonl

microbench: servers ## benchmarks of every step
	$(GO) test -run xxx -bench . -benchmem $(P)
	cd test && $(GO) test -count=1 -run xxx -bench . -benchmem ./...

fuzz: ## every fuzz target for FUZZTIME (20s) each
	@set -e; for p in $$($(GO) list ./...); do for f in $$($(GO) test -list '^Fuzz' $$p | grep ^Fuzz); do \
	  echo "== $$p $$f"; $(GO) test -run xxx -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x $$p; done; done

ARCH ?= amd64 arm64 arm 386
DIST ?= dist

cross: $(ARCH:%=$(DIST)/spillway-linux-%) ## linux amd64, arm64, arm and 386
	@set -e; for a in $(ARCH); do GOOS=linux GOARCH=$$a $(GO) vet ./...; done
	@ls -l $^

.PHONY: FORCE
$(DIST)/spillway-linux-%: FORCE
	@mkdir -p $(DIST)
	GOOS=linux GOARCH=$* GOARM=7 $(BUILD) -o $@ ./edge

packages: $(ARCH:%=$(DIST)/spillway-linux-%) $(BIN)/nfpm ## .deb and .rpm of each in dist/; one commit gives the same bytes each time
	@set -e; for a in $(ARCH); do NFPM=$(BIN)/nfpm infra/packages/build.sh $$a $(DIST)/spillway-linux-$$a $(DIST); done

sbom: build $(BIN)/cyclonedx-gomod ## dist/spillway.cdx.json: what is in bin/spillway
	@mkdir -p $(DIST)
	$(BIN)/cyclonedx-gomod bin -json -noserial -std -version $(VERSION) -output $(DIST)/spillway.cdx.json $(BIN)/spillway
	@sed -i "s/\(\"timestamp\": \)\"[^\"]*\"/\1\"$$(TZ=UTC git log -1 --format=%cd --date=format-local:%Y-%m-%dT%H:%M:%SZ)\"/" $(DIST)/spillway.cdx.json

golden: ## rewrite golden files, then look at the diff
	$(GO) test -skip 'TestMutants$$' ./... -update; git diff --stat

clean: ## remove what was built; bin/ with the servers too
	rm -rf bin dist tmp

.PHONY: help build build-small run local check test race mutants e2e tools servers apt power kill crash chaos failover vault bench microbench fuzz cross packages sbom golden clean
