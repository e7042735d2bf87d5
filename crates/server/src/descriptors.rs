//! The bound on open files of this process.

use rustix::process::{Resource, getrlimit, setrlimit};

/// How many files this process may have open, after the soft bound was raised to the hard one. A partition
/// needs a handful, a connection one.
///
/// Returns `None` where there is no bound.
pub(crate) fn raise_open_files_limit() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let before = limit.current;
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, ?before, "could not raise the bound on open files");
            limit.current = before;
        }
    }
    limit.current
}
