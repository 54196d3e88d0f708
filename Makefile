# `make` lists the targets. DEMO_ARGS are arguments for the demo, such as DEMO_ARGS="--requests 500", and
# BENCH_ARGS those for the benchmarks of datapaths, such as BENCH_ARGS=--quick.

.PHONY: help demo test fuzz coverage bpf doc fmt bench clean

help:
	@echo "make demo      run the demo: a small cluster, real requests, every datapath"
	@echo "make test      check everything that a change must pass"
	@echo "make fuzz      feed random input to what reads it, for some minutes; needs nightly Rust"
	@echo "make coverage  say what of the BPF programs the packet tests reach; needs root, some minutes"
	@echo "make bpf       rebuild the embedded BPF object from kubenet-ebpf/bpf"
	@echo "make doc       build the documentation"
	@echo "make fmt       format the Rust and the BPF code"
	@echo "make bench     run the benchmarks; those of datapaths need root, and write to target/bench"
	@echo "make clean     remove what was built"

demo:
	@scripts/setup.sh demo
	cargo run --release -p kubenet-examples --bin demo -- $(DEMO_ARGS)

test:
	@scripts/test.sh

fuzz:
	@scripts/fuzz.sh

coverage:
	@scripts/setup.sh bpf
	scripts/coverage.py

bpf:
	@scripts/setup.sh bpf
	kubenet-ebpf/bpf/build.sh

doc:
	cargo doc --workspace --no-deps --all-features

fmt:
	cargo fmt --all
	clang-format-19 -i kubenet-ebpf/bpf/*.c kubenet-ebpf/bpf/*.h

bench:
	cargo bench -p kubenet-benches
	cargo run --release -p kubenet-benches --bin iptables -- --out target/bench/iptables $(BENCH_ARGS)
	cargo run --release -p kubenet-benches --bin ebpf -- --out target/bench/ebpf $(BENCH_ARGS)

clean:
	cargo clean
