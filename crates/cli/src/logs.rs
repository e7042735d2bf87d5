//! What client commands say on standard error beside their data: warnings of lost connections and the like.
//! The server's logs are not here (`rimstone-server`).

use std::{
    io::{self, IsTerminal as _, Write},
    sync::OnceLock,
};

use indicatif::ProgressBar;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::global::Global;

/// The bar that is on the terminal, which has to make room for each line.
static BAR: OnceLock<ProgressBar> = OnceLock::new();

/// Begins to print logs.
pub(crate) fn begin(global: &Global) {
    let filter = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (_, 0) => "warn,rimstone=info,rimstone_client=info",
        (_, 1) => "info,rimstone=debug,rimstone_client=debug",
        _ => "trace",
    };
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(Stderr)
        .with_ansi(io::stderr().is_terminal() && !no_color)
        .with_target(false)
        .init();
}

/// Lets log lines pass above this bar.
pub(crate) fn pass_above(bar: &ProgressBar) {
    // There is one bar in a process; a second would only miss this courtesy.
    let _ = BAR.set(bar.clone());
}

struct Stderr;

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let write = || io::stderr().write_all(line);
        match BAR.get() {
            Some(bar) => bar.suspend(write)?,
            None => write()?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
