//! Criterion benches, one file per room
