//! One request and its answer, by the ways that there are.

use std::sync::Arc;

use rimstone_client::{
    ClientError, Code, Connection, Producer,
    bare::{CallStream, Calls, Place},
};

use super::{
    options::{CallVia, Calling, Load},
    pool::Prepared,
    session::{Session, Target},
};
use crate::exit::Failure;

/// The client's producer takes so many unanswered batches for a partition.
const CLIENT_IN_FLIGHT: usize = 64;

/// A way to send requests. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) enum Caller {
    Unary(Calls),
    Stream(Arc<CallStream>),
    Client(Producer, Arc<str>),
}

impl Caller {
    /// A stream on a connection of its own.
    pub(crate) async fn stream(connection: Connection) -> Result<Self, Failure> {
        Ok(Self::Stream(Arc::new(Calls::over(connection).open_stream().await?)))
    }

    /// Those that the options ask for.
    pub(crate) async fn all(
        session: &Session,
        topic: &Target,
        calling: &Calling,
    ) -> Result<Vec<Self>, Failure> {
        let mut callers = Vec::new();
        for _ in 0..calling.connections {
            match calling.via {
                CallVia::Unary => callers.push(Self::Unary(Calls::over(session.connect()?))),
                CallVia::Stream => {
                    let calls = Calls::over(session.connect()?);
                    for _ in 0..calling.streams {
                        callers.push(Self::Stream(Arc::new(calls.open_stream().await?)));
                    }
                }
                CallVia::Client => {
                    let producer = producer(session.server(), &session.load, CLIENT_IN_FLIGHT)?
                        .linger(std::time::Duration::ZERO)
                        .build()?;
                    callers.push(Self::Client(producer, topic.name.as_str().into()));
                }
            }
        }
        Ok(callers)
    }

    /// Sends a request, waits for its answer, says where the records are.
    pub(crate) async fn call(&self, prepared: &Prepared) -> Result<Vec<Place>, ClientError> {
        match self {
            Self::Unary(calls) => calls.produce(&prepared.request).await,
            Self::Stream(stream) => stream.call(&prepared.request).await,
            Self::Client(producer, topic) => {
                let pending = producer.send(topic, prepared.record.clone()).await?;
                let delivery = pending.await.map_err(|error| error.cause)?;
                let place = |offset| Place { partition: delivery.partition, first: offset, last: offset };
                Ok(delivery.offset.map(place).into_iter().collect())
            }
        }
    }
}

/// The client's producer, as it is set for a load.
pub(crate) fn producer(
    server: &str,
    load: &Load,
    in_flight: usize,
) -> Result<rimstone_client::ProducerBuilder, Failure> {
    Ok(Producer::builder(server).compression(load.compression.compression()).in_flight(in_flight))
}

/// Whether a run goes on after this: the server has asked for less, nothing is broken.
pub(crate) fn goes_on(error: &ClientError) -> bool {
    error.code == Code::ResourceExhausted
}
