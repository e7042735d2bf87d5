//! Pure deciders: (state, request) -> (records, answer), and one `replay` that applies records, live and when
//! loading.
//!
//! Not here: the store, clocks (times are passed in), tasks, waiting, any protocol (`rimstone-broker` drives).
#![forbid(unsafe_code)]

pub mod group;
pub mod lag;
pub mod replay;
