//! Writes the golden directories of the format version that this build writes, one kind at a time (`generate` has the
//! kinds): `cargo run -p rimstone-log --example golden -- tests/golden/v1` for the plain ones,
//! `-- tests/golden/v1-codecs codecs` for others. `just golden VERSION` writes all of them.
//!
//! Run once for each released format version, never again for an old one: tests only read them, and
//! `HASHES` keeps them as they are.
#![forbid(unsafe_code)]

mod generate;

use std::{error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(std::env::args().nth(1).ok_or("which directory?")?);
    generate::run(&root, &std::env::args().nth(2).unwrap_or_else(|| "plain".to_owned()))
}
