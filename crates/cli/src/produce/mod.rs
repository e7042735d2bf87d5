//! `rimstone produce`: lines of a file or of standard input become records.
//!
//! Not here: batching, retrying, exactly once (`rimstone-client`).

mod lines;
pub(crate) mod pace;
mod report;

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use jiff::Zoned;
use rimstone_client::{
    Compression, DeliveryError, Header, Outcome as Fate, Pending, Producer, ProducerRecord,
};
use rimstone_types::PartitionIndex;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use self::{
    lines::{Line, Lines},
    pace::{Pace, rate},
    report::{Progress, ProgressKind, Tally},
};
use crate::{
    consume::interrupted,
    exit::{Exit, Failure, Outcome},
    extract::{Finder, TimeFinder},
    global::Global,
    output::note,
    times::TimeFormat,
    topic::key_value,
};

/// Records that may wait for their answers here; the producer's own buffer is bounded by bytes.
const PENDING_MAX: usize = 100_000;

/// Writes lines into a topic, one record a line, exactly once and in order per key.
///
/// Goes on by itself when the server is restarted. Ctrl-C stops reading, waits for what was sent, and says
/// how far it came; a second one ends at once.
#[derive(Debug, Args)]
#[command(after_help = "\
Example, a web server's access log keyed by client address with its own times:
  rimstone topic create visits --partitions 6 --set retention.ms=-1
  rimstone produce visits access.log --key-field 1 \\
      --time-regex '\\[([^\\]]+)\\]' --time-format '%d/%b/%Y:%H:%M:%S %z'")]
pub(crate) struct Produce {
    /// Its name
    topic: String,
    /// The file; - or nothing: standard input
    file: Option<PathBuf>,
    /// The key is the n-th field, from 1
    #[arg(long, value_name = "N", conflicts_with = "key_regex")]
    key_field: Option<usize>,
    /// What a regular expression finds is the key: its first group, or all of it
    #[arg(long, value_name = "REGEX")]
    key_regex: Option<String>,
    /// What is between fields, for example , or \t [default: white space]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    field_separator: Option<String>,
    /// The create time is the n-th field, from 1 [default: now]
    #[arg(long, value_name = "N", conflicts_with = "time_regex")]
    time_field: Option<usize>,
    /// What a regular expression finds is the create time
    #[arg(long, value_name = "REGEX")]
    time_regex: Option<String>,
    /// How times are written: a pattern as of strptime, unix or unix-ms [default: RFC 3339 and the like]
    #[arg(long, value_name = "FORMAT", value_parser = TimeFormat::new)]
    time_format: Option<TimeFormat>,
    /// A line without a key or a time is sent without a key, with the time now, instead of being an error
    #[arg(long)]
    allow_missing: bool,
    /// Puts the number of the line, from 1, into this header
    #[arg(long, value_name = "NAME")]
    line_number_header: Option<String>,
    /// A header for every record; may be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = key_value)]
    headers: Vec<(String, String)>,
    /// Everything goes to this partition, whatever the key
    #[arg(short, long, value_name = "N")]
    partition: Option<u32>,
    /// Leaves out the first lines: what an interrupted run said that it had stored
    #[arg(long, value_name = "LINES", default_value_t = 0)]
    skip: u64,
    /// At most so many records a second
    #[arg(long, value_name = "N/s", value_parser = rate)]
    rate: Option<f64>,
    /// The producer's name: fences every older producer of that name
    #[arg(long)]
    name: Option<String>,
    /// How batches are compressed
    #[arg(long, value_enum, default_value = "lz4")]
    compression: Squeeze,
    /// How long a record may take, tries included, for example 30s or 10m
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    retry_for: Duration,
    /// How progress is shown, on standard error
    #[arg(long, value_enum, default_value = "auto")]
    progress: ProgressKind,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Squeeze {
    Lz4,
    None,
}

/// How far a run came.
#[derive(Debug, Default)]
struct Came {
    /// Every line up to this one is stored (or was left out on purpose).
    stored_up_to: u64,
    /// The first that is not, and why.
    first_failure: Option<(u64, DeliveryError)>,
    /// Lines after the first failure: stored, not stored, unknown.
    after: [u64; 3],
}

/// A record under way.
struct Sent {
    line: u64,
    bytes: u64,
    pending: Pending,
}

impl Produce {
    pub(crate) async fn run(self, global: &Global) -> Outcome {
        let shape = self.shape().map_err(Failure::usage)?;
        let mut lines = Lines::open(self.file.as_deref())?;
        // A topic or a server that is not there is said at once, not after minutes of trying.
        global.admin()?.describe_topic(&self.topic).await?;
        let producer = self.producer(global)?;
        let tally = Arc::new(Tally::default());
        let kind = if global.quiet { ProgressKind::None } else { self.progress };
        let progress = Progress::begin(kind, lines.length, &tally);
        let begun = Instant::now();

        let (sent, answers) = mpsc::channel(PENDING_MAX);
        let (fail, failed) = oneshot::channel();
        let collector = tokio::spawn(collect(answers, tally.clone(), fail, self.skip));
        let fed = tokio::select! {
            fed = self.feed(&shape, &mut lines, &producer, sent, &tally) => fed,
            // Said below, with how far it came.
            _ = failed => Ok(()),
            () = interrupted() => Err(Failure::new(Exit::Interrupted, "interrupted")),
        };
        let came = tokio::select! {
            came = finish(&producer, collector) => came,
            () = interrupted() => {
                progress.end();
                return Err(Failure::new(Exit::Interrupted, "interrupted again: what was under way may be stored"));
            }
        };
        progress.end();
        let outcome = self.conclude(fed, came?);
        // A run that failed at its first line has said so.
        if !global.quiet && (outcome.is_ok() || !tally.is_empty()) {
            note(tally.summary(begun.elapsed()));
        }
        outcome
    }

