//! Whole-server tests: a real child process, killed for real, and clients nobody here wrote.
//!
//! | room | what |
//! |---|---|
//! | [`binary`] | where the `rimstone` program is, built when needed |
//! | [`server`] | a server in a child process: start, kill, stop, start again at the same place |
//! | [`command`] | the command line, run to its end |
//! | [`input`] | lines to produce: a real access log, or made up |
//! | [`history`] | what was read back, and what must be true of it |
//! | [`feed`] | a producer that records every acknowledgement |
//! | [`group`] | members of a group in child processes, what they recorded, and what must be true of it |
//! | [`calls`] | the bare generated clients, and words for their errors |
//! | [`mount`] | file systems of a test's own: an ext4 image, a tmpfs |
//! | [`wait`] | waiting for a condition with a deadline |
//! | [`skip`] | what a test says when the machine cannot run it |
//!
//! Not here: the tests themselves (`tests/tests/all`), and anything that knows a byte of the formats.
#![forbid(unsafe_code)]

pub mod binary;
pub mod calls;
pub mod command;
pub mod feed;
pub mod group;
pub mod history;
pub mod input;
pub mod mount;
pub mod server;
pub mod skip;
pub mod wait;

use std::path::PathBuf;

/// The root of the workspace.
pub fn workspace_root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests are a member of a workspace")
        .to_path_buf()
}
