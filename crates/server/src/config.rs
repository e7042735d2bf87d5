//! Settings: defaults < file < environment < flags. Every value has a unit, a default and bounds, and a key
//! that nobody knows is refused. Not here: topic settings of existing topics (the broker keeps those).

mod error;
mod layers;
mod settings;
#[cfg(test)]
mod tests;
mod value;
mod values;

use std::{
    net::SocketAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

pub use error::{ConfigError, Problem};
#[cfg(feature = "planted")]
pub(crate) use layers::PLANTED;
pub use layers::Source;
use layers::{Inputs, Resolved};
use rimstone_broker::{BrokerConfig, Limits, TopicSettings};
use rimstone_grpc::GrpcOptions;
use rimstone_store::SyncPreference;
use rimstone_types::ByteCount;
use settings::Setting;
use value::Kind;
use values::Values;

/// All settings of a server, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it listens and how it stops.
    pub server: ServerConfig,
    /// Where the bytes are.
    pub storage: StorageConfig,
    /// The bounds of the gRPC doors.
    pub grpc: GrpcOptions,
    /// Topics' defaults and the broker's bounds.
    pub broker: BrokerConfig,
    /// How the server speaks of itself.
    pub log: LogConfig,
    reports: Vec<SettingReport>,
}

/// Section `server`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// Where gRPC listens; port 0 takes a free one.
    pub grpc_address: SocketAddr,
    /// Where the web pages listen; port 0 takes a free one.
    pub web_address: SocketAddr,
    /// How long a stop waits for what is in flight.
    pub shutdown_deadline: Duration,
}

/// Section `storage`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageConfig {
    /// Which store.
    pub backend: Backend,
    /// Where the local store keeps everything.
    pub data_directory: PathBuf,
    /// Free space below which appends are refused.
    pub disk_reserve: ByteCount,
    /// How appends become durable.
    pub sync: SyncPreference,
    /// How long a producer without a name is remembered after its last batch.
    pub producer_expiry: Duration,
    /// Producers that one partition remembers.
    pub producers_per_partition: usize,
}

/// Which store a server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Files below the data directory.
    Local,
    /// Memory: gone when the server stops. For tests and trials.
    Memory,
}

/// Section `log`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// Which lines are written, for example `info` or `warn,rimstone_store=debug`.
    pub filter: String,
    /// How a line looks.
    pub format: LogFormat,
    /// Whether it is coloured.
    pub color: LogColor,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Whether log lines are coloured. `NO_COLOR` in the environment turns `Auto` into `Never`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogColor {
    /// On a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// One setting as it is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingReport {
    /// `section.key`.
    pub name: String,
    /// The value, with its unit.
    pub value: String,
    /// Where the value comes from.
    pub source: Source,
    /// The value without any file, variable or flag.
    pub default: String,
    /// What it means.
    pub about: &'static str,
    /// What is allowed: unit and bounds.
    pub allowed: String,
    toml: String,
}

/// Reads the settings of this process: defaults, then the file (`rimstone.toml` in the working directory if
/// none is named and it is there), then the environment, then `overrides` (full name and text).
///
/// # Errors
/// [`ConfigError`] with every problem found.
pub fn load_config(file: Option<&Path>, overrides: &[(String, String)]) -> Result<Config, ConfigError> {
    load(&Inputs { file, environment: std::env::vars_os().collect(), overrides })
}

fn load(inputs: &Inputs<'_>) -> Result<Config, ConfigError> {
    let settings = settings::all();
    let resolved = layers::resolve(&settings, inputs)?;
    let no_color = inputs.environment.iter().any(|(name, value)| name == "NO_COLOR" && !value.is_empty());
    let mut config = Config::build(&settings, &resolved, no_color);
    let mut problems = config.cross_check(&resolved);
    match topic_defaults(&settings, &resolved) {
        Ok(defaults) => {
            problems.extend(fits_a_request(&config, &defaults));
            config.broker.topic_defaults = defaults;
        }
        Err(refused) => problems.extend(refused),
    }
    if problems.is_empty() { Ok(config) } else { Err(ConfigError { problems }) }
}