    fn producer(&self, global: &Global) -> Result<Producer, Failure> {
        let mut builder =
            Producer::builder(&global.server).deadline(self.retry_for).compression(match self.compression {
                Squeeze::Lz4 => Compression::Lz4,
                Squeeze::None => Compression::None,
            });
        if let Some(name) = &self.name {
            builder = builder.name(name)?;
        }
        Ok(builder.build()?)
    }

    /// Sends every line.
    async fn feed(
        &self,
        shape: &Shape,
        lines: &mut Lines,
        producer: &Producer,
        sent: mpsc::Sender<Sent>,
        tally: &Tally,
    ) -> Outcome {
        let mut pace = Pace::new(self.rate, Instant::now());
        while let Some(handful) = lines.handfuls.recv().await {
            for line in handful? {
                if line.number <= self.skip {
                    continue;
                }
                pace.wait().await;
                let (number, bytes) = (line.number, line.text.len() as u64);
                // First, so that an interruption never falls between a line's sending and its counting.
                let Ok(counted) = sent.reserve().await else { return Ok(()) };
                let record = shape.record(line).map_err(Failure::failed)?;
                let pending = producer.send(&self.topic, record).await.map_err(|error| {
                    let failure = Failure::from(error);
                    let message = format!("line {number}: {failure}");
                    failure.saying(message)
                })?;
                Tally::add(&tally.sent, 1);
                counted.send(Sent { line: number, bytes, pending });
            }
        }
        Ok(())
    }

    fn conclude(&self, fed: Outcome, came: Came) -> Outcome {
        let up_to = came.stored_up_to;
        if let Some((line, DeliveryError { outcome, cause })) = came.first_failure {
            let failure = Failure::from(cause);
            let fate = match outcome {
                Fate::NotStored => format!("line {line} is not stored"),
                Fate::Unknown => format!("it is not known whether line {line} is stored"),
            };
            let message = format!("{fate}: {failure}");
            return Err(failure.saying(message).hint(how_far(up_to, outcome == Fate::Unknown, came.after)));
        }
        fed.map_err(|failure| failure.hint(how_far(up_to, false, [0; 3])))
    }

