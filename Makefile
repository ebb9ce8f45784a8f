# verify changes nothing and is what CI runs, without installing anything; fix changes files.
.PHONY: verify fix test conformance bench large

verify:
	cargo fmt --all -- --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo test --workspace --locked

fix:
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all

test:
	cargo test --workspace

# What others' suites say: root, stress-ng, and crates.io for what is not in target/tools yet.
conformance:
	cargo test --workspace --locked --test conformance --test fsx -- --ignored --nocapture --test-threads=1

# Quiet machine, root (to drop the page cache); figures go to bench.json.
bench:
	cargo bench -p hfcache-tests -- --out bench.json

# The sizes of the promises: 4 GiB past a node's memory.
large:
	HFCACHE_LARGE_MIB=4096 cargo test --release -p hfcache-tests --test damage memory -- --nocapture
