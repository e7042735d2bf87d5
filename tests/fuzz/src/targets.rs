//! What is fuzzed, one file each.

pub mod batch;
pub mod change;
pub mod directory;
pub mod flip;
pub mod grpc;
pub mod index;
pub mod records;
pub mod recovery;