    fn shape(&self) -> Result<Shape, String> {
        let separator = self.field_separator.as_deref();
        if separator.is_some() && self.key_field.is_none() && self.time_field.is_none() {
            return Err("--field-separator needs --key-field or --time-field".to_owned());
        }
        let finder = Finder::new("time", self.time_field, separator, self.time_regex.as_deref())?;
        if finder.is_none() && self.time_format.is_some() {
            return Err("--time-format needs --time-field or --time-regex".to_owned());
        }
        let format = self.time_format.clone().unwrap_or(TimeFormat::Common);
        let headers = self.headers.iter();
        Ok(Shape {
            key: Finder::new("key", self.key_field, separator, self.key_regex.as_deref())?,
            time: finder.map(|finder| TimeFinder { finder, format, now: Zoned::now() }),
            allow_missing: self.allow_missing,
            line_number_header: self.line_number_header.clone(),
            headers: headers
                .map(|(key, value)| Header { key: key.clone(), value: Some(Bytes::from(value.clone())) })
                .collect(),
            partition: self.partition.map(PartitionIndex),
        })
    }
}

/// What is stored after a failure, and how to go on. `unknown`: the first line that failed may be stored; `after`: of
/// the lines behind it, how many are stored, not stored and unknown.
fn how_far(up_to: u64, unknown: bool, after: [u64; 3]) -> String {
    let [behind, _, unknown_behind] = after;
    let unknown = unknown_behind + u64::from(unknown);
    let mut stored = Vec::new();
    if up_to > 0 {
        stored.push(format!("every line up to {up_to}"));
    }
    if behind > 0 {
        stored.push(format!("{behind} behind the one that failed"));
    }
    if unknown > 0 {
        stored.push(format!("perhaps {unknown} more"));
    }
    if stored.is_empty() {
        return "nothing is stored".to_owned();
    }
    let again = behind + unknown;
    let again = if again > 0 { format!(", which sends those {again} again") } else { String::new() };
    format!("stored: {}; go on with --skip {up_to}{again}", stored.join(", "))
}

/// Sends what is gathered and waits until everything is answered.
async fn finish(producer: &Producer, collector: tokio::task::JoinHandle<Came>) -> Result<Came, Failure> {
    // What failed is told by the collector, with its line.
    let _ = producer.close().await;
    collector.await.map_err(|error| Failure::failed(format!("counting the answers failed: {error}")))
}

/// Awaits the answers in the order of the lines, so that it can be said up to which line all are stored.
async fn collect(
    mut answers: mpsc::Receiver<Sent>,
    tally: Arc<Tally>,
    fail: oneshot::Sender<()>,
    skipped: u64,
) -> Came {
    let mut came = Came { stored_up_to: skipped, ..Came::default() };
    let mut fail = Some(fail);
    while let Some(Sent { line, bytes, pending }) = answers.recv().await {
        let answer = pending.await;
        if let Ok(delivery) = &answer {
            Tally::add(&tally.stored, 1);
            Tally::add(&tally.stored_bytes, bytes);
            tally.duplicates.fetch_add(delivery.duplicate.into(), Ordering::Relaxed);
        }
        match (answer, came.first_failure.is_some()) {
            (Ok(_), false) => came.stored_up_to = line,
            (Err(error), false) => {
                came.first_failure = Some((line, error));
                if let Some(fail) = fail.take() {
                    // The feeder may have ended already.
                    let _ = fail.send(());
                }
            }
            (Ok(_), true) => came.after[0] += 1,
            (Err(error), true) if error.outcome == Fate::NotStored => came.after[1] += 1,
            (Err(_), true) => came.after[2] += 1,
        }
    }
    came
}

/// What a line becomes.
#[derive(Debug)]
struct Shape {
    key: Option<Finder>,
    time: Option<TimeFinder>,
    allow_missing: bool,
    line_number_header: Option<String>,
    headers: Vec<Header>,
    partition: Option<PartitionIndex>,
}

impl Shape {
    /// The record of a line.
    ///
    /// # Errors
    /// It has no key or no time, naming the line.
    fn record(&self, line: Line) -> Result<ProducerRecord, String> {
        let number = line.number;
        let text = Bytes::from(line.text);
        let mut record = ProducerRecord::new(text.clone());
        if let Some(finder) = &self.key {
            match finder.find(&text) {
                Some(key) => record.key = Some(text.slice_ref(key)),
                None if self.allow_missing => {}
                None => {
                    return Err(format!("line {number} has no key; --allow-missing sends it without one"));
                }
            }
        }
        if let Some(finder) = &self.time {
            match finder.find(&text) {
                Ok(time) => record.time = Some(time),
                Err(_) if self.allow_missing => {}
                Err(why) => {
                    return Err(format!("line {number}: {why}; --allow-missing sends it with the time now"));
                }
            }
        }
        record.headers.clone_from(&self.headers);
        if let Some(name) = &self.line_number_header {
            record.headers.push(Header { key: name.clone(), value: Some(number.to_string().into()) });
        }
        record.partition = self.partition;
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rimstone_client::{Admin, OffsetQuery};
    use rimstone_types::{Offset, Timestamp};

    use super::*;

    #[derive(Debug, Parser)]
    struct Only {
        #[command(flatten)]
        produce: Produce,
    }

    fn shape(flags: &[&str]) -> Result<Shape, String> {
        let arguments = ["produce", "visits"].iter().chain(flags);
        Only::try_parse_from(arguments).unwrap().produce.shape()
    }

    fn line(number: u64, text: &str) -> Line {
        Line { number, text: text.as_bytes().to_vec() }
    }

    /// Interrupted while there is no room to count another line: none was sent that is not counted, so that what is said of
    /// the lines is said of all that may be stored.
    #[tokio::test]
    async fn what_was_sent_when_it_is_interrupted_is_counted() {
        let setting = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let settings = [
            setting("storage.backend", "memory"),
            setting("server.grpc_address", "127.0.0.1:0"),
            setting("server.web_address", "127.0.0.1:0"),
        ];
        let config = rimstone_server::load_config(None, &settings).unwrap();
        let server = rimstone_server::start(config).await.unwrap();
        let address = server.grpc_address().to_string();
        let admin = Admin::new(&address).unwrap();
        admin.create_topic("visits", 1, &[]).await.unwrap();
        let producer = Producer::builder(&address).build().unwrap();

        let produce = Only::try_parse_from(["produce", "visits"]).unwrap().produce;
        let (shape, tally) = (produce.shape().unwrap(), Tally::default());
        let (handfuls, lines) = mpsc::channel(1);
        handfuls.send(Ok((1..=9).map(|number| line(number, "a")).collect())).await.unwrap();
        let mut lines = Lines { length: None, handfuls: lines };
        let (sent, mut answers) = mpsc::channel(3);
        let mut feeding = Box::pin(produce.feed(&shape, &mut lines, &producer, sent, &tally));
        let fed = async {
            let mut more = 0;
            // Some looks more: it would go on if it could.
            while answers.len() < 3 || more < 100 {
                more += usize::from(answers.len() == 3);
                assert!(futures::poll!(&mut feeding).is_pending());
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), fed).await.expect("it sends");
        drop(feeding);
        producer.close().await.unwrap();

        let mut counted = 0;
        while let Some(Sent { line, pending, .. }) = answers.recv().await {
            counted += 1;
            assert_eq!(line, counted);
            pending.await.unwrap();
        }
        assert_eq!((counted, tally.sent.load(Ordering::Relaxed)), (3, 3));
        let end = admin.list_offsets("visits", &[], OffsetQuery::Latest).await.unwrap()[0].offset;
        assert_eq!(end, Some(Offset::new(counted).unwrap()), "all that is stored was counted");
        server.stop().await.unwrap();
    }

    const VISIT: &str = r#"192.0.2.7 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 5"#;

    #[test]
    fn a_line_of_an_access_log_becomes_a_record() {
        let shape = shape(&[
            "--key-field",
            "1",
            "--time-regex",
            r"\[([^\]]+)\]",
            "--time-format",
            "%d/%b/%Y:%H:%M:%S %z",
            "--line-number-header",
            "line",
            "--header",
            "host=web-1",
            "--partition",
            "2",
        ])
        .unwrap();
        let record = shape.record(line(7, VISIT)).unwrap();
        let expected = ProducerRecord::new(VISIT)
            .key("192.0.2.7")
            .time(Timestamp(1_431_857_103_000))
            .header("host", "web-1")
            .header("line", "7")
            .partition(PartitionIndex(2));
        assert_eq!(record, expected);
    }

    #[test]
    fn without_flags_a_line_is_a_value() {
        assert_eq!(shape(&[]).unwrap().record(line(1, " a ")).unwrap(), ProducerRecord::new(" a "));
    }

    #[test]
    fn a_line_without_key_or_time_is_named_unless_allowed() {
        let key = ["--key-regex", r"id=(\d+)"];
        assert!(shape(&key).unwrap().record(line(9, "x")).unwrap_err().starts_with("line 9 has no key"));
        let time = ["--time-field", "1"];
        let error = shape(&time).unwrap().record(line(9, "soon x")).unwrap_err();
        assert!(error.starts_with("line 9: \"soon\" is not a time"), "{error}");
        for flags in [key, time] {
            let lenient = shape(&[flags[0], flags[1], "--allow-missing"]).unwrap();
            assert_eq!(lenient.record(line(9, "x")).unwrap(), ProducerRecord::new("x"));
        }
    }

    #[test]
    fn how_far_a_run_came_is_said_without_zeros() {
        for (up_to, unknown, after, said) in [
            (0, false, [0, 0, 0], "nothing is stored"),
            (0, false, [0, 9, 0], "nothing is stored"),
            (7, false, [0, 3, 0], "stored: every line up to 7; go on with --skip 7"),
            (0, true, [0, 0, 0], "stored: perhaps 1 more; go on with --skip 0, which sends those 1 again"),
            (
                7,
                true,
                [2, 5, 3],
                "stored: every line up to 7, 2 behind the one that failed, perhaps 4 more; go on with --skip 7, which \
                 sends those 6 again",
            ),
        ] {
            assert_eq!(how_far(up_to, unknown, after), said);
        }
    }

    #[test]
    fn flags_that_do_not_go_together_are_refused() {
        assert!(shape(&["--field-separator", ","]).unwrap_err().contains("--key-field"));
        assert!(shape(&["--time-format", "unix"]).unwrap_err().contains("--time-field"));
        assert!(shape(&["--key-field", "0"]).unwrap_err().contains("from 1"));
        assert!(Only::try_parse_from(["produce", "visits", "--key-field", "1", "--key-regex", "a"]).is_err());
    }
}
