#!/bin/sh
# Loads the object and says how many instructions the kernel's verifier walks through for each program, of
# the 1,000,000 that it allows: verify.sh [OBJECT]
set -eu

object=${1:-"$(dirname "$0")/../src/kubenet.bpf.o"}
object=$(cd "$(dirname "$object")" && pwd)/$(basename "$object")
cd "$(dirname "$0")/.."

if [ "$(id -u)" != 0 ]; then
	echo "verify.sh: the programs were not loaded: that needs root" >&2
	exit 0
fi
command -v cargo >/dev/null || {
	echo "verify.sh: the programs were not loaded: the test that does so needs cargo" >&2
	exit 0
}
test=size::the_programs_stay_far_below_the_verifiers_limit
output=$(KUBENET_BPF_OBJECT=$object cargo test -q --test packets -- --exact --nocapture "$test" 2>&1) || {
	printf '%s\n' "$output" >&2
	echo "verify.sh: the programs cannot be loaded, or have grown too large" >&2
	exit 1
}
printf '%s\n' "$output" | grep 'instructions verified' ||
	echo "verify.sh: this kernel does not tell: 5.16 and later do" >&2
