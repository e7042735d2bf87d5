//! What a topic can be told: settings by Kafka's names where they mean the same, with bounds, defaults and
//! descriptions. Not here: where they are kept (`catalog`).

use std::{collections::BTreeMap, time::Duration};

use rimstone_store::{AckLevel, CleanupPolicy, PartitionConfig, Share, TimestampType};
use rimstone_types::ByteCount;

use crate::error::{Details, Failure, Reason};

/// A setting that is unknown, or a value that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// No such setting.
    #[error("setting {name:?} is unknown; the settings of a topic are {}", names().join(", "))]
    Unknown {
        /// What was given, shortened.
        name: String,
    },
    /// The value is not allowed.
    #[error("{name}={value:?} is not allowed: {allowed}")]
    Value {
        /// Which setting.
        name: &'static str,
        /// What was given, shortened.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// Allowed, but no request of this server could carry such a batch.
    #[error(
        "max.message.bytes={value} is not allowed: limits.request_bytes of this server is {limit}, and that carries batches of at most {most} bytes"
    )]
    TooLargeForRequest {
        /// What was given.
        value: u64,
        /// The longest request message.
        limit: u64,
        /// The largest batch that fits in one.
        most: u64,
    },
    /// Set and reset at once.
    #[error("setting {name} cannot be set and reset at once")]
    SetAndReset {
        /// Which setting.
        name: String,
    },
}

impl Failure for SettingError {
    fn reason(&self) -> Reason {
        Reason::InvalidSetting
    }

    fn details(&self) -> Details {
        match self {
            Self::Unknown { name } => vec![("setting", name.clone()), ("allowed", names().join(","))],
            Self::Value { name, allowed, .. } => {
                vec![("setting", (*name).to_owned()), ("allowed", (*allowed).to_owned())]
            }
            Self::TooLargeForRequest { most, .. } => {
                vec![("setting", "max.message.bytes".to_owned()), ("limit", most.to_string())]
            }
            Self::SetAndReset { name } => vec![("setting", name.clone())],
        }
    }
}

/// What a request has around a batch: names, numbers, lengths.
const REQUEST_FRAME: ByteCount = ByteCount::kib(4);

/// The settings of a topic, resolved: what it set itself over what the server's defaults are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSettings {
    /// `max.message.bytes`: the largest batch.
    pub max_message_bytes: ByteCount,
    /// `message.timestamp.after.max.ms`: how far in the future a create time may lie.
    pub timestamp_after_max: Duration,
    /// What the partitions need to know.
    pub partition: PartitionConfig,
}

impl Default for TopicSettings {
    fn default() -> Self {
        Self {
            max_message_bytes: ByteCount::mib(1),
            timestamp_after_max: Duration::from_secs(60 * 60),
            partition: PartitionConfig::default(),
        }
    }
}

/// A setting of a topic as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSetting {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: String,
    /// Whether the value is the server's default, not set on the topic.
    pub is_default: bool,
    /// Unit, meaning and bounds.
    pub description: &'static str,
}

/// What topics set themselves, as it is kept in the catalog: names and values as they were checked.
pub(crate) type Overrides = BTreeMap<String, String>;

struct Setting {
    name: &'static str,
    description: &'static str,
    allowed: &'static str,
    /// Puts a value into the settings; `false` if it is not allowed.
    apply: fn(&mut TopicSettings, &str) -> bool,
    show: fn(&TopicSettings) -> String,
}

/// Segments below this are a setting for tests; Kafka's bound is 14 bytes, which no batch fits.
const SEGMENT_BYTES_MIN: u64 = 4 << 10;
/// The store maps a segment whole; positions in it have 32 bits in the format.
const SEGMENT_BYTES_MAX: u64 = 2 << 30;
/// A batch of one small record must fit.
const MESSAGE_BYTES_MIN: u64 = 1 << 10;
/// A batch is held in memory whole, several times over while it is verified and sent.
const MESSAGE_BYTES_MAX: u64 = 32 << 20;
/// Every 64 bytes of log is the finest that is not more index than log.
const INDEX_INTERVAL_MIN: u64 = 64;
/// Beyond this a look-up reads more than a disk gives in a millisecond.
const INDEX_INTERVAL_MAX: u64 = 16 << 20;
/// The segment's age decides what retention by age can delete; below a second nothing is gained.
const SEGMENT_AGE_MIN_MS: u64 = 1_000;

