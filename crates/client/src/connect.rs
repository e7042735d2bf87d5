//! The connection: address, HTTP/2 windows, message limits. Retrying is not here.

use std::{fmt, time::Duration};

use rimstone_proto::v1::{
    admin_service_client::AdminServiceClient, consume_service_client::ConsumeServiceClient,
    group_service_client::GroupServiceClient, lag_service_client::LagServiceClient,
    produce_service_client::ProduceServiceClient, replay_service_client::ReplayServiceClient,
};
use tonic::transport::{Channel, Endpoint};

use crate::error::ClientError;

/// Where a server listens unless told otherwise.
pub const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:9190";

/// Bytes of one stream that may be under way unread: enough for some large batches.
const STREAM_WINDOW: u32 = 8 << 20;
/// Bytes of all streams of a connection that may be under way unread.
const CONNECTION_WINDOW: u32 = 32 << 20;
/// Larger than HTTP/2's 16 KiB: fewer frames per batch.
const FRAME_SIZE: u32 = 256 << 10;
/// The largest message taken or sent: many batches of the largest size that a server takes by default,
/// and far below what would hurt.
pub(crate) const MESSAGE_BYTES_MAX: usize = 32 << 20;
/// How long to wait for a connection; a loopback or a rack answers in milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often an idle connection is probed, so that a vanished peer is noticed.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
/// How long to wait for the answer to a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to one server, made when it is first used and made again when it was lost. Cheap to clone;
/// clones share one HTTP/2 connection.
#[derive(Clone)]
pub struct Connection {
    endpoint: String,
    channel: Channel,
}

impl Connection {
    /// A connection to `endpoint`: `http://host:port`, or `host:port`. Nothing is sent yet. Must be called
    /// within a Tokio runtime.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`](crate::Code::InvalidArgument) for an address that is not one, or that asks
    /// for TLS, which there is not yet.
    pub fn new(endpoint: &str) -> Result<Self, ClientError> {
        let url = url_of(endpoint)?;
        let channel = Endpoint::from_shared(url.clone())
            .map_err(|error| ClientError::invalid(format!("{endpoint:?} is not an address: {error}")))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_SIZE)
            .http2_keep_alive_interval(PROBE_INTERVAL)
            .keep_alive_timeout(PROBE_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_lazy();
        Ok(Self { endpoint: url, channel })
    }

    /// The address.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(crate) fn produce(&self) -> ProduceServiceClient<Channel> {
        ProduceServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn consume(&self) -> ConsumeServiceClient<Channel> {
        ConsumeServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn groups(&self) -> GroupServiceClient<Channel> {
        GroupServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn lag(&self) -> LagServiceClient<Channel> {
        LagServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn replay(&self) -> ReplayServiceClient<Channel> {
        ReplayServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

fn url_of(endpoint: &str) -> Result<String, ClientError> {
    let (scheme, rest) = endpoint.split_once("://").unwrap_or(("http", endpoint));
    if scheme == "https" {
        return Err(ClientError::invalid(format!(
            "{endpoint:?} asks for TLS, which there is not yet; use http://"
        )));
    }
    let authority = rest.trim_end_matches('/');
    let port = authority.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    if scheme != "http" || authority.contains('/') || !matches!(port, Some(Ok(_))) {
        return Err(ClientError::invalid(format!(
            "{endpoint:?} is not an address; write http://host:port or host:port, for example {DEFAULT_ENDPOINT}"
        )));
    }
    Ok(format!("http://{authority}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_and_without_a_scheme() {
        assert_eq!(url_of("127.0.0.1:9190").unwrap(), "http://127.0.0.1:9190");
        assert_eq!(url_of("http://[::1]:9190/").unwrap(), "http://[::1]:9190");
        for bad in ["", "host", "ftp://host:1", "https://host:1", "host:99999", "host:1/path", "http://"] {
            let error = url_of(bad).unwrap_err();
            assert_eq!(error.code, crate::Code::InvalidArgument, "{bad}");
        }
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_resolved_is_refused_before_anything_is_sent() {
        assert!(Connection::new("http://bad host:1").is_err());
        assert!(Connection::new(DEFAULT_ENDPOINT).is_ok());
    }
}
