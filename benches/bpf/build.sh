#!/bin/sh
# Builds the object that the benchmark embeds: build.sh [OUTPUT]
#
# As kubenet-ebpf/bpf/build.sh does. CLANG and LLVM_STRIP name other tools than version 19.
set -eu

output=${1:-"$(dirname "$0")/bench.bpf.o"}
case $output in /*) ;; *) output=$PWD/$output ;; esac
cd "$(dirname "$0")"

# asm/types.h stands in a directory of the architecture on Debian, and clang does not look there for bpf.
arch=/usr/include/$(uname -m)-linux-gnu
[ -d "$arch" ] || arch=/usr/include

"${CLANG:-clang-19}" -target bpf -mcpu=v3 -O2 -g -std=gnu11 \
	-Wall -Wextra -Werror -Wno-unused-parameter \
	-ffile-prefix-map="$PWD"=. -fdebug-compilation-dir=. \
	-idirafter "$arch" \
	-c bench.bpf.c -o "$output.tmp"
"${LLVM_STRIP:-llvm-strip-19}" -g "$output.tmp"
mv "$output.tmp" "$output"
