//! Logs to stderr, as text or JSON. Not here: metrics (`rimstone-web`), and what is worth a line (whoever
//! handles the error says it, once).

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, registry, util::SubscriberInitExt as _};

use crate::config::{LogColor, LogConfig, LogFormat};

/// Sends logs to stderr from now on, for the whole process.
///
/// # Errors
/// If the process has a subscriber already, or `log.filter` cannot be read.
pub fn init_telemetry(config: &LogConfig) -> anyhow::Result<()> {
    let filter = parse_filter(&config.filter).map_err(|why| anyhow::anyhow!("log.filter: {why}"))?;
    let lines = fmt::layer().with_writer(io::stderr);
    let registry = registry().with(filter);
    match config.format {
        LogFormat::Json => registry.with(lines.json()).try_init()?,
        LogFormat::Text => {
            registry.with(lines.with_ansi(is_coloured(config.color)).with_target(false)).try_init()?;
        }
    }
    Ok(())
}

/// Reads a filter such as `info` or `warn,rimstone_store=debug`.
pub(crate) fn parse_filter(text: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder().parse(text).map_err(|error| error.to_string())
}

fn is_coloured(color: LogColor) -> bool {
    match color {
        LogColor::Always => true,
        LogColor::Never => false,
        LogColor::Auto => io::stderr().is_terminal(),
    }
}
