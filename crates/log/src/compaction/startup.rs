//! What compaction means to a start: files that a crash left behind, and what compacted segments attest.

use std::{collections::HashMap, path::Path};

use rimstone_types::{Offset, PartitionId};

use crate::{
    error::FileError,
    files,
    frame::{Content, Frame, LogPosition, SEGMENT_HEADER_LENGTH},
    segment::{HEADERS_WINDOW, Opened, Segment},
    walk::{Step, Walker},
};

/// Removes segments that lie inside the range of one that compaction wrote: a crash came between the rename and
/// their removal. What cannot be such a one is set aside: somebody has put it there. Answers how many.
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
    // Of each segment that stands for others, once: many may be left of what it was written from.
    let mut given_up: HashMap<usize, Option<Vec<(Offset, Offset)>>> = HashMap::new();
    for (number, segment) in superseded {
        let by = &kept[number];
        let given_up = given_up.entry(number).or_insert_with(|| lost_ranges(by));
        match unexplained(by, given_up.as_deref(), &segment) {
            None => {
                tracing::info!(partition = %id, segment = %segment.base, by = %by.base, "a superseded segment was removed");
                files::remove_file(segment.path())?;
            }
            Some(reason) => {
                let aside = files::set_aside(segment.path())?;
                tracing::error!(partition = %id, file = %aside.display(), by = %by.base, reason, "a segment file was set aside: another segment stands for its offsets, and no compaction has left it");
            }
        }
        files::remove_file(&segment.index_path())?;
    }
    if count > 0 {
        files::sync_directory(directory)?;
    }
    *segments = kept;
    Ok(count)
}

/// Why a segment is none of those that `by` was written from, or must not go all the same; `None`: a crash has left it.
fn unexplained(by: &Segment, given_up: Option<&[(Offset, Offset)]>, segment: &Segment) -> Option<String> {
    let end_of = |segment: &Segment| segment.read_seal().ok().flatten().map(|totals| totals.next_offset);
    // It was whole before it had its name; if it is not any more, nothing more is to be lost.
    if end_of(by) != by.header.range_end {
        return Some("the one in its place is damaged".to_owned());
    }
    if let Some(reason) = &segment.broken {
        return Some(reason.clone());
    }
    // Compaction replaces what is sealed, and all of it.
    let end = end_of(segment).filter(|end| Some(*end) <= by.header.range_end);
    let Some(end) = end else { return Some("it has no seal, or reaches further".to_owned()) };
    let (Some(given_up), Some(known)) = (given_up, lost_ranges(segment)) else {
        return Some("one of the two is damaged".to_owned());
    };
    // Names that an acceptance finds are durable before its marker is, so what compaction has left knows the markers.
    // Both are in the order of their offsets.
    let forgotten = |range: &&(Offset, Offset)| {
        range.0 < end && segment.base < range.1 && known.binary_search(range).is_err()
    };
    let back = given_up.iter().find(forgotten);
    back.map(|(from, until)| format!("offsets {from} to {until} were given up, and it has them"))
}

/// The ranges of the markers in a segment; `None` if it cannot be read from end to end.
fn lost_ranges(segment: &Segment) -> Option<Vec<(Offset, Offset)>> {
    let source = Opened::new(segment).ok()?;
    let (start, end) = (SEGMENT_HEADER_LENGTH as u64, segment.end());
    let mut walker = Walker::new(source, segment.header.salt, start, end, HEADERS_WINDOW).over_headers();
    let mut ranges = Vec::new();
    loop {
        match walker.step().ok()? {
            Step::Frame(_, Frame { content: Content::Batch(header), .. }) if header.is_lost() => {
                ranges.push((header.base_offset, header.next_offset()));
            }
            Step::Frame(..) => {}
            Step::Invalid(..) => return None,
            Step::End => return Some(ranges),
        }
    }
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
