//! Builds the whole server from settings, runs it, and stops it. The only crate that reads the environment or
//! a settings file. Not here: what the command line prints (`rimstone`), and what the server does
//! (`rimstone-broker`).
#![forbid(unsafe_code)]

mod config;
mod descriptors;
#[cfg(feature = "planted")]
mod planted;
mod shutdown;
mod telemetry;
mod wire;

pub use config::{
    Backend, Config, ConfigError, LogColor, LogConfig, LogFormat, Problem, ServerConfig, SettingReport,
    Source, StorageConfig, load_config,
};
#[cfg(feature = "planted")]
pub use planted::plant;
pub use shutdown::{Ended, run};
pub use telemetry::init_telemetry;
pub use wire::{StartError, StartedServer, StopError, start};
