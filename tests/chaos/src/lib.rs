//! Faults from seeds against a real server, histories of its clients, and a checker of both.
//!
//! | room | what |
//! |---|---|
//! | [`value`] | what a record holds, made from its number |
//! | [`event`] | what clients write down |
//! | [`encode`] | a batch written by docs/format.md |
//! | [`files`] | segment files read by docs/format.md |
//! | [`clients`] | tasks that use the server and write down what comes of it |
//! | [`facts`] | everything that is known of a run in the end |
//! | [`check`] | what must be true of it: ten rules |
//! | [`world`] | a run: a server, its clients, two more starts in the end |
//! | [`schedule`] | the matrix: what is done to the server |
//! | [`proxy`] | a network that loses answers |
//! | [`history`] | much data in little memory |
//! | [`tally`] | what was run so far |
//!
//! Not here: code of the log or of batches that the server shares.
#![forbid(unsafe_code)]

pub mod check;
pub mod clients;
pub mod encode;
pub mod event;
pub mod facts;
pub mod files;
pub mod history;
pub mod proxy;
pub mod schedule;
pub mod tally;
pub mod value;
pub mod world;
