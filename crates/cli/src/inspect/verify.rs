//! `inspect --verify`: every byte of every segment, against everything that attests it.
//!
//! What is wrong below the attested end is damaged acknowledged data. What is wrong above it is a torn tail,
//! which the next start sets aside; an index or a snapshot that is wrong is made anew. Those two are told,
//! and are no failure.

use std::collections::HashSet;

use rimstone_log::inspect::{self as log, Item, LogPosition, SegmentView};
use rimstone_types::{Offset, PartitionId};

use crate::{
    exit::{Exit, Failure, Outcome},
    inspect::{data::Data, witness_of},
    output::{line, note},
};

/// What was found in one partition.
#[derive(Debug, Default)]
struct Findings {
    records: u64,
    bytes: u64,
    /// Of acknowledged data.
    damage: Vec<String>,
    /// What heals by itself.
    remarks: Vec<String>,
}

/// Something wrong at a place; whether it is damage is known when the attested end is.
type Suspect = (Offset, u64, String);

/// Verifies a whole directory.
pub(crate) fn verify(data: &Data) -> Outcome {
    let witness = witness_of(data)?;
    let mut damaged = 0;
    for partition in &data.partitions {
        let attested = witness.iter().find(|(id, _)| id == partition).map(|(_, end)| *end);
        let findings = partition_findings(data, *partition, attested)?;
        let name = data.name(*partition);
        for remark in &findings.remarks {
            note(format!("{name}: {remark}"));
        }
        for damage in &findings.damage {
            line(format!("{name}: DAMAGED: {damage}"))?;
        }
        damaged += usize::from(!findings.damage.is_empty());
        if findings.damage.is_empty() {
            line(format!("{name}: {} records in {} bytes are whole", findings.records, findings.bytes))?;
        }
    }
    if damaged == 0 {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Damaged,
        format!("{damaged} of {} partitions have lost acknowledged data", data.partitions.len()),
    )
    .hint("the server serves everything else and answers DATA_LOSS for what is damaged"))
}

fn partition_findings(
    data: &Data,
    partition: PartitionId,
    witnessed: Option<LogPosition>,
) -> Result<Findings, Failure> {
    let directory = data.directory(partition);
    let mut findings = Findings::default();
    let mut suspects: Vec<Suspect> = Vec::new();
    let mut attested = witnessed.unwrap_or_default();
    let mut reached = LogPosition::default();
    let start = log::read_log_start(&directory)?.unwrap_or_default();
    let mut expected: Option<Offset> = None;
    for base in log::superseded(&directory)? {
        findings.remarks.push(format!(
            "segment {base} does not count, another stands for its offsets; the next start removes it, or sets it aside if \
             no compaction has left it"
        ));
    }
    for base in log::segments(&directory)? {
        let view = SegmentView::open(&directory, base).map_err(|error| Failure::failed(error.to_string()))?;
        if let Some(end) = view.header.range_end.filter(|_| view.broken.is_none()) {
            let position = log::FIRST_FRAME;
            attested = attested.max(LogPosition { segment: end, position, offset: end });
        }
        findings.bytes += view.length;
        if let Some(expected) = expected
            && expected < base
        {
            suspects.push((
                expected,
                0,
                format!("offsets {expected} to {base} are missing: no segment has them"),
            ));
        }
        if let Some(why) = &view.broken {
            suspects.push((base, 0, format!("segment {base} cannot be read: {why}")));
        }
        let mut positions = HashSet::new();
        let mut walk = Walk { base, start, findings: &mut findings, suspects: &mut suspects };
        view.each(|item| {
            if let Item::Batch { durable, .. } | Item::Seal { durable, .. } = &item {
                attested = attested.max(*durable);
            }
            if let Item::Batch { position, size, header, .. } = &item {
                positions.insert((*position, header.base_offset));
                reached =
                    LogPosition { segment: base, position: position + size, offset: header.next_offset() };
            }
            walk.see(item);
        })?;
        expected = Some(reached.offset.max(base));
        check_index(&directory, base, &positions, &mut findings)?;
    }
    for offset in log::snapshots(&directory)? {
        if let Err(why) = log::producer_snapshot(&directory, offset)? {
            findings
                .remarks
                .push(format!("producer snapshot {offset} is unreadable ({why}); it is made anew"));
        }
    }
    for loss in log::accepted_losses(&directory)? {
        findings.remarks.push(format!(
            "{}offsets {}..{} were given up; {} bytes are kept in {}",
            if loss.offsets == loss.until.since(loss.from) {
                String::new()
            } else {
                format!("{} of the ", loss.offsets)
            },
            loss.from,
            loss.until,
            loss.bytes,
            loss.kept.display()
        ));
    }
    for (path, bytes) in log::set_aside(&directory)? {
        findings.remarks.push(format!("{bytes} bytes of a torn tail were set aside in {}", path.display()));
    }
    for (segment, position, what) in suspects {
        if (segment, position) < (attested.segment, attested.position) {
            findings.damage.push(what);
        } else {
            findings.remarks.push(format!("{what}; nothing attests it, so the next start sets it aside"));
        }
    }
    if reached.offset < attested.offset {
        findings.damage.push(format!(
            "everything up to offset {} was durable, and only what is before {} is there",
            attested.offset, reached.offset
        ));
    }
    Ok(findings)
}

/// What is looked at in one segment.
struct Walk<'a> {
    base: Offset,
    start: Offset,
    findings: &'a mut Findings,
    suspects: &'a mut Vec<Suspect>,
}

impl Walk<'_> {
    fn see(&mut self, item: Item) {
        let base = self.base;
        let mut suspect = |position: u64, what: String| {
            self.suspects.push((base, position, format!("segment {base}, position {position}: {what}")));
        };
        match item {
            Item::Batch { position, header, batch, linked, .. } => {
                if header.next_offset() <= self.start {
                    // Deleted already, though still in the file.
                    return;
                }
                self.findings.records += header.records_there();
                let offsets = format!("offsets {} to {}", header.base_offset, header.last_offset());
                if !linked {
                    suspect(
                        position,
                        format!("the frame before {offsets} is not the one that was written before it"),
                    );
                }
                let read = batch.and_then(|batch| {
                    let records = batch.records(&log::LIMITS).map_err(|error| error.to_string())?;
                    records
                        .into_iter()
                        .try_for_each(|record| record.map(drop))
                        .map_err(|error| error.to_string())
                });
                if let Err(why) = read {
                    suspect(position, format!("{offsets}: {why}"));
                }
            }
            Item::Seal { position, agrees, .. } => {
                if !agrees {
                    suspect(position, "the seal says something else than what is there".to_owned());
                }
            }
            Item::Invalid { position, bytes, reason } => {
                suspect(position, format!("{bytes} bytes are no frame: {reason}"));
            }
        }
    }
}

fn check_index(
    directory: &std::path::Path,
    base: Offset,
    frames: &HashSet<(u64, Offset)>,
    findings: &mut Findings,
) -> Outcome {
    let Some((_, entries)) = log::index(directory, base)? else { return Ok(()) };
    let wrong = entries.iter().any(|entry| {
        !frames.contains(&(entry.position.into(), base.saturating_add(entry.offset_delta.into())))
    });
    if wrong {
        findings
            .remarks
            .push(format!("the index of segment {base} is wrong; it is only a cache and is made anew"));
    }
    Ok(())
}
