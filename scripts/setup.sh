#!/usr/bin/env bash
# Finds what a target of the Makefile needs and installs what is missing, where it is root on Debian or
# Ubuntu. Elsewhere it says what to install.
#
# scripts/setup.sh demo|test|bpf
set -euo pipefail
cd "$(dirname "$0")/.."

goal=${1:?usage: scripts/setup.sh demo|test|bpf}
rust_version=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)

has_command() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ]; }
has_header() {
	local directory
	for directory in /usr/include "/usr/include/$(uname -m)-linux-gnu"; do
		[ -e "$directory/$1" ] && return 0
	done
	return 1
}

must=() # without these packages the goal cannot be reached
may=()  # without these it is reached in part
# missing must|may PACKAGE TEST...: notes the package where the test that it is there fails
missing() {
	local importance=$1 package=$2
	shift 2
	"$@" && return 0
	if [ "$importance" = must ]; then must+=("$package"); else may+=("$package"); fi
}

build_tools() {
	missing must gcc has_command cc
	# The system libraries of libbpf, where it is among the dependencies.
	if grep -q '^name = "libbpf-sys"' Cargo.lock; then
		missing must make has_command make
		missing must pkg-config has_command pkg-config
		missing must libelf-dev has_header libelf.h
		missing must zlib1g-dev has_header zlib.h
	fi
}
bpf_tools() {
	missing must clang-19 has_command clang-19
	missing must llvm-19 has_command llvm-strip-19
	missing must clang-format-19 has_command clang-format-19
	missing must libbpf-dev has_header bpf/bpf_helpers.h
	missing must linux-libc-dev has_header linux/bpf.h
}

case $goal in
demo)
	build_tools
	# Without root the demo is a simulation, which needs neither.
	missing may iptables has_command iptables
	missing may iproute2 has_command ip
	;;
test)
	build_tools
	bpf_tools
	missing must iptables has_command iptables
	missing must iproute2 has_command ip
	missing must conntrack has_command conntrack
	;;
bpf) bpf_tools ;;
*)
	echo "set-up: unknown goal $goal" >&2
	exit 2
	;;
esac

wanted=("${must[@]}" "${may[@]}")
if [ ${#wanted[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && has_command apt-get; then
	echo "set-up: installing ${wanted[*]}"
	log=$(mktemp)
	trap 'rm -f "$log"' EXIT
	export DEBIAN_FRONTEND=noninteractive
	if ! { apt-get -q update && apt-get -q install -y -o DPkg::Lock::Timeout=300 --no-install-recommends "${wanted[@]}"; } >"$log" 2>&1 </dev/null; then
		tail -n 20 "$log" >&2
		echo "set-up: apt-get could not install: ${wanted[*]}" >&2
		[ ${#must[@]} -eq 0 ] || exit 1
		echo "set-up: going on without" >&2
	fi
elif [ ${#wanted[@]} -gt 0 ]; then
	echo "set-up: missing, by the names of Debian's packages: ${wanted[*]}" >&2
	echo "set-up: on Debian or Ubuntu: sudo apt-get install ${wanted[*]}" >&2
	[ ${#must[@]} -eq 0 ] || exit 1
	echo "set-up: going on without" >&2
fi

[ "$goal" = bpf ] && exit 0

if ! has_command cargo; then
	echo "set-up: cargo is missing: install Rust $rust_version or later from https://rustup.rs" >&2
	exit 1
fi
found=$(rustc --version | cut -d' ' -f2)
if [ "$(printf '%s\n' "$rust_version" "$found" | sort -V | head -n 1)" != "$rust_version" ]; then
	echo "set-up: Rust $rust_version or later is needed, and this is $found: run 'rustup update stable'" >&2
	exit 1
fi
if [ "$goal" = test ]; then
	for component in rustfmt clippy; do
		command=$([ $component = rustfmt ] && echo fmt || echo clippy)
		cargo "$command" --version >/dev/null 2>&1 && continue
		if ! { has_command rustup && rustup -q component add "$component"; }; then
			echo "set-up: $component is missing: run 'rustup component add $component'" >&2
			exit 1
		fi
	done
fi
echo "set-up: everything is there for: $goal"
