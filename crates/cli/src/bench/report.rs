//! What a run tells at its end: a table or one JSON document, and a file of histograms.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
    time::{Duration, SystemTime},
};

use hdrhistogram::{
    Histogram,
    serialization::{
        V2DeflateSerializer,
        interval_log::{IntervalLogWriterBuilder, Tag},
    },
};
use rimstone_client::ServerDetails;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    meter::{ErrorCount, Measured},
    options::Load,
};
use crate::{
    exit::{Failure, Outcome},
    output,
};

/// The version of the JSON document: raised when the meaning of a field changes.
const JSON_VERSION: u32 = 1;
/// The quantiles that are told, by their names.
const QUANTILES: [(&str, f64); 6] =
    [("p50", 0.5), ("p75", 0.75), ("p90", 0.9), ("p99", 0.99), ("p99_9", 0.999), ("p99_99", 0.9999)];

/// One phase of a workload.
#[derive(Debug, Clone)]
pub(crate) struct Phase {
    /// `produce`, `read`, ...
    pub(crate) name: String,
    /// What a latency is from and to; `None`: there are no latencies.
    pub(crate) latency_of: Option<&'static str>,
    /// What the bytes are: `values` (keys included) or `batches` (as stored).
    pub(crate) bytes_of: &'static str,
    pub(crate) measured: Measured,
}

/// What was measured.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) workload: &'static str,
    /// Options of the workload itself.
    pub(crate) options: Value,
    pub(crate) phases: Vec<Phase>,
    /// Figures made of several phases.
    pub(crate) figures: BTreeMap<&'static str, f64>,
    seed: u64,
    server: ServerDetails,
}

/// Quantiles in nanoseconds.
#[derive(Debug, Serialize)]
struct Latency {
    of: &'static str,
    count: u64,
    min_ns: u64,
    mean_ns: f64,
    stdev_ns: f64,
    #[serde(flatten)]
    quantiles: BTreeMap<String, u64>,
    max_ns: u64,
}

impl Phase {
    /// A phase without latencies.
    pub(crate) fn new(name: &str, measured: Measured) -> Self {
        Self { name: name.to_owned(), latency_of: None, bytes_of: "values", measured }
    }

    /// The same with latencies from and to what is said.
    pub(crate) fn latency(self, of: &'static str) -> Self {
        Self { latency_of: Some(of), ..self }
    }

    fn histogram(&self) -> Option<(&'static str, &Histogram<u64>)> {
        let histogram = &self.measured.latencies;
        self.latency_of.filter(|_| !histogram.is_empty()).map(|of| (of, histogram))
    }

    fn json(&self) -> Value {
        let measured = &self.measured;
        json!({
            "name": self.name,
            "elapsed_s": measured.elapsed.as_secs_f64(),
            "records": measured.records,
            "bytes": measured.bytes,
            "bytes_of": self.bytes_of,
            "requests": measured.requests,
            "records_per_s": measured.per_second(measured.records),
            "bytes_per_s": measured.per_second(measured.bytes),
            "requests_per_s": measured.per_second(measured.requests),
            "client_cores": measured.client_cores,
            "latency": self.histogram().map(|(of, histogram)| latency(of, histogram)),
            "errors": measured.errors,
        })
    }

    fn row(&self) -> [String; 10] {
        let measured = &self.measured;
        let histogram = self.histogram().map(|(_, histogram)| histogram);
        let quantile = |quantile: f64| {
            histogram.map_or_else(|| "-".to_owned(), |all| time(all.value_at_quantile(quantile)))
        };
        // A phase of latencies alone has no rate.
        let some = |text: String| if measured.records == 0 { "-".to_owned() } else { text };
        [
            self.name.clone(),
            some(format!("{:.0}", measured.per_second(measured.records))),
            some(rate(measured.per_second(measured.bytes))),
            some(measured.records.to_string()),
            some(format!("{:.2} s", measured.elapsed.as_secs_f64())),
            some(format!("{:.2}", measured.client_cores)),
            quantile(0.5),
            quantile(0.99),
            quantile(0.999),
            histogram.map_or_else(|| "-".to_owned(), |all| time(all.max())),
        ]
    }
}

