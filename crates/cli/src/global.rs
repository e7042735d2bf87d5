//! Options of every command.

use clap::{ArgAction, Args};
use rimstone_client::{Admin, ClientError, DEFAULT_ENDPOINT};

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Where the server listens: HOST:PORT or http://HOST:PORT
    #[arg(long, global = true, env = "RIMSTONE_SERVER", default_value = DEFAULT_ENDPOINT, value_name = "ADDRESS")]
    pub(crate) server: String,
    /// Says less: only errors, no progress
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Says more; twice: everything
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
}

impl Global {
    /// The administrative calls of the server.
    ///
    /// # Errors
    /// An address that is not one.
    pub(crate) fn admin(&self) -> Result<Admin, ClientError> {
        Admin::new(&self.server)
    }
}
