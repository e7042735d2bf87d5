//! NATS JetStream: publishing with an answer of the stream each, and pull consumers without acknowledgement. Not here:
//! clusters, replicas; Debian's version has no way to sync before it answers.

use std::{sync::Arc, time::Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::{Buf as _, BytesMut};
use rimstone_benches::stats::Meter;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use crate::{
    READ_BYTES, STREAMS, line, number,
    pipeline::{Answers, Produce, Producer},
};

/// Requests of a reader that the server has at a time, so that it need not wait for the next one.
const PULLS: u64 = 3;

pub(crate) async fn produce(load: Produce) -> anyhow::Result<Value> {
    let mut client = Client::connect(&load.server).await?;
    for stream in 0..STREAMS {
        let subject = format!("$JS.API.STREAM.CREATE.b{stream}");
        let config =
            json!({"name": format!("b{stream}"), "subjects": [format!("bench.{stream}")], "storage": "file"});
        client.ask(&subject, &config).await?;
    }
    let mut producers = Vec::new();
    for connection in 0..load.connections {
        let inbox = format!("_INBOX.p{connection}");
        let mut stream = Client::connect(&load.server).await?.stream;
        stream.write_all(format!("SUB {inbox} 1\r\n").as_bytes()).await?;
        let chunks = load.chunks(u64::from(connection), |out, record, value| {
            publish(out, record % STREAMS, &inbox, value)
        });
        producers.push(Producer { stream, chunks, answers: Acks });
    }
    load.run(producers).await
}

fn publish(out: &mut BytesMut, stream: usize, inbox: &str, value: &[u8]) {
    out.extend_from_slice(format!("PUB bench.{stream} {inbox} {}\r\n", value.len()).as_bytes());
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Something that the server sends.
#[derive(Debug, PartialEq, Eq)]
enum Frame<'a> {
    /// A message without headers.
    Message(&'a [u8]),
    /// A message with headers: a status of JetStream.
    Status(&'a [u8]),
    Ping,
    /// Greetings, and answers to what was asked of the connection.
    Other,
}

/// The frame at the start of `bytes`, and how many bytes it takes; `None` if it is not whole.
fn frame(bytes: &[u8]) -> anyhow::Result<Option<(Frame<'_>, usize)>> {
    let Some(head) = line(bytes) else { return Ok(None) };
    let from = head.len() + 2;
    let has_headers = head.starts_with(b"HMSG ");
    if has_headers || head.starts_with(b"MSG ") {
        // The length of all that follows is the last word.
        let length = head.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
        let length = number(length)?;
        let whole = from + length + 2;
        if bytes.len() < whole {
            return Ok(None);
        }
        let body = &bytes[from..from + length];
        return Ok(Some((if has_headers { Frame::Status(body) } else { Frame::Message(body) }, whole)));
    }
    match head {
        b"PING" => Ok(Some((Frame::Ping, from))),
        b"PONG" | b"+OK" => Ok(Some((Frame::Other, from))),
        _ if head.starts_with(b"INFO ") => Ok(Some((Frame::Other, from))),
        _ => bail!("NATS says {}", String::from_utf8_lossy(head)),
    }
}

/// Answers of JetStream to what was published.
struct Acks;

impl Answers for Acks {
    fn take(&mut self, bytes: &[u8]) -> anyhow::Result<(u64, usize)> {
        let (mut count, mut at) = (0, 0);
        while let Some((frame, length)) = frame(&bytes[at..])? {
            match frame {
                Frame::Message(body) if body.starts_with(b"{\"stream\":") => count += 1,
                // A run is shorter than the time after which an unanswered ping counts.
                Frame::Ping | Frame::Other => {}
                Frame::Message(body) | Frame::Status(body) => {
                    bail!("JetStream says {}", String::from_utf8_lossy(body).trim())
                }
            }
            at += length;
        }
        Ok((count, at))
    }
}

/// A connection that asks one thing at a time.
struct Client {
    stream: TcpStream,
    buffer: BytesMut,
}

/// Where answers to what was asked come.
const ANSWERS: &str = "_INBOX.answers";

impl Client {
    async fn connect(server: &str) -> anyhow::Result<Self> {
        let stream =
            TcpStream::connect(server).await.with_context(|| format!("no NATS listens at {server}"))?;
        stream.set_nodelay(true)?;
        let mut client = Self { stream, buffer: BytesMut::with_capacity(READ_BYTES) };
        let options = json!({
            "verbose": false, "pedantic": false, "tls_required": false, "lang": "rust", "version": "0",
            "protocol": 1, "headers": true, "no_responders": true, "echo": true
        });
        client.stream.write_all(format!("CONNECT {options}\r\nPING\r\n").as_bytes()).await?;
        // Its answer says that the server has taken the connection.
        while !client.buffer.windows(6).any(|bytes| bytes == b"PONG\r\n") {
            client.more().await?;
        }
        client.buffer.clear();
        Ok(client)
    }

    async fn more(&mut self) -> anyhow::Result<()> {
        self.buffer.reserve(READ_BYTES / 2);
        ensure!(self.stream.read_buf(&mut self.buffer).await? > 0, "NATS closed the connection");
        Ok(())
    }

    /// Asks JetStream for something; its answer, which is not an error.
    async fn ask(&mut self, subject: &str, question: &Value) -> anyhow::Result<Value> {
        let question = question.to_string();
        // An inbox of its own for each question: of one that was given up nothing comes later.
        let request = format!(
            "SUB {ANSWERS} 9\r\nPUB {subject} {ANSWERS} {}\r\n{question}\r\nUNSUB 9 1\r\n",
            question.len()
        );
        self.stream.write_all(request.as_bytes()).await?;
        loop {
            while let Some((frame, length)) = frame(&self.buffer)? {
                let answer = match frame {
                    Frame::Message(body) => Some(serde_json::from_slice::<Value>(body)?),
                    Frame::Status(body) => bail!("{subject}: {}", String::from_utf8_lossy(body).trim()),
                    Frame::Ping | Frame::Other => None,
                };
                self.buffer.advance(length);
                if let Some(answer) = answer {
                    ensure!(answer["error"].is_null(), "{subject}: {}", answer["error"]);
                    return Ok(answer);
                }
            }
            self.more().await?;
        }
    }
}

pub(crate) async fn consume(server: &str, batch: u32) -> anyhow::Result<Value> {
    let mut readers = Vec::new();
    for stream in 0..STREAMS {
        let mut client = Client::connect(server).await?;
        let info = client.ask(&format!("$JS.API.STREAM.INFO.b{stream}"), &json!({})).await?;
        let messages = info["state"]["messages"].as_u64().context("a stream has messages")?;
        let config = json!({
            "stream_name": format!("b{stream}"),
            "config": {"deliver_policy": "all", "ack_policy": "none", "replay_policy": "instant"},
        });
        let consumer = client.ask(&format!("$JS.API.CONSUMER.CREATE.b{stream}"), &config).await?;
        let name = consumer["name"].as_str().context("a consumer has a name")?.to_owned();
        let inbox = format!("_INBOX.r{stream}");
        client.stream.write_all(format!("SUB {inbox} 1\r\n").as_bytes()).await?;
        let question = json!({"batch": batch}).to_string();
        let pull = format!(
            "PUB $JS.API.CONSUMER.MSG.NEXT.b{stream}.{name} {inbox} {}\r\n{question}\r\n",
            question.len()
        );
        readers.push(Reader { client, pull, messages, batch: u64::from(batch), task: stream });
    }
    let meter = Arc::new(Meter::new(Instant::now(), None));
    let mut tasks = JoinSet::new();
    for reader in readers {
        tasks.spawn(reader.run(meter.clone()));
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(meter.phase("consume"))
}

/// Reads a stream to its end.
struct Reader {
    client: Client,
    /// Asks for one batch more.
    pull: String,
    messages: u64,
    batch: u64,
    task: usize,
}

impl Reader {
    async fn run(mut self, meter: Arc<Meter>) -> anyhow::Result<()> {
        let (mut come, mut asked) = (0, 0);
        while come < self.messages {
            while asked < self.messages && asked < come + PULLS * self.batch {
                self.client.stream.write_all(self.pull.as_bytes()).await?;
                asked += self.batch;
            }
            self.client.more().await?;
            let (mut records, mut bytes, mut at) = (0, 0, 0);
            while let Some((frame, length)) = frame(&self.client.buffer[at..])? {
                at += length;
                match frame {
                    Frame::Message(body) => {
                        records += 1;
                        bytes += body.len() as u64;
                    }
                    Frame::Ping => self.client.stream.write_all(b"PONG\r\n").await?,
                    Frame::Other => {}
                    Frame::Status(body) => bail!("JetStream says {}", String::from_utf8_lossy(body).trim()),
                }
            }
            self.client.buffer.advance(at);
            come += records;
            meter.answered(self.task, records, bytes, None, Instant::now());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_when_they_are_whole() {
        let bytes = b"INFO {\"a\":1}\r\nPING\r\nMSG bench.0 1 $JS.ACK.x 5\r\nhello\r\nHMSG i 1 16 16\r\nNATS/1.0 404\r\n\r\n\r\n";
        let (mut at, mut seen) = (0, Vec::new());
        while let Some((frame, length)) = frame(&bytes[at..]).expect("frames") {
            seen.push(frame);
            at += length;
        }
        assert_eq!(
            seen,
            [Frame::Other, Frame::Ping, Frame::Message(b"hello"), Frame::Status(b"NATS/1.0 404\r\n\r\n")]
        );
        assert_eq!(at, bytes.len());
        for end in [3, 20, 47, 52] {
            let mut at = 0;
            while let Some((_, length)) = frame(&bytes[at..end]).expect("frames") {
                at += length;
            }
            assert!(at <= end);
        }
        assert_eq!(frame(b"MSG s 1 5\r\nhel").expect("a part"), None);
        assert!(frame(b"-ERR 'Slow Consumer'\r\n").is_err());
    }

    #[test]
    fn only_what_a_stream_took_is_an_answer() {
        let ack = b"MSG _INBOX.p0 1 27\r\n{\"stream\":\"b0\", \"seq\":1234}\r\n";
        assert_eq!(Acks.take(ack).expect("an answer"), (1, ack.len()));
        assert_eq!(Acks.take(&ack[..30]).expect("a part"), (0, 0));
        let refused = b"MSG _INBOX.p0 1 20\r\n{\"error\":{\"code\":1}}\r\n";
        assert!(Acks.take(refused).expect_err("it is refused").to_string().contains("code"));
        assert!(Acks.take(b"HMSG i 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n").is_err());
    }
}
