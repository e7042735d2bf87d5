//! The `rimstone` binary.
fn main() {}
