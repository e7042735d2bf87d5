//! Builds everything, binds the ports, and takes it down again in the right order.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rimstone_broker::{Broker, Clock as _, STORED_RECORDS, SystemClock};
use rimstone_grpc::{Drained, ServerFacts};
use rimstone_store::{LocalOptions, LocalStorage, MemoryStorage, Storage, StoreClock, SyncMethod};
use rimstone_web::Phase;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Backend, Config, StorageConfig},
    descriptors::raise_open_files_limit,
};

/// The version that `DescribeServer` tells.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Appends that were taken wait for their sync, and closing for the last one. A device that does not answer
/// within this time is broken, and waiting longer would only keep the process from being started again.
const CLOSE_DEADLINE: Duration = Duration::from_secs(60);

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address} ({setting}): {error}{}", bind_hint(error))]
    Bind {
        /// Which address.
        address: SocketAddr,
        /// The setting that names it.
        setting: &'static str,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// The data directory cannot be used.
    #[error("cannot open the data directory {directory} (storage.data_directory): {why}", directory = directory.display())]
    Storage {
        /// Which directory.
        directory: PathBuf,
        /// What the store said.
        why: String,
    },
    /// What the store holds cannot be served.
    #[error(transparent)]
    Broker(#[from] rimstone_broker::StartError),
}

/// Why a server ended without being asked, or could not be closed cleanly.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The gRPC doors failed.
    #[error(transparent)]
    Grpc(#[from] rimstone_grpc::ServeError),
    /// The web doors failed.
    #[error("web: {0}")]
    Web(#[source] io::Error),
    /// A task of the server panicked or was cancelled.
    #[error("a task of the server died: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// A door closed without being asked.
    #[error("the {0} server ended by itself")]
    Ended(&'static str),
    /// The store could not be closed: the next start recovers.
    #[error("closing the store: {0}")]
    Close(String),
}

/// A running server.
#[derive(Debug)]
pub struct StartedServer {
    grpc_address: SocketAddr,
    web_address: SocketAddr,
    data_directory: Option<PathBuf>,
    broker: Broker,
    sync_method: SyncMethod,
    shutdown_deadline: Duration,
    stop_web: CancellationToken,
    grpc: JoinHandle<Result<Drained, rimstone_grpc::ServeError>>,
    web: JoinHandle<io::Result<()>>,
}

/// Starts a server: binds both ports, opens the store, loads the catalog, serves. Prints nothing.
///
/// # Errors
/// [`StartError`]; nothing is left running or locked then.
pub async fn start(config: Config) -> Result<StartedServer, StartError> {
    let open_files = raise_open_files_limit();
    // Ports first: a busy one must not cost a recovery.
    let grpc_listener = bind(config.server.grpc_address, "server.grpc_address").await?;
    let web_listener = bind(config.server.web_address, "server.web_address").await?;
    let grpc_address = local_address(&grpc_listener, config.server.grpc_address, "server.grpc_address")?;
    let web_address = local_address(&web_listener, config.server.web_address, "server.web_address")?;

    // The web pages answer while data is opened: alive, not ready.
    let (phase, phase_seen) = watch::channel(Phase::Starting);
    let stop_web = CancellationToken::new();
    let web = tokio::spawn(rimstone_web::serve(web_listener, phase_seen, stop_web.clone()));
    let opened = open(&config).await;
    let (storage, broker) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            stop_web.cancel();
            drop(web.await);
            return Err(error);
        }
    };

    let data_directory = data_directory(&config.storage);
    let facts = ServerFacts {
        version: VERSION,
        data_directory: data_directory
            .as_deref()
            .map_or("(memory)".to_owned(), |path| path.display().to_string()),
        grpc_address,
        web_address,
    };
    let shutdown_deadline = config.server.shutdown_deadline;
    let grpc = tokio::spawn(rimstone_grpc::serve(
        grpc_listener,
        broker.clone(),
        facts,
        config.grpc,
        shutdown_deadline,
    ));
    phase.send_replace(Phase::Serving(broker.clone()));
    let sync_method = storage.sync_method();
    tracing::info!(%grpc_address, %web_address, open_files, sync = sync_method.name, "started");
    Ok(StartedServer {
        grpc_address,
        web_address,
        data_directory,
        broker,
        sync_method,
        shutdown_deadline,
        stop_web,
        grpc,
        web,
    })
}

/// Opens the store and loads the catalog. If the catalog cannot be served, the store is closed again.
async fn open(config: &Config) -> Result<(Arc<dyn Storage>, Broker), StartError> {
    let storage = open_storage(&config.storage).await?;
    match Broker::start(Arc::clone(&storage), config.broker.clone(), Arc::new(SystemClock)).await {
        Ok(broker) => Ok((storage, broker)),
        Err(error) => {
            if let Err(why) = storage.close().await {
                tracing::warn!(%why, "closing the store after a failed start");
            }
            Err(error.into())
        }
    }
}

async fn open_storage(config: &StorageConfig) -> Result<Arc<dyn Storage>, StartError> {
    if config.backend == Backend::Memory {
        return Ok(Arc::new(MemoryStorage::new()));
    }
    let refused = |why| StartError::Storage { directory: config.data_directory.clone(), why };
    let options = local_options(config);
    // Reads the catalog and the witness, takes the lock, looks at the device: waits for the disk.
    match spawn_blocking(move || LocalStorage::open_judged(options, Some(&STORED_RECORDS))).await {
        Ok(Ok(storage)) => Ok(storage),
        Ok(Err(error)) => Err(refused(error.to_string())),
        Err(error) => Err(refused(error.to_string())),
    }
}

fn local_options(config: &StorageConfig) -> LocalOptions {
    let mut options = LocalOptions {
        directory: config.data_directory.clone(),
        disk_reserve: config.disk_reserve,
        sync: config.sync,
        producers: Default::default(),
        clock: StoreClock(Arc::new(|| SystemClock.now())),
    };
    options.producers.producers = config.producers_per_partition;
    options.producers.expiry = config.producer_expiry;
    options
}

/// Where the records are, as an absolute path; `None` in memory.
fn data_directory(config: &StorageConfig) -> Option<PathBuf> {
    match config.backend {
        Backend::Memory => None,
        Backend::Local => Some(
            std::path::absolute(&config.data_directory).unwrap_or_else(|_| config.data_directory.clone()),
        ),
    }
}

impl StartedServer {
    /// Where gRPC listens.
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc_address
    }

    /// Where the web pages listen.
    pub fn web_address(&self) -> SocketAddr {
        self.web_address
    }

    /// Where the records are; `None` in memory.
    pub fn data_directory(&self) -> Option<&Path> {
        self.data_directory.as_deref()
    }

    /// How appends become durable, and why so.
    pub fn sync_method(&self) -> &SyncMethod {
        &self.sync_method
    }

    /// Topics there are, the server's own not counted, and their partitions.
    pub fn contents(&self) -> (u32, u32) {
        let server = self.broker.describe_server();
        (server.topics, server.partitions)
    }

    /// Resolves when a door fails, which it does not do by itself. Call [`StartedServer::stop`] then.
    pub async fn failed(&mut self) -> StopError {
        tokio::select! {
            ended = &mut self.grpc => match ended {
                Ok(Ok(_)) => StopError::Ended("gRPC"),
                Ok(Err(error)) => error.into(),
                Err(error) => error.into(),
            },
            ended = &mut self.web => match ended {
                Ok(Ok(())) => StopError::Ended("web"),
                Ok(Err(error)) => StopError::Web(error),
                Err(error) => error.into(),
            },
        }
    }

    /// Stops in order: new work is refused, what is in flight is finished or broken at the deadline, streams
    /// end, everything is synced, the data directory is marked clean. `/readyz` answers 503 meanwhile.
    ///
    /// # Errors
    /// [`StopError::Close`] if the store could not be closed: the next start recovers.
    pub async fn stop(self) -> Result<(), StopError> {
        self.broker.begin_shutdown();
        if !self.grpc.is_finished() {
            match self.grpc.await {
                Ok(Ok(Drained::InTime)) => {}
                Ok(Ok(Drained::Broken)) => {
                    tracing::warn!("calls were broken: server.shutdown_deadline has passed");
                }
                // The store is closed all the same; what failed is told here, where nobody else hears of it.
                Ok(Err(error)) => tracing::error!(%error, "the gRPC server failed while it stopped"),
                Err(error) => tracing::error!(%error, "the gRPC server died while it stopped"),
            }
        }
        let closed = timeout(CLOSE_DEADLINE, self.broker.finish_shutdown(self.shutdown_deadline)).await;
        self.stop_web.cancel();
        if !self.web.is_finished() {
            drop(self.web.await);
        }
        match closed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(StopError::Close(error.to_string())),
            Err(_) => return Err(StopError::Close(format!("not done after {} s", CLOSE_DEADLINE.as_secs()))),
        }
        tracing::info!("stopped");
        Ok(())
    }
}

async fn bind(address: SocketAddr, setting: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|error| StartError::Bind { address, setting, error })
}

fn local_address(
    listener: &TcpListener,
    address: SocketAddr,
    setting: &'static str,
) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|error| StartError::Bind { address, setting, error })
}

fn bind_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another process has it, perhaps another rimstone",
        io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege",
        _ => "",
    }
}