/// A batch of the default size that no request could carry would be a trap.
fn fits_a_request(config: &Config, defaults: &TopicSettings) -> Option<Problem> {
    let refused = defaults.fits_a_request(config.grpc.request_bytes_max).err()?;
    Some(Problem::Refused { key: "topic_defaults.max.message.bytes".to_owned(), why: refused.to_string() })
}

impl Config {
    fn build(settings: &[Setting], resolved: &Resolved, no_color: bool) -> Self {
        let values = Values(resolved);
        Self {
            server: ServerConfig {
                grpc_address: values.address("server.grpc_address"),
                web_address: values.address("server.web_address"),
                shutdown_deadline: values.duration("server.shutdown_deadline"),
            },
            storage: StorageConfig {
                backend: match values.choice("storage.backend") {
                    "memory" => Backend::Memory,
                    _ => Backend::Local,
                },
                data_directory: values.path("storage.data_directory"),
                disk_reserve: values.bytes("storage.disk_reserve"),
                sync: match values.choice("storage.sync") {
                    "fdatasync" => SyncPreference::Fdatasync,
                    _ => SyncPreference::Auto,
                },
                producer_expiry: values.duration("storage.producer_expiry"),
                producers_per_partition: values.count("limits.producers_per_partition"),
            },
            grpc: GrpcOptions {
                request_bytes_max: values.bytes("limits.request_bytes"),
                items_per_request_max: values.count("limits.items_per_request"),
                response_bytes_max: values.bytes("limits.response_bytes"),
                stream_window: values.bytes("limits.stream_window_bytes"),
                connections_max: values.count("limits.connections"),
                streams_per_connection_max: values.count("limits.streams_per_connection"),
                request_timeout: values.duration("limits.request_timeout"),
                ..GrpcOptions::default()
            },
            log: LogConfig {
                filter: values.text("log.filter"),
                format: match values.choice("log.format") {
                    "json" => LogFormat::Json,
                    _ => LogFormat::Text,
                },
                color: match values.choice("log.color") {
                    "always" => LogColor::Always,
                    "auto" if !no_color => LogColor::Auto,
                    _ => LogColor::Never,
                },
            },
            broker: broker(&values),
            reports: settings.iter().map(|setting| report(setting, resolved)).collect(),
        }
    }

    /// What no single value shows.
    fn cross_check(&self, resolved: &Resolved) -> Vec<Problem> {
        let values = Values(resolved);
        let mut problems = Vec::new();
        if !values.flag("server.allow_unauthenticated_remote") {
            for key in ["server.grpc_address", "server.web_address"] {
                let address = values.address(key);
                if !address.ip().to_canonical().is_loopback() {
                    problems.push(Problem::Refused {
                        key: key.to_owned(),
                        why: format!(
                            "{address} can be reached from other machines, and there is no authentication; \
                             set server.allow_unauthenticated_remote = true if that is on purpose"
                        ),
                    });
                }
            }
        }
        if self.grpc.request_timeout <= self.broker.limits.fetch_wait {
            problems.push(Problem::Refused {
                key: "limits.request_timeout".to_owned(),
                why: "it must be longer than limits.fetch_wait, or long polls end in errors".to_owned(),
            });
        }
        if self.grpc.items_per_request_max < self.broker.limits.records_per_request as u64 {
            problems.push(Problem::Refused {
                key: "limits.items_per_request".to_owned(),
                why: "it must not be less than limits.records_per_request, which counts as well".to_owned(),
            });
        }
        if let Err(why) = crate::telemetry::parse_filter(&self.log.filter) {
            problems.push(Problem::Refused { key: "log.filter".to_owned(), why });
        }
        problems
    }

    /// Every setting with its value and where that comes from, in the order of the sections.
    pub fn settings(&self) -> &[SettingReport] {
        &self.reports
    }

