//! The HTTP doors: metrics and health, read from the broker. Not here: the log, topics' contents, settings;
//! anything that changes something.
#![forbid(unsafe_code)]

mod connection;
mod pages;
mod serve;

pub use serve::{Phase, serve};
