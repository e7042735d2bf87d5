//! Fuzzing on stable Rust: seeded mutations of a corpus, each target repairing the checks of what it mutated, so that
//! it gets past them. No coverage guides it; what is known of the formats does (`repair`).
//!
//! What must hold for every input: no panic, no hang, nothing allocated by a length that was not checked (the runner
//! limits its own memory), never wrong bytes. A failure prints its seed, which repeats it.
//!
//! Not here: what the formats mean; that is in `docs/format.md`.
#![forbid(unsafe_code)]

pub mod mutate;
pub mod repair;
pub mod runner;
pub mod targets;

pub use mutate::Random;

/// Something to fuzz.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// As it is asked for.
    pub name: &'static str,
    /// One input, made from randomness; a panic is a finding. Answers whether the input was taken for valid.
    pub run: fn(&mut Random) -> bool,
    /// Inputs of a run within the tests.
    pub in_tests: u64,
}

/// All of them.
pub const TARGETS: [Target; 8] = [
    Target { name: "batch", run: targets::batch::run, in_tests: 3000 },
    Target { name: "recovery", run: targets::recovery::run, in_tests: 300 },
    Target { name: "flip", run: targets::flip::run, in_tests: 2000 },
    Target { name: "change", run: targets::change::run, in_tests: 500 },
    Target { name: "index", run: targets::index::run, in_tests: 300 },
    Target { name: "group-record", run: targets::records::group, in_tests: 3000 },
    Target { name: "catalog-record", run: targets::records::catalog, in_tests: 3000 },
    Target { name: "grpc", run: targets::grpc::run, in_tests: 3000 },
];
