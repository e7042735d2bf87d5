//! Segments, indexes, snapshots and the witness, in tables.

use std::io::{self, BufWriter, Write};

use rimstone_log::inspect::{self as log, Item, SegmentView};
use rimstone_record::Batch;
use rimstone_types::{ByteCount, Numbering, Offset, PartitionId, Timestamp};

use crate::{
    exit::{Failure, Outcome},
    inspect::{data::Data, witness_of},
    output::{line, table},
    times::rfc3339,
};

/// A time in a table; empty where there is none.
fn time(time: Timestamp) -> String {
    if time == Timestamp::MIN { String::new() } else { rfc3339(time) }
}

fn open(data: &Data, partition: PartitionId, base: Offset) -> Result<SegmentView, Failure> {
    SegmentView::open(&data.directory(partition), base).map_err(|error| Failure::failed(error.to_string()))
}

/// What there is.
pub(crate) fn summary(data: &Data) -> Outcome {
    let clean =
        if data.path.join("clean").exists() { "stopped cleanly" } else { "running, or not stopped cleanly" };
    line(format!("{}, server {}, {clean}\n", data.path.display(), data.server_id))?;
    let witness = witness_of(data)?;
    let mut rows = Vec::new();
    for partition in &data.partitions {
        let directory = data.directory(*partition);
        let segments = log::segments(&directory)?;
        let mut bytes = 0;
        for base in &segments {
            bytes += open(data, *partition, *base)?.length;
        }
        let first = segments.first().copied().unwrap_or_default();
        let start = log::read_log_start(&directory)?.unwrap_or(first).max(first);
        let attested = witness.iter().find(|(id, _)| id == partition);
        rows.push([
            data.name(*partition),
            start.to_string(),
            attested.map_or("-".to_owned(), |(_, end)| end.offset.to_string()),
            segments.len().to_string(),
            ByteCount(bytes).to_string(),
            partition.topic.to_string(),
        ]);
    }
    Ok(table(["PARTITION", "START", "WITNESSED END", "SEGMENTS", "BYTES", "TOPIC ID"], &rows)?)
}

/// The segments of some partitions.
pub(crate) fn segments(data: &Data, partitions: &[PartitionId]) -> Outcome {
    let mut rows = Vec::new();
    for partition in partitions {
        for base in log::segments(&data.directory(*partition))? {
            let view = open(data, *partition, base)?;
            let (mut frames, mut records, mut invalid, mut seal) = (0u64, 0u64, 0u64, "no");
            let (mut next, mut last) = (base, Timestamp::MIN);
            view.each(|item| match item {
                Item::Batch { header, append_time, .. } => {
                    frames += 1;
                    records += header.records_there();
                    (next, last) = (header.next_offset(), append_time);
                }
                Item::Seal { agrees, .. } => seal = if agrees { "yes" } else { "wrong" },
                Item::Invalid { bytes, .. } => invalid += bytes,
            })?;
            rows.push([
                data.name(*partition),
                base.to_string(),
                next.to_string(),
                frames.to_string(),
                records.to_string(),
                ByteCount(view.length).to_string(),
                seal.to_owned(),
                if view.broken.is_some() { String::new() } else { time(view.header.created) },
                time(last),
                match &view.broken {
                    Some(why) => why.clone(),
                    None if invalid > 0 => format!("{invalid} bytes are no frames"),
                    None => compacted(&view),
                },
            ]);
        }
        for (path, bytes) in log::set_aside(&data.directory(*partition))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let mut row = <[String; 10]>::default();
            (row[0], row[5]) = (data.name(*partition), ByteCount(bytes).to_string());
            row[9] = format!("set aside by recovery: {name}");
            rows.push(row);
        }
    }
    let head =
        ["PARTITION", "BASE", "NEXT", "FRAMES", "RECORDS", "BYTES", "SEALED", "MADE", "LAST APPEND", ""];
    Ok(table(head, &rows)?)
}

/// How far compaction has gone over a segment.
fn compacted(view: &SegmentView) -> String {
    let extent = match view.header.range_end {
        None => return String::new(),
        Some(end) if view.header.cleaned_end() == end => "compacted".to_owned(),
        Some(_) => format!("compacted up to {}", view.header.cleaned_end()),
    };
    match view.header.passed_by {
        0 => extent,
        count => format!("{extent}, with {count} before it passed by"),
    }
}

/// Every frame of some partitions.
pub(crate) fn frames(
    data: &Data,
    partitions: &[PartitionId],
    only: Option<Offset>,
    records: bool,
) -> Outcome {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut shown = false;
    for partition in partitions {
        for base in log::segments(&data.directory(*partition))? {
            if only.is_some_and(|only| only != base) {
                continue;
            }
            shown = true;
            let view = open(data, *partition, base)?;
            writeln!(out, "segment {} {base}, {} bytes", data.name(*partition), view.length)?;
            if let Some(why) = &view.broken {
                writeln!(out, "  broken: {why}")?;
            }
            let mut written = Ok(());
            view.each(|item| {
                if written.is_ok() {
                    written = frame(&mut out, item, records);
                }
            })?;
            written?;
        }
    }
    out.flush()?;
    match only {
        Some(only) if !shown => {
            Err(Failure::new(crate::exit::Exit::NotFound, format!("there is no segment {only}")))
        }
        _ => Ok(()),
    }
}

