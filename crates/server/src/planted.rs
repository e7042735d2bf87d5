//! Which bug is planted in this process: a build for tests only. Not here: the bugs (`rimstone_log::planted`).

use std::env;

use anyhow::Context as _;
use rimstone_store::planted::{Bug, set};

use crate::config::PLANTED;

/// Plants the bug that the environment names, if it names one, and says so loudly.
///
/// # Errors
/// If there is no such bug; the error names those that there are.
pub fn plant() -> anyhow::Result<()> {
    let Some(name) = env::var_os(PLANTED).filter(|name| !name.is_empty()) else { return Ok(()) };
    let name = name.to_string_lossy();
    set(Some(name.parse::<Bug>().context(PLANTED)?));
    tracing::warn!(bug = %name, "A BUG IS PLANTED IN THIS SERVER: it loses data on purpose, for tests");
    Ok(())
}