const SETTINGS: &[Setting] = &[
    Setting {
        name: "cleanup.policy",
        description: "what happens to old records: delete (by age and size), compact (of each key the last record \
                      stays; records need keys) or compact,delete",
        allowed: "delete, compact or compact,delete",
        apply: |settings, value| {
            settings.partition.cleanup = match value {
                "delete" => CleanupPolicy::Delete,
                "compact" => CleanupPolicy::Compact,
                "compact,delete" | "delete,compact" => CleanupPolicy::CompactAndDelete,
                _ => return false,
            };
            true
        },
        show: |settings| {
            match settings.partition.cleanup {
                CleanupPolicy::Delete => "delete",
                CleanupPolicy::Compact => "compact",
                CleanupPolicy::CompactAndDelete => "compact,delete",
            }
            .to_owned()
        },
    },
    Setting {
        name: "delete.retention.ms",
        description: "how long a tombstone stays after it was first compacted, in milliseconds from 0",
        allowed: "a number of milliseconds from 0",
        apply: |settings, value| {
            millis(value, 0).map(|age| settings.partition.compaction.delete_retention = age).is_some()
        },
        show: |settings| settings.partition.compaction.delete_retention.as_millis().to_string(),
    },
    Setting {
        name: "index.interval.bytes",
        description: "bytes of log between two index entries, 64 to 16777216",
        allowed: "a number of bytes from 64 to 16777216",
        apply: |settings, value| {
            bytes(value, INDEX_INTERVAL_MIN, INDEX_INTERVAL_MAX)
                .map(|count| settings.partition.index_interval = count)
                .is_some()
        },
        show: |settings| settings.partition.index_interval.get().to_string(),
    },
    Setting {
        name: "max.compaction.lag.ms",
        description: "how long a record may stay uncompacted whatever the dirty ratio, in milliseconds from 1; \
                      9223372036854775807: for ever",
        allowed: "a number of milliseconds from 1, not below min.compaction.lag.ms",
        apply: |settings, value| {
            let Some(lag) = millis(value, 1) else { return false };
            settings.partition.compaction.max_lag = (lag < NEVER).then_some(lag);
            true
        },
        show: |settings| settings.partition.compaction.max_lag.unwrap_or(NEVER).as_millis().to_string(),
    },
    Setting {
        name: "max.message.bytes",
        description: "largest batch, in bytes as it is stored (compressed), 1024 to 33554432",
        allowed: "a number of bytes from 1024 to 33554432",
        apply: |settings, value| {
            bytes(value, MESSAGE_BYTES_MIN, MESSAGE_BYTES_MAX)
                .map(|count| settings.max_message_bytes = count)
                .is_some()
        },
        show: |settings| settings.max_message_bytes.get().to_string(),
    },
    Setting {
        name: "message.timestamp.after.max.ms",
        description: "how far in the future a create time may lie, in milliseconds from 0",
        allowed: "a number of milliseconds from 0",
        apply: |settings, value| millis(value, 0).map(|age| settings.timestamp_after_max = age).is_some(),
        show: |settings| settings.timestamp_after_max.as_millis().to_string(),
    },
    Setting {
        name: "message.timestamp.type",
        description: "the topic's time: CreateTime (the producer's) or LogAppendTime (the server's)",
        allowed: "CreateTime or LogAppendTime",
        apply: |settings, value| {
            settings.partition.timestamp_type = match value {
                "CreateTime" => TimestampType::CreateTime,
                "LogAppendTime" => TimestampType::AppendTime,
                _ => return false,
            };
            true
        },
        show: |settings| {
            match settings.partition.timestamp_type {
                TimestampType::CreateTime => "CreateTime",
                TimestampType::AppendTime => "LogAppendTime",
            }
            .to_owned()
        },
    },
    Setting {
        name: "min.cleanable.dirty.ratio",
        description: "share of a compacted log that must be dirty before it is compacted, from 0 to 1",
        allowed: "a number from 0 to 1 with at most 6 decimals",
        apply: |settings, value| {
            share(value).map(|share| settings.partition.compaction.min_dirty_ratio = share).is_some()
        },
        show: |settings| settings.partition.compaction.min_dirty_ratio.to_string(),
    },
    Setting {
        name: "min.compaction.lag.ms",
        description: "how long a record stays uncompacted at least after it was appended, in milliseconds from 0",
        allowed: "a number of milliseconds from 0",
        apply: |settings, value| {
            millis(value, 0).map(|lag| settings.partition.compaction.min_lag = lag).is_some()
        },
        show: |settings| settings.partition.compaction.min_lag.as_millis().to_string(),
    },
    Setting {
        name: "retention.bytes",
        description: "bytes of log that each partition keeps at least; -1: no bound",
        allowed: "a number of bytes from 0, or -1 for no bound",
        apply: |settings, value| {
            settings.partition.retention_bytes = match value {
                "-1" => None,
                value => match bytes(value, 0, u64::MAX) {
                    Some(count) => Some(count),
                    None => return false,
                },
            };
            true
        },
        show: |settings| {
            settings
                .partition
                .retention_bytes
                .map_or_else(|| "-1".to_owned(), |count| count.get().to_string())
        },
    },
    Setting {
        name: "retention.ms",
        description: "how long records are kept, in milliseconds of the topic's time; -1: for ever",
        allowed: "a number of milliseconds from 1, or -1 for ever",
        apply: |settings, value| {
            settings.partition.retention_age = match value {
                "-1" => None,
                value => match millis(value, 1) {
                    Some(age) => Some(age),
                    None => return false,
                },
            };
            true
        },
        show: |settings| {
            settings
                .partition
                .retention_age
                .map_or_else(|| "-1".to_owned(), |age| age.as_millis().to_string())
        },
    },
    Setting {
        name: "rimstone.ack",
        description: "what an acknowledgement means: durable (a sync covers the batch) or written (it is in \
                      the page cache, synced within a second: a power cut can take it back)",
        allowed: "durable or written",
        apply: |settings, value| {
            settings.partition.ack = match value {
                "durable" => AckLevel::Durable,
                "written" => AckLevel::Written,
                _ => return false,
            };
            true
        },
        show: |settings| {
            match settings.partition.ack {
                AckLevel::Durable => "durable",
                AckLevel::Written => "written",
            }
            .to_owned()
        },
    },
    Setting {
        name: "segment.bytes",
        description: "largest segment file, in bytes, 4096 to 2147483648",
        allowed: "a number of bytes from 4096 to 2147483648",
        apply: |settings, value| {
            bytes(value, SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX)
                .map(|count| settings.partition.segment_bytes = count)
                .is_some()
        },
        show: |settings| settings.partition.segment_bytes.get().to_string(),
    },
    Setting {
        name: "segment.ms",
        description: "age at which a segment is rolled, in milliseconds from 1000",
        allowed: "a number of milliseconds from 1000",
        apply: |settings, value| {
            millis(value, SEGMENT_AGE_MIN_MS).map(|age| settings.partition.segment_age = age).is_some()
        },
        show: |settings| settings.partition.segment_age.as_millis().to_string(),
    },
];

