#!/bin/sh
# Builds the object that the crate embeds: build.sh [OUTPUT]
#
# Without OUTPUT it is the crate's own, which is then shown to the verifier.
#
# The same sources, compiler and headers give the same bytes wherever they stand, so that a check can
# build elsewhere and compare. CLANG and LLVM_STRIP name other tools than version 19.
set -eu

output=${1:-"$(dirname "$0")/../src/kubenet.bpf.o"}
others=$#
case $output in /*) ;; *) output=$PWD/$output ;; esac
cd "$(dirname "$0")"

clang=${CLANG:-clang-19}
strip=${LLVM_STRIP:-llvm-strip-19}
for tool in "$clang" "$strip"; do
	command -v "$tool" >/dev/null || {
		echo "build.sh: $tool is missing: install clang-19 and llvm-19, or set CLANG and LLVM_STRIP" >&2
		exit 1
	}
done

# asm/types.h stands in a directory of the architecture on Debian, and clang does not look there for bpf.
arch=/usr/include/$(uname -m)-linux-gnu
[ -d "$arch" ] || arch=/usr/include

"$clang" -target bpf -mcpu=v3 -O2 -g -std=gnu11 \
	-Wall -Wextra -Werror -Wno-unused-parameter \
	-ffile-prefix-map="$PWD"=. -fdebug-compilation-dir=. \
	-idirafter "$arch" \
	-c kubenet.bpf.c -o "$output.tmp"
"$strip" -g "$output.tmp"
mv "$output.tmp" "$output"
[ "$others" -gt 0 ] || ./verify.sh "$output"
