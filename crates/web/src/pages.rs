//! The pages. Each reads, none changes anything.

use std::time::Duration;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::sync::watch;

use crate::serve::Phase;

/// The media type of Prometheus' classic text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4";

/// A scrape that takes longer than this is answered with an error; scrapers give up after about as long.
const METRICS_DEADLINE: Duration = Duration::from_secs(10);

const INDEX: &str = "rimstone\n\n\
    /metrics  figures in the Prometheus text format\n\
    /livez    200 while the process runs\n\
    /readyz   200 while the server takes requests, 503 while it starts or stops\n\n\
    Records go over gRPC, on the other port.\n";

pub(crate) fn router(phase: watch::Receiver<Phase>) -> Router {
    Router::new()
        .route("/", get(|| async { INDEX }))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .fallback(|| async { (StatusCode::NOT_FOUND, "no such page; / names those that there are\n") })
        .with_state(phase)
}

async fn ready(State(phase): State<watch::Receiver<Phase>>) -> Response {
    let phase = phase.borrow().clone();
    match phase {
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response(),
        Phase::Serving(broker) => match broker.ready() {
            Ok(()) => "ready\n".into_response(),
            Err(issue) => (StatusCode::SERVICE_UNAVAILABLE, format!("{issue}\n")).into_response(),
        },
    }
}

async fn metrics(State(phase): State<watch::Receiver<Phase>>) -> Response {
    let phase = phase.borrow().clone();
    let broker = match phase {
        Phase::Starting => return (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response(),
        Phase::Serving(broker) => broker,
    };
    // Many partitions make a long text: off the threads that answer requests.
    let gathered = tokio::task::spawn_blocking(move || broker.metrics_text());
    match tokio::time::timeout(METRICS_DEADLINE, gathered).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Ok(Err(error)) => {
            tracing::error!(%error, "gathering metrics failed");
            (StatusCode::INTERNAL_SERVER_ERROR, "gathering metrics failed\n").into_response()
        }
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "gathering metrics took too long\n").into_response(),
    }
}