    /// All settings as a settings file, with meaning, bounds and source as comments.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for report in &self.reports {
            let (head, key) = report.name.split_once('.').expect("every name has a section");
            if head != section {
                let gap = if section.is_empty() { "" } else { "\n" };
                text.push_str(&format!("{gap}[{head}]\n"));
                section = head;
            }
            let key = if key.contains('.') { format!("{key:?}") } else { key.to_owned() };
            let bounds =
                if report.allowed.is_empty() { String::new() } else { format!(" ({})", report.allowed) };
            text.push_str(&format!(
                "# {}{bounds}; default {}\n{key} = {} # {}\n",
                report.about,
                report.default,
                report.toml,
                // A path may hold a line break, which would end the comment.
                report.source.to_string().escape_debug()
            ));
        }
        text
    }
}

fn broker(values: &Values<'_>) -> BrokerConfig {
    BrokerConfig {
        default_partitions: NonZeroU32::new(values.count("topic_defaults.partitions"))
            .expect("the least that the table allows is 1"),
        // Filled by `topic_defaults`, which can refuse.
        topic_defaults: TopicSettings::default(),
        maintenance_interval: values.duration("storage.maintenance_interval"),
        compaction_interval: values.duration("storage.compaction_interval"),
        scrub_interval: values.duration("storage.scrub_interval"),
        scrub_pace: values.bytes("storage.scrub_bytes_per_second"),
        lag_per_partition: values.flag("metrics.lag_per_partition"),
        limits: Limits {
            topics: values.count("limits.topics"),
            partitions: values.count("limits.partitions"),
            partitions_per_topic: values.count("limits.partitions_per_topic"),
            named_producers: values.count("limits.named_producers"),
            sessions: values.count("limits.producer_sessions"),
            open_requests_per_producer: values.count("limits.open_requests_per_producer"),
            in_flight: values.bytes("limits.in_flight_bytes"),
            request: values.bytes("limits.request_bytes"),
            records_per_request: values.count("limits.records_per_request"),
            uncompressed_batch: values.bytes("limits.uncompressed_batch_bytes"),
            partitions_per_fetch: values.count("limits.partitions_per_fetch"),
            topics_per_request: values.count("limits.topics_per_request"),
            response: values.bytes("limits.fetch_bytes"),
            response_default: values.bytes("limits.fetch_default_bytes"),
            read_message_default: values.bytes("limits.read_default_bytes"),
            waiting_fetches: values.count("limits.waiting_fetches"),
            fetch_wait: values.duration("limits.fetch_wait"),
            readers: values.count("limits.readers"),
            history_rate: history_rate(values.bytes("limits.history_bytes_per_processor")),
            offsets_per_request: values.count("limits.offsets_per_request"),
            group_sessions: values.count("limits.group_sessions"),
            listed_groups: values.count("limits.listed_groups"),
            listed_producers: values.count("limits.listed_producers"),
            lag_partitions: values.count("limits.lag_partitions"),
        },
    }
}

/// Bytes a second for all processors together.
fn history_rate(per_processor: ByteCount) -> ByteCount {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    ByteCount(per_processor.get().saturating_mul(processors as u64))
}

/// What topics have where they set nothing of their own.
fn topic_defaults(settings: &[Setting], resolved: &Resolved) -> Result<TopicSettings, Vec<Problem>> {
    let mut defaults = TopicSettings::default();
    let mut problems = Vec::new();
    for setting in settings.iter().filter(|setting| setting.kind == Kind::Topic) {
        let (value, source) = &resolved[&setting.name()];
        if let Err(error) = defaults.set(setting.key, &value.to_string()) {
            let (why, value) = (error.to_string(), value.to_string());
            problems.push(Problem::Value {
                key: setting.name(),
                value,
                origin: source.clone(),
                why,
                allowed: setting.kind.allowed(),
            });
        }
    }
    if problems.is_empty() { Ok(defaults) } else { Err(problems) }
}

fn report(setting: &Setting, resolved: &Resolved) -> SettingReport {
    let (value, source) = &resolved[&setting.name()];
    let default = setting.kind.parse(setting.default).expect("a test parses every default");
    SettingReport {
        name: setting.name(),
        value: value.to_string(),
        source: source.clone(),
        default: default.to_string(),
        about: setting.about,
        allowed: setting.kind.allowed(),
        toml: value.to_toml(),
    }
}
