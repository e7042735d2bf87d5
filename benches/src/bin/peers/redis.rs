//! Redis Streams: `XADD`, pipelined, and `XRANGE` from the start. Not here: consumer groups.

use std::{sync::Arc, time::Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::{Buf as _, Bytes, BytesMut};
use rimstone_benches::stats::Meter;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use crate::{
    READ_BYTES, STREAMS, line, number,
    pipeline::{Answers, Produce, Producer},
};

pub(crate) async fn produce(load: Produce) -> anyhow::Result<Value> {
    let mut producers = Vec::new();
    for connection in 0..load.connections {
        let chunks = load.chunks(u64::from(connection), add);
        producers.push(Producer { stream: connect(&load.server).await?, chunks, answers: Ids });
    }
    load.run(producers).await
}

async fn connect(server: &str) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(server).await.with_context(|| format!("no Redis listens at {server}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One `XADD` with an id that the server chooses.
fn add(out: &mut BytesMut, record: usize, value: &Bytes) {
    let stream = record % STREAMS;
    out.extend_from_slice(b"*5\r\n$4\r\nXADD\r\n");
    out.extend_from_slice(
        format!("$2\r\ns{stream}\r\n$1\r\n*\r\n$1\r\nv\r\n${}\r\n", value.len()).as_bytes(),
    );
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Answers to `XADD`: bulk strings.
struct Ids;

impl Answers for Ids {
    fn take(&mut self, bytes: &[u8]) -> anyhow::Result<(u64, usize)> {
        let (mut count, mut at) = (0, 0);
        while let Some((_, length)) = bulk(&bytes[at..])? {
            count += 1;
            at += length;
        }
        Ok((count, at))
    }
}

/// The bulk string at the start of `bytes`, and how many bytes it takes with its length; `None` if it is not whole.
fn bulk(bytes: &[u8]) -> anyhow::Result<Option<(&[u8], usize)>> {
    let Some(head) = line(bytes) else { return Ok(None) };
    let length = match head {
        [b'$', length @ ..] => number(length)?,
        _ => bail!("Redis says {}", String::from_utf8_lossy(head)),
    };
    let from = head.len() + 2;
    let whole = from + length + 2;
    Ok((bytes.len() >= whole).then(|| (&bytes[from..from + length], whole)))
}

/// The length of the array that begins at the start of `bytes`, and how many bytes that takes.
fn array(bytes: &[u8]) -> anyhow::Result<Option<(usize, usize)>> {
    let Some(head) = line(bytes) else { return Ok(None) };
    match head {
        [b'*', length @ ..] => Ok(Some((number(length)?, head.len() + 2))),
        _ => bail!("Redis says {}", String::from_utf8_lossy(head)),
    }
}

/// What is known of an answer to `XRANGE` that comes in pieces.
#[derive(Debug, Default)]
struct Entries {
    /// Entries that are still to come; `None`: the answer has not begun.
    left: Option<usize>,
    last: Vec<u8>,
    records: u64,
    bytes: u64,
}

impl Entries {
    /// Takes what is whole; answers how many bytes that were.
    fn take(&mut self, bytes: &[u8]) -> anyhow::Result<usize> {
        let mut at = 0;
        if self.left.is_none() {
            let Some((entries, length)) = array(bytes)? else { return Ok(0) };
            self.left = Some(entries);
            at = length;
        }
        while self.left > Some(0) {
            let Some(entry) = entry(&bytes[at..])? else { break };
            self.last.clear();
            self.last.extend_from_slice(entry.id);
            self.records += 1;
            self.bytes += entry.value.len() as u64;
            self.left = self.left.map(|left| left - 1);
            at += entry.length;
        }
        Ok(at)
    }
}

/// One entry, and how many bytes it takes.
struct Entry<'a> {
    id: &'a [u8],
    value: &'a [u8],
    length: usize,
}

/// The entry at the start of `bytes`: an array of the id and an array of one field and its value. `None` if it is not
/// whole.
fn entry(bytes: &[u8]) -> anyhow::Result<Option<Entry<'_>>> {
    let Some((parts, mut at)) = array(bytes)? else { return Ok(None) };
    let Some((id, length)) = bulk(&bytes[at..])? else { return Ok(None) };
    at += length;
    let Some((fields, length)) = array(&bytes[at..])? else { return Ok(None) };
    at += length;
    ensure!((parts, fields) == (2, 2), "an entry of {parts} parts and {fields} fields");
    let Some((_, length)) = bulk(&bytes[at..])? else { return Ok(None) };
    at += length;
    let Some((value, length)) = bulk(&bytes[at..])? else { return Ok(None) };
    Ok(Some(Entry { id, value, length: at + length }))
}

pub(crate) async fn consume(server: &str, batch: u32) -> anyhow::Result<Value> {
    let mut connections = Vec::new();
    for _ in 0..STREAMS {
        connections.push(connect(server).await?);
    }
    let meter = Arc::new(Meter::new(Instant::now(), None));
    let mut tasks = JoinSet::new();
    for (number, connection) in connections.into_iter().enumerate() {
        tasks.spawn(read_stream(connection, number, batch, meter.clone()));
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(meter.phase("consume"))
}

/// Reads a stream to its end.
async fn read_stream(
    mut connection: TcpStream,
    stream: usize,
    batch: u32,
    meter: Arc<Meter>,
) -> anyhow::Result<()> {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    let mut from = "-".to_owned();
    loop {
        let count = batch.to_string();
        let request = format!(
            "*6\r\n$6\r\nXRANGE\r\n$2\r\ns{stream}\r\n${}\r\n{from}\r\n$1\r\n+\r\n$5\r\nCOUNT\r\n${}\r\n{count}\r\n",
            from.len(),
            count.len()
        );
        connection.write_all(request.as_bytes()).await?;
        let mut entries = Entries::default();
        while entries.left != Some(0) {
            buffer.reserve(READ_BYTES / 2);
            ensure!(connection.read_buf(&mut buffer).await? > 0, "Redis closed the connection");
            let taken = entries.take(&buffer)?;
            buffer.advance(taken);
        }
        if entries.records == 0 {
            return Ok(());
        }
        meter.answered(stream, entries.records, entries.bytes, None, Instant::now());
        from = format!("({}", String::from_utf8_lossy(&entries.last));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_when_they_are_whole() {
        let bytes = b"$3\r\n1-0\r\n$3\r\n1-1\r\n$3\r\n2";
        assert_eq!(Ids.take(bytes).expect("ids"), (2, 18));
        assert_eq!(Ids.take(&bytes[..8]).expect("a part"), (0, 0));
        let error = Ids.take(b"-OOM not allowed\r\n").expect_err("it is refused").to_string();
        assert!(error.contains("OOM"), "{error}");
    }

    #[test]
    fn a_request_is_what_redis_reads() {
        let mut out = BytesMut::new();
        add(&mut out, 7, &Bytes::from_static(b"abc"));
        assert_eq!(
            &out[..],
            b"*5\r\n$4\r\nXADD\r\n$2\r\ns1\r\n$1\r\n*\r\n$1\r\nv\r\n$3\r\nabc\r\n".as_slice()
        );
    }

    #[test]
    fn entries_come_in_pieces_of_any_size() {
        let answer = b"*2\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\nv\r\n$5\r\nhello\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\nv\r\n$2\r\n\r\n\r\n";
        for piece in [1, 7, answer.len()] {
            let (mut entries, mut buffer) = (Entries::default(), BytesMut::new());
            for bytes in answer.chunks(piece) {
                assert_ne!(entries.left, Some(0), "it ended too early");
                buffer.extend_from_slice(bytes);
                let taken = entries.take(&buffer).expect("entries");
                buffer.advance(taken);
            }
            assert_eq!((entries.left, entries.records, entries.bytes), (Some(0), 2, 7), "{piece}");
            assert_eq!((entries.last.as_slice(), buffer.len()), (b"1-1".as_slice(), 0));
        }
        let mut none = Entries::default();
        assert_eq!((none.take(b"*0\r\n").expect("none"), none.left), (4, Some(0)));
        assert!(Entries::default().take(b"-ERR no\r\n").is_err());
    }
}
