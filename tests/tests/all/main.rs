//! The whole server, from outside.
#![forbid(unsafe_code)]
// A panic is how a test fails.
#![allow(clippy::unwrap_used)]

mod layering;
mod power_cut;
mod produce;
