#!/usr/bin/env bash
# Feeds random input to what reads it. `make fuzz` runs it. FUZZ_SECONDS: time for each target of cargo-fuzz;
# FUZZ_PACKETS: how many packets the BPF programs get.
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

printf '\n=== Packets, random and mutated, through the BPF programs\n'
KUBENET_FUZZ_PACKETS="${FUZZ_PACKETS:-10000000}" KUBENET_FUZZ_SEED="${FUZZ_SEED:-$RANDOM}" \
	cargo test -q -p kubenet-ebpf --test packets -- --nocapture random_packets
