//! The disk by itself.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use rimstone_benches::{payload::Values, stats::Meter};
use rustix::fs::{Advice, fadvise};
use serde_json::Value;

/// A file that is read is written in steps of so many bytes.
const FILL_STEP: usize = 4 << 20;

#[derive(Debug, Subcommand)]
pub(crate) enum Disk {
    /// Appends to a growing file, with a sync after each step
    Append(Append),
    /// Reads a file from its start
    Read(Read),
}

/// Appends to a growing file, with a sync after each step.
#[derive(Debug, Args)]
pub(crate) struct Append {
    /// Where the file is made; it is removed at the end
    #[arg(long)]
    pub(crate) directory: PathBuf,
    /// Bytes between two syncs
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u64).range(1..=64 << 20))]
    pub(crate) step: u64,
    /// Bytes in all
    #[arg(long, default_value_t = 300 << 20)]
    pub(crate) bytes: u64,
    /// Ends after this time at the latest
    #[arg(long = "for", value_parser = humantime::parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// Syncs the whole file system instead of the file
    #[arg(long)]
    pub(crate) syncfs: bool,
}

/// Reads a file from its start.
#[derive(Debug, Args)]
pub(crate) struct Read {
    /// Where the file is made; it is removed at the end
    #[arg(long)]
    pub(crate) directory: PathBuf,
    /// Bytes of the file
    #[arg(long, default_value_t = 300 << 20)]
    pub(crate) bytes: u64,
    /// Bytes of one read
    #[arg(long, default_value_t = 1 << 20, value_parser = clap::value_parser!(u64).range(1..=64 << 20))]
    pub(crate) block: u64,
    /// Takes the file out of the page cache before
    #[arg(long)]
    pub(crate) cold: bool,
}

impl Disk {
    pub(crate) fn run(self) -> anyhow::Result<Value> {
        match self {
            Self::Append(append) => append.run(),
            Self::Read(read) => read.run(),
        }
    }
}

impl Append {
    fn run(self) -> anyhow::Result<Value> {
        let file = file_in(&self.directory)?;
        let mut values = Values::new(self.step as usize, 1);
        let begun = Instant::now();
        let meter = Meter::new(begun, None);
        let mut at = 0;
        while at < self.bytes && self.duration.is_none_or(|most| begun.elapsed() < most) {
            let value = values.value(self.step as usize);
            let sent = Instant::now();
            file.write_all_at(&value, at)?;
            if self.syncfs {
                rustix::fs::syncfs(&file)?;
            } else {
                file.sync_data()?;
            }
            let now = Instant::now();
            meter.answered(0, 1, self.step, Some(now - sent), now);
            at += self.step;
        }
        Ok(meter.phase("append"))
    }
}

impl Read {
    fn run(self) -> anyhow::Result<Value> {
        let file = file_in(&self.directory)?;
        fill(&file, self.bytes)?;
        let mut buffer = vec![1; self.block as usize];
        if self.cold {
            fadvise(&file, 0, None, Advice::DontNeed)?;
        } else {
            // Once before the clock runs.
            read_all(&file, &mut buffer, |_| {})?;
        }
        let meter = Meter::new(Instant::now(), None);
        read_all(&file, &mut buffer, |bytes| meter.answered(0, 1, bytes, None, Instant::now()))?;
        Ok(meter.phase("read"))
    }
}

fn file_in(directory: &Path) -> anyhow::Result<File> {
    tempfile::tempfile_in(directory).with_context(|| format!("cannot make a file in {}", directory.display()))
}

fn fill(file: &File, bytes: u64) -> io::Result<()> {
    let mut values = Values::new(FILL_STEP, 1);
    let mut at = 0;
    while at < bytes {
        let value = values.value(FILL_STEP.min((bytes - at) as usize));
        file.write_all_at(&value, at)?;
        at += value.len() as u64;
    }
    file.sync_data()
}

fn read_all(file: &File, buffer: &mut [u8], mut each: impl FnMut(u64)) -> io::Result<()> {
    let mut at = 0;
    loop {
        let read = file.read_at(buffer, at)? as u64;
        if read == 0 {
            return Ok(());
        }
        each(read);
        at += read;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appends_and_reads_as_much_as_it_says() {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path().to_path_buf();
        for syncfs in [false, true] {
            let append =
                Append { directory: directory.clone(), step: 1000, bytes: 5500, duration: None, syncfs };
            let phase = Disk::Append(append).run().expect("it appends");
            assert_eq!((&phase["requests"], &phase["bytes"]), (&6.into(), &6000.into()));
            assert!(phase["latency"]["p50_ns"].as_u64() > Some(0));
        }
        for cold in [false, true] {
            let read = Read { directory: directory.clone(), bytes: (9 << 20) + 7, block: 4096, cold };
            let phase = Disk::Read(read).run().expect("it reads");
            assert_eq!(phase["bytes"], (9 << 20) + 7);
        }
        let read = Read { directory: directory.join("nowhere"), bytes: 1, block: 1, cold: false };
        assert!(Disk::Read(read).run().expect_err("no directory").to_string().contains("nowhere"));
    }
}