fn bytes(value: &str, min: u64, max: u64) -> Option<ByteCount> {
    let count = digits(value)?;
    (min..=max).contains(&count).then_some(ByteCount(count))
}

fn millis(value: &str, min: u64) -> Option<Duration> {
    let count = digits(value)?;
    // Above i64 no time can be compared with it.
    (min..=i64::MAX as u64).contains(&count).then(|| Duration::from_millis(count))
}

/// Kafka's word for a lag without a bound.
const NEVER: Duration = Duration::from_millis(i64::MAX as u64);

fn share(value: &str) -> Option<Share> {
    /// Decimals of a share: as many as it is kept with.
    const DECIMALS: usize = 6;
    let (whole, decimals) = value.split_once('.').unwrap_or((value, "0"));
    if whole.is_empty() || decimals.is_empty() || decimals.len() > DECIMALS {
        return None;
    }
    let millionths = digits(whole)?.checked_mul(1_000_000)? + digits(&format!("{decimals:0<DECIMALS$}"))?;
    Share::from_millionths(u32::try_from(millionths).ok()?)
}

/// A number of plain digits: `parse` alone would let a `+` through.
fn digits(value: &str) -> Option<u64> {
    value.bytes().all(|byte| byte.is_ascii_digit()).then(|| value.parse().ok()).flatten()
}

