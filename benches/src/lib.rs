//! What the programs of this package share: payloads, latencies, the references' protocol, runs of programs and the
//! table that comes of them. The criterion benches, one file per room, lie in `benches/`.
//!
//! Not here, on purpose: anything of the server, which is run as a program. What it is compared with must not get
//! better or worse with it.
#![forbid(unsafe_code)]

pub mod lab;
pub mod options;
pub mod payload;
pub mod row;
pub mod stats;
pub mod table;

/// The references' own messages and service.
#[allow(missing_docs, missing_debug_implementations, clippy::all)]
pub mod wire {
    tonic::include_proto!("reference");
}
