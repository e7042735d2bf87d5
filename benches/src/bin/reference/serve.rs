//! The server: bare tonic, or the bare produce path behind it.

use std::{io::Write as _, net::SocketAddr, path::PathBuf, pin::Pin, sync::Arc};

use bytes::Bytes;
use clap::Args;
use rimstone_benches::{
    payload::Values,
    wire::{
        Answer, Append, Batch, Piece, Position, ReadRequest, Request,
        reference_server::{Reference, ReferenceServer},
    },
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Response, Status, Streaming, transport::server::TcpIncoming};

use crate::gather::Gatherer;

/// The largest message taken: as large as Rimstone's client sends.
const MESSAGE_BYTES_MAX: usize = 32 << 20;
/// Answers of one stream that may be under way.
const ANSWERS_MAX: usize = 1024;
/// The largest piece that may be asked for.
const PIECE_BYTES_MAX: u32 = 16 << 20;

/// Tuned as far as it helps on loopback: windows and frames.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;
const FRAME_BYTES: u32 = 256 << 10;

/// Serves until it is killed.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Writes what comes to files here and answers when it is synced [default: answers at once]
    #[arg(long, value_name = "DIRECTORY")]
    store: Option<PathBuf>,
}

impl Serve {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let listener = TcpListener::bind(self.listen).await?;
        println!("listening {}", listener.local_addr()?);
        std::io::stdout().flush()?;
        serve(listener, self.store).await
    }
}

/// Serves what comes to this listener.
pub(crate) async fn serve(listener: TcpListener, store: Option<PathBuf>) -> anyhow::Result<()> {
    let gatherer = store.map(|directory| Gatherer::start(&directory)).transpose()?.map(Arc::new);
    let service = ReferenceServer::new(Service { gatherer })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES)
        .add_service(service)
        // The server's own setting is for listeners that it binds itself.
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await?;
    Ok(())
}

#[derive(Clone)]
struct Service {
    gatherer: Option<Arc<Gatherer>>,
}

/// An answer, and what it waits for.
struct Later {
    answer: Answer,
    synced: Option<oneshot::Receiver<()>>,
}

impl Service {
    /// Fixes the place of a request in the order.
    async fn take(&self, request: Request) -> Later {
        let answer = answer_to(&request);
        let synced = match &self.gatherer {
            None => None,
            Some(gatherer) => Some(gatherer.take(pieces_of(request)).await),
        };
        Later { answer, synced }
    }
}

impl Later {
    async fn when_synced(self) -> Result<Answer, Status> {
        if let Some(synced) = self.synced {
            synced.await.map_err(|_| Status::internal("writing failed"))?;
        }
        Ok(self.answer)
    }
}

/// An answer of the shape that a log would give.
fn answer_to(request: &Request) -> Answer {
    let append = |partition: u32, count: u64| Append {
        partition,
        base_offset: Some(1_000_000),
        last_offset: Some(1_000_000 + count),
        append_time_ms: 1_700_000_000_000,
    };
    let appends = if request.batches.is_empty() {
        vec![append(
            request.records.first().and_then(|record| record.partition).unwrap_or(0),
            request.records.len() as u64,
        )]
    } else {
        request.batches.iter().map(|batch| append(batch.partition, 100)).collect()
    };
    let position = |at| Position { partition: 0, offset: Some(1_000_000 + at) };
    let records = (0..request.records.len() as u64).map(position).collect();
    Answer { appends, records, correlation_id: request.correlation_id }
}

fn pieces_of(request: Request) -> Vec<Bytes> {
    let mut pieces: Vec<Bytes> = request.batches.into_iter().map(|batch| batch.data).collect();
    for record in request.records {
        pieces.extend(record.key);
        pieces.extend(record.value);
    }
    pieces
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Reference for Service {
    async fn unary(&self, request: tonic::Request<Request>) -> Result<Response<Answer>, Status> {
        Ok(Response::new(self.take(request.into_inner()).await.when_synced().await?))
    }

    type BidiStream = Answers<Answer>;

    async fn bidi(
        &self,
        requests: tonic::Request<Streaming<Request>>,
    ) -> Result<Response<Self::BidiStream>, Status> {
        let mut requests = requests.into_inner();
        if self.gatherer.is_none() {
            // Nothing is waited for, so nothing needs a task of its own.
            return Ok(Response::new(answers_at_once(requests)));
        }
        let (taken, mut to_answer) = mpsc::channel::<Later>(ANSWERS_MAX);
        let (answers, stream) = mpsc::channel(ANSWERS_MAX);
        let service = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                if taken.send(service.take(request).await).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            while let Some(later) = to_answer.recv().await {
                if answers.send(later.when_synced().await).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    type ReadStream = Answers<Piece>;

    async fn read(&self, request: tonic::Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let ReadRequest { bytes, piece_bytes } = request.into_inner();
        if !(1..=PIECE_BYTES_MAX).contains(&piece_bytes) {
            return Err(Status::invalid_argument(format!("piece_bytes: 1 to {PIECE_BYTES_MAX}")));
        }
        let mut values = Values::new(piece_bytes as usize, 1);
        let pieces = (0..bytes.div_ceil(u64::from(piece_bytes))).map(move |number| {
            let batch = Batch { partition: 0, data: values.value(piece_bytes as usize) };
            Ok(Piece { partition: 0, batches: vec![batch], next_offset: number })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces))))
    }
}

/// The answer to each request, at once.
fn answers_at_once(requests: Streaming<Request>) -> Answers<Answer> {
    use tokio_stream::StreamExt as _;
    Box::pin(requests.map(|request| request.map(|request| answer_to(&request))))
}
