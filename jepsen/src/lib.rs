//! Faults against a real cluster in network namespaces.
