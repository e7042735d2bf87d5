//! Generated messages and services of package `rimstone.v1`. Nothing here is written by hand but the
//! names of the error reasons; what the messages mean is said in `proto/rimstone/v1/*.proto`.
#![forbid(unsafe_code)]

/// Package `rimstone.v1`.
#[allow(missing_docs, missing_debug_implementations, clippy::all)]
pub mod v1 {
    tonic::include_proto!("rimstone.v1");
}

pub use prost::Message;

/// The descriptors of every file in `proto/`, with comments, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The domain of every `google.rpc.ErrorInfo` that this server sends.
pub const ERROR_DOMAIN: &str = "rimstone.v1";
