//! What can be wrong with settings. All problems are reported at once.

use std::{fmt, path::PathBuf};

use super::layers::Source;

/// Settings that cannot be used, with every problem that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The settings file cannot be read or is not TOML.
    #[error("settings file {path}: {why}", path = path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system or the parser said.
        why: String,
    },
    /// Nobody knows this key.
    #[error("unknown setting {key} ({origin}); nearest: {nearest}", nearest = nearest.join(", "))]
    UnknownKey {
        /// The key.
        key: String,
        /// Where it was found.
        origin: Source,
        /// The allowed names most like it, the nearest first.
        nearest: Vec<String>,
    },
    /// A value that is not allowed.
    #[error("{key} = {value:?} ({origin}): {why}{}", allowed_suffix(allowed))]
    Value {
        /// The setting.
        key: String,
        /// What was given, shortened.
        value: String,
        /// Where.
        origin: Source,
        /// What is wrong.
        why: String,
        /// What is allowed, with unit and bounds.
        allowed: String,
    },
    /// The same setting in two spellings of one file.
    #[error("{key} is given twice ({origin})")]
    Twice {
        /// The setting.
        key: String,
        /// Where.
        origin: Source,
    },
    /// Values that do not go together, or that are refused on purpose.
    #[error("{key}: {why}")]
    Refused {
        /// The setting to change.
        key: String,
        /// Why, and what to do.
        why: String,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

fn allowed_suffix(allowed: &str) -> String {
    if allowed.is_empty() { String::new() } else { format!("; allowed: {allowed}") }
}
