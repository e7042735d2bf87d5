//! The whole server, from outside.
#![forbid(unsafe_code)]
// A panic is how a test fails.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod bench;
mod compaction;
mod consumer;
mod cut_files;
mod damage;
mod failing_disk;
mod format;
mod full_disk;
mod group_churn;
mod group_command;
mod groups;
mod layering;
mod power_cut;
mod power_cut_compaction;
mod produce;
mod producers;
mod readme;
mod refusals;
mod replays;
mod retention;
mod slow_clients;
mod stops;
mod written;