/// The names of all settings.
fn names() -> Vec<&'static str> {
    SETTINGS.iter().map(|setting| setting.name).collect()
}

fn find(name: &str) -> Result<&'static Setting, SettingError> {
    SETTINGS
        .iter()
        .find(|setting| setting.name == name)
        .ok_or_else(|| SettingError::Unknown { name: name.chars().take(60).collect() })
}

impl TopicSettings {
    /// Sets one setting by its name.
    ///
    /// # Errors
    /// [`SettingError::Unknown`], [`SettingError::Value`]; the settings are as they were.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), SettingError> {
        let setting = find(name)?;
        let mut changed = self.clone();
        if !(setting.apply)(&mut changed, value) {
            let value = value.chars().take(60).collect();
            return Err(SettingError::Value { name: setting.name, value, allowed: setting.allowed });
        }
        *self = changed;
        Ok(())
    }

    /// These defaults under what a topic set itself.
    pub(crate) fn with(&self, overrides: &Overrides) -> Result<Self, SettingError> {
        let mut settings = self.clone();
        for (name, value) in overrides {
            settings.set(name, value)?;
        }
        Ok(settings)
    }

    /// Whether a request message of at most `request` bytes carries the largest batch that the topic takes.
    ///
    /// # Errors
    /// [`SettingError::TooLargeForRequest`].
    pub fn fits_a_request(&self, request: ByteCount) -> Result<(), SettingError> {
        let (value, limit) = (self.max_message_bytes.get(), request.get());
        let most = limit.saturating_sub(REQUEST_FRAME.get());
        if value > most { Err(SettingError::TooLargeForRequest { value, limit, most }) } else { Ok(()) }
    }

    /// Whether settings that bound each other do not contradict (Kafka's `LogConfig.validateValues`).
    ///
    /// # Errors
    /// [`SettingError::Value`].
    pub(crate) fn fits_together(&self) -> Result<(), SettingError> {
        let compaction = &self.partition.compaction;
        match compaction.max_lag {
            Some(max) if max < compaction.min_lag => {
                let setting = find("max.compaction.lag.ms")?;
                let value = (setting.show)(self);
                Err(SettingError::Value { name: setting.name, value, allowed: setting.allowed })
            }
            _ => Ok(()),
        }
    }

    /// All settings as they are shown.
    pub(crate) fn describe(&self, overrides: &Overrides) -> Vec<TopicSetting> {
        let show = |setting: &Setting| TopicSetting {
            name: setting.name,
            value: (setting.show)(self),
            is_default: !overrides.contains_key(setting.name),
            description: setting.description,
        };
        SETTINGS.iter().map(show).collect()
    }
}

