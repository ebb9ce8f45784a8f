//! Real-process cluster harness, scenarios and benches.
