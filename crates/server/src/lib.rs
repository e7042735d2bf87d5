//! Builds the whole server from settings, runs it, and stops it. The only crate that reads the environment or
//! a settings file. Not here: what the command line prints (`rimstone`), and what the server does
//! (`rimstone-broker`).
#![forbid(unsafe_code)]

mod config;
mod descriptors;
mod shutdown;
mod telemetry;
mod wire;

pub use config::{
    Backend, Config, ConfigError, LogColor, LogConfig, LogFormat, Problem, ServerConfig, SettingReport,
    Source, StorageConfig, load_config,
};
pub use shutdown::{Ended, run};
pub use telemetry::init_telemetry;
pub use wire::{StartError, StartedServer, StopError, start};
