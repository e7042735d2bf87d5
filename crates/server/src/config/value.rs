//! How the text of one setting becomes a value: kinds, units, bounds. Not here: which settings there are
//! (`settings`), where their text comes from (`layers`).

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use rimstone_types::ByteCount;

/// What a setting may hold, with its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `IP:PORT`, `[IPv6]:PORT` or `localhost:PORT`.
    Address,
    /// `true` or `false`.
    Flag,
    /// One of a few words.
    Choice(&'static [&'static str]),
    /// A path; relative ones count from the working directory.
    Path,
    /// Text of at most this many bytes.
    Text(usize),
    /// Bytes: a number, or a number with a unit.
    Bytes { min: u64, max: u64 },
    /// A duration with its unit.
    Duration { min: Duration, max: Duration },
    /// A plain number.
    Count { min: u64, max: u64 },
    /// The text of a topic setting; the broker knows its bounds, which `about` repeats.
    Topic,
}

/// The value of a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Address(SocketAddr),
    Flag(bool),
    Choice(&'static str),
    Path(PathBuf),
    Text(String),
    Bytes(ByteCount),
    Duration(Duration),
    Count(u64),
}

const BYTE_UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl Kind {
    /// Reads a value; the error says what is wrong, without saying what is allowed.
    pub(crate) fn parse(self, text: &str) -> Result<Value, String> {
        let text = text.trim();
        match self {
            Self::Address => parse_address(text).map(Value::Address),
            Self::Flag => match text {
                "true" => Ok(Value::Flag(true)),
                "false" => Ok(Value::Flag(false)),
                _ => Err("it is neither true nor false".to_owned()),
            },
            Self::Choice(words) => words
                .iter()
                .find(|word| **word == text)
                .map(|word| Value::Choice(word))
                .ok_or_else(|| "it is none of the allowed words".to_owned()),
            Self::Path if text.is_empty() => Err("it is empty".to_owned()),
            Self::Path if text.contains('\0') => Err("it contains a zero byte".to_owned()),
            Self::Path => Ok(Value::Path(PathBuf::from(text))),
            Self::Text(max) if text.len() > max => Err(format!("it has {} bytes", text.len())),
            Self::Text(_) | Self::Topic => Ok(Value::Text(text.to_owned())),
            Self::Bytes { min, max } => {
                let bytes = parse_bytes(text)?;
                within(bytes, min, max).map(|bytes| Value::Bytes(ByteCount(bytes)))
            }
            Self::Duration { min, max } => {
                let duration = humantime::parse_duration(text).map_err(|error| {
                    if text.parse::<f64>().is_ok() { "it has no unit".to_owned() } else { error.to_string() }
                })?;
                within(duration, min, max).map(Value::Duration)
            }
            Self::Count { min, max } => {
                let count = text.parse().map_err(|_| "it is not a whole number from 0 on".to_owned())?;
                within(count, min, max).map(Value::Count)
            }
        }
    }

    /// What is allowed, with unit and bounds; empty where `about` says it.
    pub(crate) fn allowed(self) -> String {
        match self {
            Self::Address => "IP:PORT or localhost:PORT; port 0 takes a free one".to_owned(),
            Self::Flag => "true or false".to_owned(),
            Self::Choice(words) => words.join(" or "),
            Self::Path => "a path".to_owned(),
            Self::Text(max) => format!("text of at most {max} bytes"),
            Self::Bytes { min, max } => format!(
                "bytes from {} to {}, for example 1048576 or \"1 MiB\"",
                exact_bytes(min),
                exact_bytes(max)
            ),
            Self::Duration { min, max } => format!(
                "a duration from {} to {}, for example \"1500ms\" or \"2m 30s\"",
                humantime::format_duration(min),
                humantime::format_duration(max)
            ),
            Self::Count { min, max } => format!("a number from {min} to {max}"),
            Self::Topic => String::new(),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Flag(flag) => flag.fmt(f),
            Self::Choice(word) => word.fmt(f),
            Self::Path(path) => path.display().fmt(f),
            Self::Text(text) => text.fmt(f),
            Self::Bytes(bytes) => exact_bytes(bytes.get()).fmt(f),
            Self::Duration(duration) => humantime::format_duration(*duration).fmt(f),
            Self::Count(count) => count.fmt(f),
        }
    }
}

impl Value {
    /// As the file has it: numbers and flags bare, everything else quoted.
    pub(crate) fn to_toml(&self) -> String {
        match self {
            Self::Flag(_) | Self::Count(_) => self.to_string(),
            other => toml::Value::String(other.to_string()).to_string(),
        }
    }
}

/// Bytes with the largest unit that leaves no remainder, so that reading it again gives the same number.
fn exact_bytes(bytes: u64) -> String {
    let (unit, size) = BYTE_UNITS
        .into_iter()
        .find(|(_, size)| bytes >= *size && bytes.is_multiple_of(*size))
        .unwrap_or(("B", 1));
    format!("{} {unit}", bytes / size)
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, size) = BYTE_UNITS
        .into_iter()
        .find_map(|(unit, size)| text.strip_suffix(unit).map(|number| (number.trim_end(), size)))
        .unwrap_or((text, 1));
    let number: u64 = number
        .parse()
        .map_err(|_| "it is not a whole number with B, KiB, MiB, GiB, TiB or no unit".to_owned())?;
    number.checked_mul(size).ok_or_else(|| "it is too large".to_owned())
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    // A name that a resolver could point elsewhere is no address to bind to; this one is fixed by RFC 6761.
    let literal = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    literal.parse().map_err(|_| "it is not an address with a port".to_owned())
}

fn within<T: PartialOrd>(value: T, min: T, max: T) -> Result<T, String> {
    if value < min {
        Err("it is too small".to_owned())
    } else if value > max {
        Err("it is too large".to_owned())
    } else {
        Ok(value)
    }
}
