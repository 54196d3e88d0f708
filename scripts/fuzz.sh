#!/usr/bin/env bash
# Feeds random input to what reads it. `make fuzz` runs it. FUZZ_SECONDS: time for each target of cargo-fuzz.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh test
if ! cargo fuzz --version >/dev/null 2>&1; then
	echo "Installing cargo-fuzz"
	cargo install --locked cargo-fuzz
fi
rustup run nightly rustc --version >/dev/null 2>&1 || rustup toolchain install nightly --profile minimal

printf '\n=== Names of Services in iptables rules\n'
(cd kubenet-iptables && cargo +nightly fuzz run names -- -max_total_time="${FUZZ_SECONDS:-60}" -max_len=2000)
