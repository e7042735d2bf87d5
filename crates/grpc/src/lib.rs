//! The gRPC doors: they translate messages and map errors, they decide nothing. One file per service.
//!
//! Not here: what an append, a fetch or a topic is (`rimstone-broker`), where settings come from
//! (`rimstone-server`).
#![forbid(unsafe_code)]

mod admin;
mod connection;
mod consume;
mod convert;
mod door;
mod explain;
mod group;
mod lag;
mod open;
mod options;
mod produce;
mod receive;
mod refusal;
mod replay;
mod serve;
mod status;

pub use options::GrpcOptions;
#[doc(hidden)]
pub use receive::look_at_request;
pub use serve::{Drained, ServeError, ServerFacts, serve};