fn latency(of: &'static str, histogram: &Histogram<u64>) -> Latency {
    let quantiles = QUANTILES.iter();
    Latency {
        of,
        count: histogram.len(),
        min_ns: histogram.min(),
        mean_ns: histogram.mean(),
        stdev_ns: histogram.stdev(),
        quantiles: quantiles
            .map(|(name, quantile)| (format!("{name}_ns"), histogram.value_at_quantile(*quantile)))
            .collect(),
        max_ns: histogram.max(),
    }
}

impl Report {
    pub(crate) fn new(seed: u64, server: ServerDetails) -> Self {
        Self {
            workload: "",
            options: Value::Null,
            phases: Vec::new(),
            figures: BTreeMap::new(),
            seed,
            server,
        }
    }

    /// How many requests failed.
    pub(crate) fn errors(&self) -> u64 {
        self.all_errors().map(|(_, error)| error.count).sum()
    }

    fn all_errors(&self) -> impl Iterator<Item = (&str, &ErrorCount)> {
        self.phases
            .iter()
            .flat_map(|phase| phase.measured.errors.iter().map(|error| (phase.name.as_str(), error)))
    }

    /// The whole document.
    fn json(&self, load: &Load) -> Value {
        json!({
            "version": JSON_VERSION,
            "workload": self.workload,
            "rimstone": env!("CARGO_PKG_VERSION"),
            "seed": self.seed,
            "server": {
                "version": self.server.version,
                "data_directory": self.server.data_directory,
                "sync_method": self.server.sync_method,
            },
            "load": load,
            "options": self.options,
            "phases": self.phases.iter().map(Phase::json).collect::<Vec<_>>(),
            "figures": self.figures,
        })
    }

    /// Prints it and writes the histograms.
    pub(crate) fn print(&self, load: &Load) -> Outcome {
        if let Some(path) = &load.histograms {
            self.write_histograms(path)
                .map_err(|error| Failure::failed(format!("--histograms {}: {error}", path.display())))?;
        }
        if load.json {
            return Ok(output::json(&self.json(load))?);
        }
        if self.phases.is_empty() {
            return Ok(());
        }
        let head = ["PHASE", "RECORDS/S", "BYTES/S", "RECORDS", "TIME", "CPU", "P50", "P99", "P99.9", "MAX"];
        let rows: Vec<_> = self.phases.iter().map(Phase::row).collect();
        output::table(head, &rows)?;
        for (name, figure) in &self.figures {
            output::line(format!("{name}: {figure:.3}"))?;
        }
        for (of, phases) in self.latencies() {
            output::line(format!("{}: {of}", phases.join(", ")))?;
        }
        output::line("CPU: processors that this client kept busy")?;
        output::line(format!("seed {}, sync by {}", self.seed, self.server.sync_method))?;
        for (phase, ErrorCount { reason, count, message }) in self.all_errors() {
            output::line(format!("{phase}: {count} x {reason}: {message}"))?;
        }
        Ok(())
    }

    /// What the latencies of which phases are from and to.
    fn latencies(&self) -> BTreeMap<&'static str, Vec<&str>> {
        let mut latencies: BTreeMap<_, Vec<&str>> = BTreeMap::new();
        for phase in &self.phases {
            let Some(of) = phase.latency_of else { continue };
            let phases = latencies.entry(of).or_default();
            if !phases.contains(&phase.name.as_str()) {
                phases.push(&phase.name);
            }
        }
        latencies
    }

    fn write_histograms(&self, path: &Path) -> std::io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        let mut serializer = V2DeflateSerializer::new();
        let now = SystemTime::now();
        {
            let mut log = IntervalLogWriterBuilder::new()
                .add_comment(&format!("rimstone bench {}: latencies in nanoseconds", self.workload))
                .with_start_time(now)
                .with_base_time(now)
                .begin_log_with(&mut file, &mut serializer)?;
            for phase in &self.phases {
                let Some((_, histogram)) = phase.histogram() else { continue };
                let tag = phase.name.replace(' ', "_");
                let elapsed = phase.measured.elapsed;
                log.write_histogram(histogram, Duration::ZERO, elapsed, Tag::new(&tag)).map_err(|_| {
                    std::io::Error::other(format!("the latencies of {tag} cannot be written"))
                })?;
            }
        }
        file.flush()
    }
}

