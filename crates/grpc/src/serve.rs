//! Builds the gRPC server from the services, runs it, and ends it within a deadline.

use std::{net::SocketAddr, time::Duration};

use rimstone_broker::{Broker, Health};
use rimstone_proto::{FILE_DESCRIPTOR_SET, v1};
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    server::NamedService,
    service::Routes,
    transport::{self, Server},
};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::util::{MapRequestLayer, MapResponseLayer};

use crate::{
    admin::Admin,
    connection,
    consume::{Consume, RawReads},
    door::Door,
    explain::explain,
    group::Groups,
    lag::Lag,
    open::OpenCalls,
    options::GrpcOptions,
    produce::{Produce, ProduceDoor},
    receive::Receive,
    replay::Replay,
};

type GroupServer = v1::group_service_server::GroupServiceServer<Groups>;
type LagServer = v1::lag_service_server::LagServiceServer<Lag>;
type ReplayServer = v1::replay_service_server::ReplayServiceServer<Replay>;
type AdminServer = v1::admin_service_server::AdminServiceServer<Admin>;

/// The services whose health is told one by one; the empty name is the server as a whole.
const SERVICES: [&str; 7] = [
    "",
    ProduceDoor::NAME,
    RawReads::NAME,
    GroupServer::NAME,
    LagServer::NAME,
    ReplayServer::NAME,
    AdminServer::NAME,
];

/// Bytes that one call may be ahead of its reader: about one batch of the default size, so that one batch
/// comes in without waiting for the other side.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// The same for all calls of a connection together; times the connections, it bounds what clients can park here.
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// The longest HTTP/2 frame: batches of 1 MiB in 4 frames instead of 64. A frame is held until it is whole, so that a
/// connection can park one of these beside its windows.
const FRAME_BYTES_MAX: u32 = 256 << 10;

/// The longest request head; ours have a few hundred bytes.
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;

/// How often the device's health is looked at, which costs a lock.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);

/// Once connections are broken, their tasks end as soon as they are polled; this is only for a machine that
/// hardly gets to it.
const BREAK_WAIT_MAX: Duration = Duration::from_secs(1);

/// What the doors tell about the server besides what the broker knows.
#[derive(Debug, Clone)]
pub struct ServerFacts {
    /// The version of the program.
    pub version: &'static str,
    /// Where the records are, as `DescribeServer` shows it.
    pub data_directory: String,
    /// Where gRPC listens.
    pub grpc_address: SocketAddr,
    /// Where the web pages listen.
    pub web_address: SocketAddr,
}

/// How the last calls ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// By themselves.
    InTime,
    /// Some had to be broken: the deadline passed.
    Broken,
}

/// Why serving ended without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptors that reflection serves cannot be read.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The transport failed.
    #[error("gRPC transport: {0}")]
    Transport(#[from] transport::Error),
}

/// Serves until the broker begins its shutdown. Then health says NOT_SERVING, open streams end with UNAVAILABLE, unary
/// calls are finished. When everything is answered and no client takes anything any more, the connections that are left
/// are closed; after `drain_deadline` what is left is broken.
///
/// # Errors
/// [`ServeError`] if the server could not be built or the transport failed.
pub async fn serve(
    listener: TcpListener,
    broker: Broker,
    facts: ServerFacts,
    options: GrpcOptions,
    drain_deadline: Duration,
) -> Result<Drained, ServeError> {
    let stop = broker.shutdown_token();
    let kill = CancellationToken::new();
    let open = OpenCalls::default();
    let incoming = connection::accept(listener, options.connections_max, kill.clone(), open.clone());
    let (health, health_server) = tonic_health::server::health_reporter();
    set_health(&health, ServingStatus::Serving).await;
    let routes = routes(broker.clone(), facts, &options, open.clone())?.add_service(health_server);
    let receive = Receive::new(broker.clone(), &options);
    let stopped = tell_health(health, broker, stop.clone());
    let server = builder(&options)
        .layer(open.clone())
        .layer(MapResponseLayer::new(explain))
        .layer(MapRequestLayer::new(move |request| receive.watch(request)))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stopped);
    tokio::pin!(server);
    let drained = tokio::select! {
        served = &mut server => return served.map(|()| Drained::InTime).map_err(ServeError::from),
        () = async { stop.cancelled().await; open.answered().await } => {
            tracing::info!("everything is answered: connections of clients that do not read are closed");
            Drained::InTime
        }
        () = async { stop.cancelled().await; sleep(drain_deadline).await } => Drained::Broken,
    };
    kill.cancel();
    if timeout(BREAK_WAIT_MAX, server).await.is_err() {
        tracing::warn!("connections are still open after they were broken");
    }
    Ok(drained)
}

