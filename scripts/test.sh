#!/usr/bin/env bash
# All that must hold before a change is taken. `make test` runs it.
set -euo pipefail
cd "$(dirname "$0")/.."

crates=(kubenet-core kubenet-ebpf kubenet-iptables kubenet-testkit)
work=$(mktemp -d)
current=
began=$SECONDS
finish() {
	local status=$?
	rm -rf "$work"
	[ $status -eq 0 ] || printf '\nmake test: FAILED at: %s\n' "$current"
}
trap finish EXIT

step() {
	current=$1
	printf '\n=== %s (after %d s)\n' "$current" $((SECONDS - began))
}
fail() {
	echo "$*" >&2
	exit 1
}


# end_after SECONDS PID: ends what a process has started, when it hangs. Each thread says first where it is.
end_after() {
	local process thread passed
	# In short pieces: the last one outlives whoever ends this.
	for ((passed = 0; passed < $1; passed += 2)); do
		sleep 2 >/dev/null 2>&1
	done
	printf '\nmake test: not done after %d s:\n' "$1"
	for process in $(cat "/proc/$2/task/$2/children"); do
		tr '\0' ' ' <"/proc/$process/cmdline" && echo
		for thread in "/proc/$process/task/"*; do
			printf '%s (%s): %s\n' "${thread##*/}" "$(cat "$thread/comm")" "$(cat "$thread/wchan")"
			cat "$thread/stack" || true
		done
		kill "$process"
	done 2>/dev/null
}

step "Set-up"
scripts/setup.sh test

step "Format of the Rust code"
cargo fmt --all --check

step "Format of the BPF code"
clang-format-19 --dry-run --Werror kubenet-ebpf/bpf/*.c kubenet-ebpf/bpf/*.h

step "The committed BPF object is what the sources give"
kubenet-ebpf/bpf/build.sh "$work/kubenet.bpf.o"
cmp "$work/kubenet.bpf.o" kubenet-ebpf/src/kubenet.bpf.o ||
	fail "kubenet-ebpf/src/kubenet.bpf.o was not built from kubenet-ebpf/bpf: run 'make bpf' and commit the object"

step "Clippy"
cargo clippy -q --keep-going --workspace --all-targets --all-features -- -D warnings

step "Documentation"
RUSTDOCFLAGS="-D warnings" cargo doc -q --keep-going --workspace --no-deps --all-features

step "Portability: the core and the testkit's model without features"
for crate in kubenet-core kubenet-testkit; do
	cargo clippy -q -p "$crate" --no-default-features -- -D warnings
done

step "Portability: nothing of Linux alone in a build for macOS"
for crate in "${crates[@]}"; do
	cargo tree -q -p "$crate" --target x86_64-apple-darwin -e normal,build --prefix none >"$work/tree"
	if grep -E '^(aya|aya-obj|libbpf-sys|netlink-[a-z-]+|rtnetlink|procfs) ' "$work/tree"; then
		fail "$crate depends on the above for every system: put it under cfg(target_os = \"linux\")"
	fi
done
# Where the standard library for macOS is installed, the crates are compiled for it, too.
if rustc --print target-libdir --target x86_64-apple-darwin 2>/dev/null | xargs -r ls >/dev/null 2>&1; then
	cargo clippy -q "${crates[@]/#/-p}" --target x86_64-apple-darwin -- -D warnings
fi

step "Tests"
shown=()
# Without root many tests are skipped, and say why.
[ "$(id -u)" = 0 ] || shown=(-- --show-output)
cargo test -q --no-fail-fast --workspace --all-features "${shown[@]}" &
tests=$!
end_after 2700 $tests &
watch=$!
passed=0
wait $tests || passed=$?
kill $watch 2>/dev/null || true
[ $passed = 0 ]

step "Packages, each built from what it would publish"
exclude=()
for member in $(sed -n 's/^members = \[\(.*\)\]/\1/p' Cargo.toml | tr -d '",'); do
	grep -q '^publish = false' "$member/Cargo.toml" &&
		exclude+=(--exclude "$(sed -n 's/^name = "\(.*\)"/\1/p' "$member/Cargo.toml" | head -n 1)")
done
cargo package -q --workspace "${exclude[@]}" --allow-dirty

printf '\nmake test: all passed in %d s\n' $((SECONDS - began))