/// Bytes per second, in decimal units as networks and disks are sold.
pub(crate) fn rate(bytes_per_second: f64) -> String {
    match bytes_per_second {
        rate if rate < 1e3 => format!("{rate:.0} B/s"),
        rate if rate < 1e6 => format!("{:.1} kB/s", rate / 1e3),
        rate if rate < 1e9 => format!("{:.1} MB/s", rate / 1e6),
        rate => format!("{:.2} GB/s", rate / 1e9),
    }
}

/// A latency.
fn time(nanos: u64) -> String {
    match nanos {
        nanos if nanos < 10_000 => format!("{:.1} us", nanos as f64 / 1e3),
        nanos if nanos < 1_000_000 => format!("{:.0} us", nanos as f64 / 1e3),
        nanos if nanos < 1_000_000_000 => format!("{:.2} ms", nanos as f64 / 1e6),
        nanos => format!("{:.2} s", nanos as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use hdrhistogram::serialization::{
        Deserializer,
        interval_log::{IntervalLogIterator, LogEntry},
    };
    use rimstone_types::Timestamp;

    use super::*;
    use crate::bench::meter::histogram;

    #[derive(Debug, Parser)]
    struct Only {
        #[command(flatten)]
        load: Load,
    }

    fn load(flags: &[&str]) -> Load {
        Only::try_parse_from(["bench"].iter().chain(flags)).unwrap().load
    }

    fn report() -> Report {
        let server = ServerDetails {
            version: "1.2.3".to_owned(),
            id: String::new(),
            data_directory: "/data".to_owned(),
            sync_method: "syncfs".to_owned(),
            sync_reason: String::new(),
            topics: 0,
            partitions: 0,
            started: Timestamp(0),
            grpc_address: String::new(),
            web_address: String::new(),
            health: String::new(),
        };
        let mut latencies = histogram();
        for micros in 1..=1000 {
            latencies.record(micros * 1000).unwrap();
        }
        let errors =
            vec![ErrorCount { reason: "DISK_FULL".to_owned(), count: 3, message: "no room".to_owned() }];
        let measured = Measured {
            elapsed: Duration::from_millis(500),
            records: 1000,
            bytes: 1_024_000,
            requests: 10,
            latencies,
            errors,
            client_cores: 0.5,
        };
        let read = Measured { latencies: histogram(), errors: Vec::new(), ..measured.clone() };
        let mut report = Report::new(7, server);
        report.workload = "produce";
        report.options = json!({"producers": 4});
        report.figures.insert("share", 0.25);
        report.phases = vec![
            Phase::new("produce it", measured).latency("from here to there"),
            Phase { bytes_of: "batches", ..Phase::new("read", read) },
        ];
        report
    }

    #[test]
    fn the_json_document_keeps_its_shape() {
        let document = report().json(&load(&["--for", "1500ms", "--keys", "zipf:10", "--size", "100"]));
        assert_eq!(document["version"], 1);
        assert_eq!(document["workload"], "produce");
        assert_eq!(document["seed"], 7);
        assert_eq!(document["server"]["sync_method"], "syncfs");
        assert_eq!(document["options"]["producers"], 4);
        assert_eq!(document["figures"]["share"], 0.25);
        let load = &document["load"];
        assert_eq!(
            (&load["duration"], &load["keys"], &load["size"]),
            (&json!(1.5), &json!("zipf:10:1"), &json!(100))
        );
        assert_eq!((&load["durability"], &load["compression"]), (&json!("durable"), &json!("none")));
        let phase = &document["phases"][0];
        assert_eq!(
            (&phase["records"], &phase["bytes"], &phase["requests"], &phase["bytes_of"]),
            (&json!(1000), &json!(1_024_000), &json!(10), &json!("values"))
        );
        assert_eq!(phase["records_per_s"], 2000.0);
        assert_eq!(phase["bytes_per_s"], 2_048_000.0);
        assert_eq!(phase["requests_per_s"], 20.0);
        assert_eq!(phase["errors"], json!([{"reason": "DISK_FULL", "count": 3, "message": "no room"}]));
        let latency = &phase["latency"];
        assert_eq!((&latency["count"], &latency["of"]), (&json!(1000), &json!("from here to there")));
        for (field, nanos) in [
            ("min_ns", 1000.0),
            ("p50_ns", 500_000.0),
            ("p75_ns", 750_000.0),
            ("p90_ns", 900_000.0),
            ("p99_ns", 990_000.0),
            ("p99_9_ns", 999_000.0),
            ("p99_99_ns", 1_000_000.0),
            ("max_ns", 1_000_000.0),
            ("mean_ns", 500_500.0),
        ] {
            let told = latency[field].as_f64().unwrap();
            assert!((told - nanos).abs() <= nanos / 500.0, "{field}: {told}");
        }
        assert_eq!(document["phases"][1]["latency"], Value::Null);
        assert_eq!(document["phases"][1]["bytes_of"], "batches");
        assert_eq!(report().errors(), 3);
    }

    #[test]
    fn histograms_can_be_read_back_by_their_tags() {
        let file = tempfile::NamedTempFile::new().unwrap();
        report().write_histograms(file.path()).unwrap();
        let text = std::fs::read(file.path()).unwrap();
        let entries: Vec<_> = IntervalLogIterator::new(&text)
            .filter_map(|entry| match entry.unwrap() {
                LogEntry::Interval(entry) => Some(entry),
                _ => None,
            })
            .collect();
        assert_eq!(entries.len(), 1, "a phase without latencies has no line");
        assert_eq!(entries[0].tag().unwrap().as_str(), "produce_it");
        assert_eq!(entries[0].duration(), Duration::from_millis(500));
        let bytes = decode(entries[0].encoded_histogram());
        let read: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
        assert_eq!(read.len(), 1000);
        assert!(read.value_at_quantile(0.5).abs_diff(500_000) < 1000);
    }

    /// Base 64, for this test only.
    fn decode(text: &str) -> Vec<u8> {
        const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let (mut bytes, mut bits, mut held) = (Vec::new(), 0u32, 0);
        for letter in text.bytes().filter(|letter| *letter != b'=') {
            let six = LETTERS.iter().position(|known| *known == letter).unwrap() as u32;
            (bits, held) = ((bits << 6) | six, held + 6);
            if held >= 8 {
                held -= 8;
                bytes.push((bits >> held) as u8);
            }
        }
        bytes
    }

    #[test]
    fn a_row_says_what_there_is() {
        let report = report();
        assert_eq!(
            report.phases[0].row(),
            [
                "produce it",
                "2000",
                "2.0 MB/s",
                "1000",
                "0.50 s",
                "0.50",
                "500 us",
                "990 us",
                "999 us",
                "1.00 ms"
            ]
        );
        assert_eq!(report.phases[1].row()[5..], ["0.50", "-", "-", "-", "-"]);
        assert_eq!(report.latencies(), BTreeMap::from([("from here to there", vec!["produce it"])]));
        assert_eq!(rate(1.23e9), "1.23 GB/s");
        assert_eq!(time(2_340_000_000), "2.34 s");
    }
}
