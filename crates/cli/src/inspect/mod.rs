//! `rimstone inspect`: what lies in a data directory, without a server. Nothing is opened for writing; beside
//! a running server it shows what is on disk at that moment.
//!
//! Not here: what the bytes mean (`rimstone-log`), repairing anything.

mod catalog;
mod data;
mod files;
mod verify;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use rimstone_log::inspect::{self as log, DirectoryError};
use rimstone_types::Offset;

use self::data::Data;
use crate::exit::{Exit, Failure, Outcome};

/// Shows what lies in a data directory, without a server.
///
/// Without a subcommand: its topics and partitions.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = false)]
pub(crate) struct Inspect {
    /// The data directory
    #[arg(long, global = true, value_name = "DIRECTORY", default_value = "data")]
    data: PathBuf,
    /// Reads every byte and says what is damaged; ends with 6 if acknowledged data is
    #[arg(long)]
    verify: bool,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The segments of a partition
    Segments(Place),
    /// The frames of a partition's segments: every batch with its header
    Frames(Frames),
    /// The indexes of a partition
    Index(Place),
    /// The producer snapshots of a partition
    Snapshot(Place),
    /// The ends that the witness attests
    Witness,
    /// The records of the catalog, one JSON object a line
    Catalog,
}

/// A partition.
#[derive(Debug, Args)]
struct Place {
    /// TOPIC/PARTITION, the topic by name or by id; without a partition: all of them
    place: String,
}

#[derive(Debug, Args)]
struct Frames {
    #[command(flatten)]
    place: Place,
    /// Only the segment of this base offset
    #[arg(long, value_name = "OFFSET")]
    segment: Option<u64>,
    /// Also every record: offset, time, key and value
    #[arg(long)]
    records: bool,
}

impl Inspect {
    pub(crate) fn run(self) -> Outcome {
        let data = Data::open(&self.data)?;
        if self.verify {
            if self.what.is_some() {
                return Err(Failure::usage(
                    "--verify looks at the whole directory; leave the subcommand out",
                ));
            }
            return verify::verify(&data);
        }
        match self.what {
            None => files::summary(&data),
            Some(What::Segments(place)) => files::segments(&data, &data.find(&place.place)?),
            Some(What::Frames(frames)) => {
                let segment = frames.segment.map(Offset::new).transpose();
                let segment = segment.map_err(|error| Failure::usage(error.to_string()))?;
                files::frames(&data, &data.find(&frames.place.place)?, segment, frames.records)
            }
            Some(What::Index(place)) => files::indexes(&data, &data.find(&place.place)?),
            Some(What::Snapshot(place)) => files::snapshots(&data, &data.find(&place.place)?),
            Some(What::Witness) => files::witness(&data),
            Some(What::Catalog) => catalog::print(&data),
        }
    }
}

impl From<DirectoryError> for Failure {
    fn from(error: DirectoryError) -> Self {
        let exit = match &error {
            DirectoryError::Unusable { .. } => Exit::NotFound,
            _ => Exit::Failed,
        };
        Self::new(exit, error.to_string()).hint("name the data directory with --data")
    }
}

impl From<rimstone_log::FileError> for Failure {
    fn from(error: rimstone_log::FileError) -> Self {
        Self::failed(error.to_string())
    }
}

/// Where the witness of a directory is.
fn witness_of(data: &Data) -> Result<Vec<(rimstone_types::PartitionId, log::LogPosition)>, Failure> {
    Ok(log::read_witness(&data.path.join(rimstone_log::WITNESS_FILE))?)
}
