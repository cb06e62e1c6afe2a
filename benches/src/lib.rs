//! The benchmarks stand in `benches/`; run them with `cargo bench`.
