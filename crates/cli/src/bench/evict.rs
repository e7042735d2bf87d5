//! Makes a topic cold: its files leave the page cache. Needs the server's data directory, on this machine.

use std::{
    fs::{self, File},
    path::Path,
};

use rustix::fs::{Advice, fadvise};

use super::session::Target;
use crate::exit::Failure;

/// Drops the pages of a topic's files; answers how many bytes these have. Pages that a process has mapped and
/// touched stay: a topic that was never read is cold afterwards.
pub(crate) fn evict(data: &Path, topic: &Target) -> Result<u64, Failure> {
    let directory = data.join("topics").join(&topic.id);
    let failed = |path: &Path, error: std::io::Error| {
        Failure::usage(format!("--evict: {}: {error}", path.display()))
            .hint("it must be the server's data directory, on this machine")
    };
    let mut bytes = 0;
    for partition in fs::read_dir(&directory).map_err(|error| failed(&directory, error))? {
        let partition = partition.map_err(|error| failed(&directory, error))?.path();
        if !partition.is_dir() {
            continue;
        }
        for file in fs::read_dir(&partition).map_err(|error| failed(&partition, error))? {
            let path = file.map_err(|error| failed(&partition, error))?.path();
            bytes += evict_file(&path).map_err(|error| failed(&path, error))?;
        }
    }
    Ok(bytes)
}

fn evict_file(path: &Path) -> std::io::Result<u64> {
    let file = File::open(path)?;
    // What is dirty does not leave.
    file.sync_data()?;
    fadvise(&file, 0, None, Advice::DontNeed)?;
    Ok(file.metadata()?.len())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn takes_the_files_of_one_topic_and_names_what_is_not_there() {
        let data = tempfile::tempdir().unwrap();
        let topic =
            Target { name: "t".to_owned(), id: "0-1-2".to_owned(), partitions: NonZeroU32::new(2).unwrap() };
        let failure = evict(data.path(), &topic).unwrap_err();
        assert!(failure.message.contains("0-1-2"), "{failure}");
        for (topic, partition, bytes) in [("0-1-2", "0", 100), ("0-1-2", "1", 50), ("9-9-9", "0", 1000)] {
            let directory = data.path().join("topics").join(topic).join(partition);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("segment"), vec![1; bytes]).unwrap();
        }
        assert_eq!(evict(data.path(), &topic).unwrap(), 150);
    }
}
