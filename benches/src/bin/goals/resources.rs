//! What a server costs that does nothing.

use std::{
    fs,
    time::{Duration, Instant},
};

use rimstone_benches::{lab::Lab, row::Sample};
use tokio::time::sleep;

/// Partitions of the row.
const PARTITIONS: u32 = 1000;
/// Records for each partition, so that none is empty.
const RECORDS_EACH: u32 = 4;
/// How long an idle server is watched: a tick of the system's clock is 0.1 % of it.
const IDLE: Duration = Duration::from_secs(10);
/// After a start a server may have something to settle.
const SETTLE: Duration = Duration::from_secs(1);

pub(crate) async fn idle_partitions(lab: &Lab) -> anyhow::Result<Vec<Sample>> {
    let (settle, idle) = if lab.quick { (SETTLE / 10, IDLE / 20) } else { (SETTLE, IDLE) };
    let empty = lab.server(&lab.disk).await?;
    sleep(settle).await;
    let (memory, descriptors) = (empty.anonymous()?, empty.descriptors()?);
    empty.end().await?;
    let server = lab.server(&lab.disk).await?;
    lab.rimstone(&server, &format!("topic create many --partitions {PARTITIONS}")).await?;
    // Single records go to each partition in turn.
    let records = PARTITIONS * RECORDS_EACH;
    lab.bench(&server, &format!("latency -n {records} --topic many --callers 64 --streams 4")).await?;
    let server = server.restart(lab).await?;
    sleep(settle).await;
    let (cpu, begun) = (server.cpu()?, Instant::now());
    sleep(idle).await;
    let busy = (server.cpu()? - cpu).as_secs_f64() / begun.elapsed().as_secs_f64();
    let each = |all: f64, without: f64| Sample::alone((all - without).max(0.0) / f64::from(PARTITIONS));
    let samples = vec![
        each(server.anonymous()?, memory),
        each(server.descriptors()?, descriptors),
        Sample::alone(busy),
        Sample::alone(server.ready.as_secs_f64()),
    ];
    server.end().await?;
    Ok(samples)
}

pub(crate) async fn idle_server(lab: &Lab) -> anyhow::Result<Vec<Sample>> {
    let server = lab.server(&lab.disk).await?;
    sleep(if lab.quick { SETTLE / 10 } else { SETTLE }).await;
    let samples = vec![
        Sample::alone(server.anonymous()?),
        Sample::alone(fs::metadata(&lab.rimstone)?.len() as f64),
        Sample::alone(server.ready.as_secs_f64()),
    ];
    server.end().await?;
    Ok(samples)
}