fn frame(out: &mut impl Write, item: Item, records: bool) -> io::Result<()> {
    match item {
        Item::Batch { position, size, append_time, durable, header, batch, linked } => {
            write!(
                out,
                "  {position:>10} batch {}..={} of {} records, {size} bytes, {}, appended {}, times up to {}, durable {}@{}",
                header.base_offset,
                header.last_offset(),
                header.record_count,
                header.compression(),
                rfc3339(append_time),
                rfc3339(header.max_timestamp),
                durable.segment,
                durable.position,
            )?;
            if let Some(stamp) = header.producer {
                let numbering = match stamp.numbering {
                    Numbering::Dense => "sequence",
                    Numbering::ByRequest => "request",
                };
                write!(out, ", producer {} epoch {} {numbering} {}", stamp.id, stamp.epoch, stamp.base)?;
            }
            if header.is_lost() {
                write!(out, ", GIVEN UP {}", rfc3339(header.base_timestamp))?;
            }
            writeln!(out, "{}", if linked { "" } else { ", NOT LINKED to the frame before" })?;
            match batch {
                Ok(batch) if records => print_records(out, &batch)?,
                Ok(_) => {}
                Err(why) => writeln!(out, "             DAMAGED: {why}")?,
            }
            Ok(())
        }
        Item::Seal { position, totals, durable, agrees } => writeln!(
            out,
            "  {position:>10} seal: {} records in {} frames, next offset {}, durable {}@{}{}",
            totals.records,
            totals.frames,
            totals.next_offset,
            durable.segment,
            durable.position,
            if agrees { "" } else { ", WHICH IS NOT WHAT IS THERE" },
        ),
        Item::Invalid { position, bytes, reason } => {
            writeln!(out, "  {position:>10} {bytes} bytes that are no frame: {reason}")
        }
    }
}

fn print_records(out: &mut impl Write, batch: &Batch) -> io::Result<()> {
    let records = match batch.records(&log::LIMITS) {
        Ok(records) => records,
        Err(error) => return writeln!(out, "             DAMAGED: {error}"),
    };
    for record in records {
        match record {
            Ok(record) => {
                let show = |bytes: Option<&[u8]>| {
                    bytes.map_or("none".to_owned(), |bytes| format!("\"{}\"", bytes.escape_ascii()))
                };
                writeln!(
                    out,
                    "             {} {} key {} value {}",
                    record.offset,
                    rfc3339(record.timestamp),
                    show(record.key.as_deref()),
                    show(record.value.as_deref()),
                )?;
            }
            Err(error) => writeln!(out, "             DAMAGED: {error}")?,
        }
    }
    Ok(())
}

/// The indexes of some partitions.
pub(crate) fn indexes(data: &Data, partitions: &[PartitionId]) -> Outcome {
    let mut rows = Vec::new();
    for partition in partitions {
        let directory = data.directory(*partition);
        for base in log::segments(&directory)? {
            let name = format!("{} {base}", data.name(*partition));
            let Some((header, entries)) = log::index(&directory, base)? else {
                let mut row = <[String; 6]>::default();
                (row[0], row[1]) =
                    (name, "none: it is made when the segment is rolled or the server stops".to_owned());
                rows.push(row);
                continue;
            };
            rows.push([
                name.clone(),
                format!("up to {}", header.end),
                header.totals.next_offset.to_string(),
                header.totals.records.to_string(),
                time(header.totals.max_time),
                time(header.totals.last_append),
            ]);
            rows.extend(entries.iter().map(|entry| {
                [
                    name.clone(),
                    entry.position.to_string(),
                    base.saturating_add(entry.offset_delta.into()).to_string(),
                    entry.records_before.to_string(),
                    time(entry.max_time_before),
                    time(entry.append_time),
                ]
            }));
        }
    }
    let head = ["SEGMENT", "POSITION", "OFFSET", "RECORDS BEFORE", "TIMES UP TO, BEFORE", "APPENDED"];
    Ok(table(head, &rows)?)
}

/// The producer snapshots of some partitions.
pub(crate) fn snapshots(data: &Data, partitions: &[PartitionId]) -> Outcome {
    let mut rows = Vec::new();
    for partition in partitions {
        let directory = data.directory(*partition);
        for offset in log::snapshots(&directory)? {
            let (name, at) = (data.name(*partition), offset.to_string());
            let table = match log::producer_snapshot(&directory, offset)? {
                Ok(table) => table,
                Err(why) => {
                    let mut row = <[String; 8]>::default();
                    (row[0], row[1], row[2]) = (name, at, format!("unreadable: {why}"));
                    rows.push(row);
                    continue;
                }
            };
            rows.extend(table.iter().map(|(id, entry)| {
                [
                    name.clone(),
                    at.clone(),
                    id.to_string(),
                    entry.epoch().to_string(),
                    entry.last().map_or("-".to_owned(), |last| last.to_string()),
                    match entry.numbering() {
                        Numbering::Dense => "record".to_owned(),
                        Numbering::ByRequest => "request".to_owned(),
                    },
                    entry.batches().count().to_string(),
                    time(entry.last_append()),
                ]
            }));
        }
    }
    let head = ["PARTITION", "AT", "PRODUCER", "EPOCH", "LAST", "NUMBERED BY", "BATCHES", "LAST APPEND"];
    Ok(table(head, &rows)?)
}

/// What the witness attests.
pub(crate) fn witness(data: &Data) -> Outcome {
    let mut witness = witness_of(data)?;
    witness.sort_by_key(|(partition, _)| *partition);
    let rows = witness.iter().map(|(partition, end)| {
        [data.name(*partition), end.offset.to_string(), end.segment.to_string(), end.position.to_string()]
    });
    Ok(table(["PARTITION", "END", "SEGMENT", "POSITION"], &rows.collect::<Vec<_>>())?)
}