fn builder(options: &GrpcOptions) -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_concurrent_streams(options.streams_per_connection_max)
        .http2_keepalive_interval(Some(options.keepalive_interval))
        .http2_keepalive_timeout(Some(options.keepalive_timeout))
}

fn routes(
    broker: Broker,
    facts: ServerFacts,
    options: &GrpcOptions,
    open: OpenCalls,
) -> Result<Routes, ServeError> {
    let in_max = usize::try_from(options.request_bytes_max.get()).unwrap_or(usize::MAX);
    let out_max = usize::try_from(options.response_bytes_max.get()).unwrap_or(usize::MAX);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let door = Door::new(broker, options.request_timeout, open);
    let produce = ProduceDoor::new(Produce::new(door.clone(), options.stream_window), in_max, out_max);
    let consume = RawReads::new(Consume::new(door.clone()), in_max, out_max);
    let group = GroupServer::new(Groups::new(door.clone()))
        .max_decoding_message_size(in_max)
        .max_encoding_message_size(out_max);
    let lag = LagServer::new(Lag::new(door.clone()))
        .max_decoding_message_size(in_max)
        .max_encoding_message_size(out_max);
    let replay = ReplayServer::new(Replay::new(door.clone()))
        .max_decoding_message_size(in_max)
        .max_encoding_message_size(out_max);
    let admin = AdminServer::new(Admin::new(door, facts))
        .max_decoding_message_size(in_max)
        .max_encoding_message_size(out_max);
    Ok(Routes::new(produce)
        .add_service(consume)
        .add_service(group)
        .add_service(lag)
        .add_service(replay)
        .add_service(admin)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?))
}

/// Keeps health true, until the server stops.
async fn tell_health(mut health: HealthReporter, broker: Broker, stop: CancellationToken) {
    let mut told = ServingStatus::Serving;
    while timeout(HEALTH_INTERVAL, stop.cancelled()).await.is_err() {
        let produces = produce_status(&broker.health());
        if produces != told {
            health.set_service_status(ProduceDoor::NAME, produces).await;
            told = produces;
        }
    }
    set_health(&health, ServingStatus::NotServing).await;
    // Those who watch get the last word first, then the end of the stream.
    for service in SERVICES {
        health.clear_service_status(service).await;
    }
}

/// A failed sync ends writing until the next start. A full disk does not: it heals by itself.
fn produce_status(health: &Health) -> ServingStatus {
    match health {
        Health::Poisoned { .. } => ServingStatus::NotServing,
        Health::Healthy | Health::DiskReserveReached { .. } => ServingStatus::Serving,
    }
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for service in SERVICES {
        health.set_service_status(service, status).await;
    }
}

#[cfg(test)]
mod tests {
    use rimstone_types::ByteCount;

    use super::*;

    #[test]
    fn a_failed_sync_ends_producing_and_a_full_disk_does_not() {
        let (free, reserve) = (ByteCount(1), ByteCount(2));
        assert_eq!(produce_status(&Health::Healthy), ServingStatus::Serving);
        assert_eq!(produce_status(&Health::DiskReserveReached { free, reserve }), ServingStatus::Serving);
        let poisoned = Health::Poisoned { reason: "sync failed".to_owned() };
        assert_eq!(produce_status(&poisoned), ServingStatus::NotServing);
    }
}