/// What a topic sets itself after `set` and `reset`.
pub(crate) fn change(
    overrides: &Overrides,
    set: &BTreeMap<String, String>,
    reset: &[String],
) -> Result<Overrides, SettingError> {
    let mut changed = overrides.clone();
    for name in reset {
        let setting = find(name)?;
        if set.contains_key(name) {
            return Err(SettingError::SetAndReset { name: name.clone() });
        }
        changed.remove(setting.name);
    }
    for (name, value) in set {
        TopicSettings::default().set(name, value)?;
        changed.insert(name.clone(), value.clone());
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_takes_what_it_shows_and_refuses_nonsense() {
        let defaults = TopicSettings::default();
        for shown in defaults.describe(&Overrides::new()) {
            let mut settings = TopicSettings::default();
            settings.set(shown.name, &shown.value).unwrap();
            assert_eq!(settings, defaults, "{}", shown.name);
            assert!(shown.is_default);
            for nonsense in ["", " ", "x", "-2", "+5", "1.5", "99999999999999999999999"] {
                let refused = settings.set(shown.name, nonsense).unwrap_err();
                assert!(matches!(refused, SettingError::Value { .. }), "{} {nonsense}", shown.name);
                assert_eq!(settings, defaults, "a refused value changes nothing");
            }
        }
    }

    #[test]
    fn bounds_and_values() {
        let cases: &[(&str, &str, bool)] = &[
            ("segment.bytes", "4096", true),
            ("segment.bytes", "4095", false),
            ("segment.bytes", "2147483649", false),
            ("retention.ms", "-1", true),
            ("retention.ms", "0", false),
            ("retention.ms", "1", true),
            ("retention.bytes", "-1", true),
            ("retention.bytes", "0", true),
            ("max.message.bytes", "33554432", true),
            ("max.message.bytes", "33554433", false),
            ("cleanup.policy", "delete", true),
            ("cleanup.policy", "compact", true),
            ("cleanup.policy", "compact,delete", true),
            ("cleanup.policy", "delete,compact", true),
            ("cleanup.policy", "compact,compact", false),
            ("delete.retention.ms", "0", true),
            ("min.compaction.lag.ms", "0", true),
            ("max.compaction.lag.ms", "0", false),
            ("max.compaction.lag.ms", "9223372036854775807", true),
            ("max.compaction.lag.ms", "9223372036854775808", false),
            ("min.cleanable.dirty.ratio", "0", true),
            ("min.cleanable.dirty.ratio", "1.0", true),
            ("min.cleanable.dirty.ratio", "0.123456", true),
            ("min.cleanable.dirty.ratio", "1.000001", false),
            ("min.cleanable.dirty.ratio", "0.1234567", false),
            ("min.cleanable.dirty.ratio", ".5", false),
            ("min.cleanable.dirty.ratio", "0.", false),
            ("min.cleanable.dirty.ratio", "-0.1", false),
            ("min.cleanable.dirty.ratio", "5e-1", false),
            ("min.cleanable.dirty.ratio", "NaN", false),
            ("message.timestamp.type", "LogAppendTime", true),
            ("message.timestamp.type", "logappendtime", false),
            ("message.timestamp.after.max.ms", "9223372036854775808", false),
            ("rimstone.ack", "written", true),
            ("rimstone.ack", "none", false),
            ("index.interval.bytes", "63", false),
            ("segment.ms", "999", false),
        ];
        for (name, value, allowed) in cases {
            assert_eq!(TopicSettings::default().set(name, value).is_ok(), *allowed, "{name}={value}");
        }
        let mut settings = TopicSettings::default();
        settings.set("retention.ms", "-1").unwrap();
        settings.set("rimstone.ack", "written").unwrap();
        assert_eq!(settings.partition.retention_age, None);
        assert_eq!(settings.partition.ack, AckLevel::Written);
    }

    #[test]
    fn lags_of_compaction_do_not_contradict() {
        let mut settings = TopicSettings::default();
        assert_eq!(settings.fits_together(), Ok(()));
        settings.set("min.compaction.lag.ms", "1000").unwrap();
        settings.set("max.compaction.lag.ms", "1000").unwrap();
        assert_eq!(settings.fits_together(), Ok(()));
        settings.set("max.compaction.lag.ms", "999").unwrap();
        let refused = settings.fits_together().unwrap_err();
        assert!(matches!(refused, SettingError::Value { name: "max.compaction.lag.ms", .. }), "{refused}");
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_names_there_are() {
        let error = TopicSettings::default().set("retention", "1").unwrap_err();
        let text = error.to_string();
        for name in ["retention.ms", "segment.bytes", "rimstone.ack"] {
            assert!(text.contains(name), "{text}");
        }
        assert_eq!(error.reason(), Reason::InvalidSetting);
    }

    #[test]
    fn set_and_reset() {
        let set = |pairs: &[(&str, &str)]| -> Overrides {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let before = set(&[("segment.ms", "5000"), ("retention.ms", "1")]);
        let after = change(&before, &set(&[("segment.ms", "6000")]), &["retention.ms".to_owned()]).unwrap();
        assert_eq!(after, set(&[("segment.ms", "6000")]));
        assert!(matches!(
            change(&before, &set(&[("segment.ms", "6000")]), &["segment.ms".to_owned()]),
            Err(SettingError::SetAndReset { .. })
        ));
        assert!(matches!(change(&before, &set(&[]), &["x".to_owned()]), Err(SettingError::Unknown { .. })));
        assert!(matches!(
            change(&before, &set(&[("segment.ms", "x")]), &[]),
            Err(SettingError::Value { .. })
        ));
    }
}
