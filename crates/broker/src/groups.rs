//! Groups as clients ask for them: commits, listings, deletion, clones. Not here: deciding
//! (`rimstone-state`), the shards that drive it (`coordinator`).

// The shards that change it and the lag that reads it come next.
#[allow(dead_code)]
mod commits;

#[allow(unused_imports)]
pub(crate) use commits::{Commit, CommitChange, CommitTable, GroupCommits, Owner, Owners, PartitionCommit};
