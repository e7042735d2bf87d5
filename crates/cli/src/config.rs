//! `rimstone config`: the server's settings, without a server.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use clap::{Args, Subcommand};
use rimstone_server::{Config, ConfigError, load_config};

use crate::{
    exit::{Exit, Failure, Outcome},
    output::note,
};

/// Checks the server's settings.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Checks the settings and prints all of them as a settings file, with meaning, bounds and source
    ///
    /// Settings come from defaults, then the file, then the environment (RIMSTONE_SECTION__KEY).
    Check(Check),
}

/// Checks the settings.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The settings file [default: rimstone.toml in the working directory, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One more setting, as in serve; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", value_parser = crate::topic::key_value)]
    set: Vec<(String, String)>,
}

impl ConfigCommand {
    pub(crate) fn run(self) -> Outcome {
        let Self::Check(check) = self;
        let config = load(check.config.as_deref(), &check.set)?;
        io::stdout().lock().write_all(config.render().as_bytes())?;
        note("the settings are fine");
        Ok(())
    }
}

/// Reads the settings of a server.
///
/// # Errors
/// Every problem, each as one line.
pub(crate) fn load(file: Option<&std::path::Path>, set: &[(String, String)]) -> Result<Config, Failure> {
    load_config(file, set).map_err(refused)
}

fn refused(error: ConfigError) -> Failure {
    let missing =
        matches!(&error.problems[..], [rimstone_server::Problem::File { path, .. }] if !path.exists());
    let exit = if missing { Exit::NotFound } else { Exit::Usage };
    let lines: Vec<_> = error.problems.iter().map(ToString::to_string).collect();
    Failure::new(exit, lines.join("\n       "))
}
