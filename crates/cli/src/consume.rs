//! `rimstone consume`: reads records of a topic onto standard output; as a member of a group in `member`.

mod member;

use std::{
    io::{self, Write as _},
    time::Duration,
};

use bytes::Bytes;
use clap::Args;
use futures::FutureExt as _;
use rimstone_client::{ClientError, End, Filter, Reader, Received, Start};
use rimstone_types::PartitionIndex;

use self::member::InGroup;
use crate::{
    exit::{Exit, Failure, Outcome},
    format::{Format, LETTERS, print_json},
    global::Global,
    position::{Position, position},
};

/// Bytes gathered before they are written, while there is more to come.
const OUT_BUFFER: usize = 64 << 10;

/// Reads records of a topic.
///
/// Without options it prints the value of each record that is there, from the first to the last, and ends.
/// With --follow it goes on as records come, from the end unless --from says otherwise.
///
/// With --group it reads as a member of a group: it shares the partitions with the group's other members, goes on
/// where the group has committed, and commits what is written out, so that every record is printed at least
/// once.
#[derive(Debug, Args)]
#[command(after_help = format!("Letters of --format:\n{LETTERS}"))]
pub(crate) struct Consume {
    /// Its name; in a group there may be more than one
    #[arg(value_name = "TOPIC", required_unless_present = "topic_prefix")]
    topics: Vec<String>,
    /// Where to begin: earliest, latest, an offset or a time such as '2h ago' [default: earliest; with
    /// --follow: latest]
    #[arg(long, value_name = "PLACE", value_parser = position)]
    from: Option<Position>,
    /// Where to end: end, an offset or a time, as they are now [default: end, unless following]
    #[arg(long, value_name = "PLACE", value_parser = position, conflicts_with = "follow")]
    until: Option<Position>,
    /// Goes on and on (also with --from latest, which would print nothing else)
    #[arg(short, long)]
    follow: bool,
    /// Ends after this many records
    #[arg(short = 'n', long, value_name = "COUNT")]
    count: Option<u64>,
    /// Only this partition; may be repeated
    #[arg(short, long = "partition", value_name = "N")]
    partitions: Vec<u32>,
    /// Only records with exactly this key
    #[arg(long, conflicts_with = "key_prefix")]
    key: Option<String>,
    /// Only records whose key begins with this
    #[arg(long, value_name = "PREFIX")]
    key_prefix: Option<String>,
    /// Only records with this header, and this value if one is given
    #[arg(long, value_name = "NAME[=VALUE]")]
    header: Option<String>,
    /// How to print a record; letters below
    #[arg(long, default_value = "%v%n", value_parser = Format::new, allow_hyphen_values = true)]
    format: Format,
    /// Prints each record as a JSON object on one line
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// How long to go on trying when the connection is lost, for example 30s or 10m
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    retry_for: Duration,
    #[command(flatten)]
    member: InGroup,
}

impl Consume {
    pub(crate) async fn run(mut self, global: &Global) -> Outcome {
        if let Some(group) = self.member.group.clone() {
            return self.run_in_group(global, &group).await;
        }
        let Some(topic) = self.topics.pop().filter(|_| self.topics.is_empty()) else {
            return Err(Failure::usage("only a group reads more than one topic; give --group, or one topic"));
        };
        // A server that is not there at all is said at once, not after minutes of trying.
        global.admin()?.describe_topic(&topic).await?;
        let mut reader = self.reader(global, &topic)?;
        tokio::select! {
            outcome = self.print_all(&mut reader, &topic) => outcome,
            () = interrupted() => Err(Failure::new(Exit::Interrupted, "")),
        }
    }

    fn reader(&self, global: &Global, topic: &str) -> Result<Reader, ClientError> {
        let mut reader = Reader::builder(&global.server, topic)
            .start(self.start())
            .end(self.end())
            .partitions(self.partitions.iter().copied().map(PartitionIndex))
            .filter(self.filter())
            .retry_for(self.retry_for);
        if let Some(count) = self.count {
            reader = reader.count(count);
        }
        reader.build()
    }

    fn start(&self) -> Start {
        match self.from {
            None if self.follow => Start::Latest,
            None | Some(Position::Earliest) => Start::Earliest,
            Some(Position::Latest) => Start::Latest,
            Some(Position::Offset(offset)) => Start::Offset(offset),
            Some(Position::Time(time)) => Start::Time(time),
        }
    }

    fn end(&self) -> End {
        match self.until {
            None if self.follow || self.from == Some(Position::Latest) => End::Never,
            None | Some(Position::Latest) => End::Latest,
            // Nothing lies before the first record.
            Some(Position::Earliest) => End::Offset(rimstone_types::Offset::ZERO),
            Some(Position::Offset(offset)) => End::Offset(offset),
            Some(Position::Time(time)) => End::Time(time),
        }
    }

    fn filter(&self) -> Filter {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        Filter {
            key: self.key.as_deref().map(bytes),
            key_prefix: self.key_prefix.as_deref().map(bytes),
            header: self.header.as_deref().map(|header| match header.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(bytes(value))),
                None => (header.to_owned(), None),
            }),
        }
    }

    async fn print_all(&self, reader: &mut Reader, topic: &str) -> Outcome {
        let mut printed = Vec::with_capacity(OUT_BUFFER);
        loop {
            // What is printed is written before waiting, so that whoever reads us sees it.
            let next = match reader.next().now_or_never() {
                Some(next) => next,
                None => {
                    write_out(&mut printed)?;
                    reader.next().await
                }
            };
            match next {
                Ok(Some(record)) => self.print(&mut printed, topic, &record)?,
                Ok(None) => return write_out(&mut printed),
                Err(error) => {
                    write_out(&mut printed)?;
                    return Err(error.into());
                }
            }
            if printed.len() >= OUT_BUFFER {
                write_out(&mut printed)?;
                // Reading never waits while messages are at hand; a signal is to be heard all the same.
                tokio::task::yield_now().await;
            }
        }
    }

    fn print(&self, out: &mut Vec<u8>, topic: &str, record: &Received) -> io::Result<()> {
        if self.json { print_json(out, topic, record) } else { self.format.print(out, topic, record) }
    }
}

fn write_out(printed: &mut Vec<u8>) -> Outcome {
    let mut out = io::stdout().lock();
    out.write_all(printed)?;
    out.flush()?;
    printed.clear();
    Ok(())
}

/// Resolves at SIGINT or SIGTERM.
pub(crate) async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => {
                terminate.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
}
