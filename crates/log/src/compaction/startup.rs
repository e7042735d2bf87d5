//! What compaction means to a start: files that a crash left behind, and what compacted segments attest.

use std::path::Path;

use rimstone_types::PartitionId;

use crate::{
    error::FileError,
    files,
    frame::{LogPosition, SEGMENT_HEADER_LENGTH},
    segment::Segment,
};

/// Removes segments that lie inside the range of one that compaction wrote: a crash came between the rename and
/// their removal. Answers how many.
pub(crate) fn remove_superseded(
    directory: &Path,
    id: PartitionId,
    segments: &mut Vec<Segment>,
) -> Result<u32, FileError> {
    let mut superseded = Vec::new();
    let mut kept: Vec<Segment> = Vec::with_capacity(segments.len());
    for segment in segments.drain(..) {
        let range_end =
            kept.last().filter(|last| last.broken.is_none()).and_then(|last| last.header.range_end);
        match range_end {
            Some(end) if segment.base < end => superseded.push((kept.len() - 1, segment)),
            _ => kept.push(segment),
        }
    }
    let count = superseded.len() as u32;
    for (by, segment) in superseded {
        let by = &kept[by];
        // It was whole before it had its name; if it is not any more, nothing more is to be lost.
        let whole =
            matches!(by.read_seal(), Ok(Some(totals)) if Some(totals.next_offset) == by.header.range_end);
        if whole {
            tracing::info!(partition = %id, segment = %segment.base, by = %by.base, "a superseded segment was removed");
            files::remove_file(segment.path())?;
        } else {
            tracing::error!(partition = %id, segment = %segment.base, by = %by.base, "a superseded segment was set aside: the one in its place is damaged");
            files::rename(segment.path(), &segment.path().with_extension(files::TORN_SUFFIX))
                .map_err(|error| FileError::new("rename", segment.path(), error))?;
        }
        files::remove_file(&segment.index_path())?;
    }
    if count > 0 {
        files::sync_directory(directory)?;
    }
    *segments = kept;
    Ok(count)
}

/// The durable end that compacted segments attest by being there: everything below the end of their range was
/// durable when they were written. A witness or a frame may still name a place in a file that they replaced.
pub(crate) fn attested(segments: &[Segment]) -> Option<LogPosition> {
    segments
        .iter()
        .filter(|segment| segment.broken.is_none())
        .filter_map(|segment| segment.header.range_end)
        .max()
        .map(|end| LogPosition { segment: end, position: SEGMENT_HEADER_LENGTH as u64, offset: end })
}
