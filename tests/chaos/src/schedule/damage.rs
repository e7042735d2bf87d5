//! Files that were changed between two starts: flipped bits, cut, emptied, removed, exchanged, longer. What was stored
//! is read as it was, or named as lost, within the file that was changed; everything else is served.
//!
//! The changes are made to copies of the directory that a run of clients has left after its last stop or kill.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use rand::{RngExt as _, rngs::StdRng, seq::IndexedRandom as _};
use rimstone_proto::v1;

use crate::{
    clients::{Doors, answer::Failure, unix_ms, within},
    encode::batch,
    facts::{At, Facts, FinalLog},
    value::content,
    world::{World, gather::read_all},
};

/// Changed files in a run.
const CASES: usize = 12;
/// Records that one flipped bit may cost: those of the largest batch.
const BATCH_MAX: usize = 128;
/// The topic id of the catalog.
const CATALOG: &str = "00000000-0000-0000-0000-000000000001";

#[derive(Debug, Clone)]
struct Case {
    /// Relative to the data directory.
    file: PathBuf,
    other: Option<PathBuf>,
    change: Change,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Flip,
    Cut,
    Empty,
    Zero,
    Remove,
    Exchange,
    Longer,
}

const CHANGES: &[Change] = &[
    Change::Flip,
    Change::Flip,
    Change::Cut,
    Change::Empty,
    Change::Zero,
    Change::Remove,
    Change::Exchange,
    Change::Longer,
];

/// All files, relative.
pub(super) fn files(data: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), vec![data.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.metadata()?.len() > 0 {
                found.push(path.strip_prefix(data)?.to_path_buf());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The kind of a file: its suffix, or its name.
fn kind(file: &Path) -> String {
    let of_catalog = file.iter().any(|part| part == CATALOG);
    let kind = file.extension().or(file.file_name()).unwrap_or_default().to_string_lossy().into_owned();
    if of_catalog { format!("catalog {kind}") } else { kind }
}

fn choose(files: &[PathBuf], random: &mut StdRng) -> Case {
    // Each kind as often as the others, so that the one witness is not forgotten among the segments.
    let mut kinds: BTreeMap<String, Vec<&PathBuf>> = BTreeMap::new();
    for file in files {
        kinds.entry(kind(file)).or_default().push(file);
    }
    let kinds: Vec<_> = kinds.into_values().collect();
    let of_kind = kinds.choose(random).expect("there are files");
    let file = (*of_kind.choose(random).expect("a kind has files")).clone();
    let mut change = *CHANGES.choose(random).expect("there are changes");
    let other =
        of_kind.iter().filter(|other| ***other != file).map(|other| (*other).clone()).collect::<Vec<_>>();
    let other = other.choose(random).cloned();
    if change == Change::Exchange && other.is_none() {
        change = Change::Flip;
    }
    Case { other: other.filter(|_| change == Change::Exchange), file, change }
}

fn make(data: &Path, case: &Case, random: &mut StdRng) -> anyhow::Result<()> {
    let path = data.join(&case.file);
    let mut bytes = fs::read(&path)?;
    match case.change {
        Change::Flip => {
            let at = random.random_range(0..bytes.len());
            bytes[at] ^= 1 << random.random_range(0..8);
        }
        Change::Cut => bytes.truncate(random.random_range(1..=bytes.len()) - 1),
        Change::Empty => bytes.clear(),
        Change::Zero => bytes.fill(0),
        Change::Remove => {
            fs::remove_file(&path)?;
            return Ok(());
        }
        Change::Exchange => {
            let other = data.join(case.other.as_ref().context("it was chosen")?);
            let theirs = fs::read(&other)?;
            fs::write(&other, &bytes)?;
            bytes = theirs;
        }
        Change::Longer => bytes.extend((0..random.random_range(1..300)).map(|_| random.random::<u8>())),
    }
    fs::write(&path, bytes)?;
    Ok(())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let target = to.join(path.file_name().context("an entry has a name")?);
        if path.is_dir() {
            copy(&path, &target)?
        } else {
            fs::copy(&path, &target)?;
        }
    }
    Ok(())
}

/// After a run: changes one file after the other, each in a copy of its own.
pub(super) async fn cases(world: &mut World, facts: &Facts) -> anyhow::Result<()> {
    let all = files(&world.data())?;
    let original = world.data();
    for number in 0..CASES {
        let case = choose(&all, &mut world.random);
        let data = world.home.join(format!("case-{number}"));
        copy(&original, &data)?;
        make(&data, &case, &mut world.random)?;
        let before = world.report().wrong.len();
        one(world, facts, &case, &data).await.with_context(|| format!("{case:?}"))?;
        world.kill();
        world.fired_quietly(&format!("{:?} of {}", case.change, kind(&case.file)).to_lowercase());
        if world.report().wrong.len() == before {
            fs::remove_dir_all(&data)?;
        }
    }
    Ok(())
}

/// Whether a start may refuse: it does not guess who it is, nor what topics there are.
fn may_refuse(case: &Case) -> bool {
    let name = kind(&case.file);
    name == "meta" || name == "catalog log"
}

async fn one(world: &mut World, facts: &Facts, case: &Case, data: &Path) -> anyhow::Result<()> {
    let mut appended: BTreeMap<At, BTreeMap<u64, u64>> = BTreeMap::new();
    for start in 0..2 {
        let setup = world.setup().data(data).setting("storage.maintenance_interval", "1h");
        let setup = setup.setting("storage.compaction_interval", "1h");
        if let Some(failure) = world.try_start_as(setup).await {
            let named = failure.status.signal().is_none() && failure.output.contains("error: ");
            if !may_refuse(case) || !named {
                world.wrong(format!(
                    "{case:?}: start {start} ended with {}: {}",
                    failure.status, failure.output
                ));
            }
            return Ok(());
        }
        let mut doors = Doors::to(&world.load.endpoint);
        let listed = within(doors.admin.list_topics(v1::ListTopicsRequest::default())).await?.into_inner();
        for topic in facts.topics.keys().filter(|topic| facts.listed.contains(*topic)) {
            if !listed.topics.iter().any(|listed| listed.name == *topic) {
                world.wrong(format!("{case:?}: start {start}: topic {topic} is gone, and nobody says so"));
                return Ok(());
            }
        }
        for (at, known) in &facts.finals {
            let topic = facts.topics[&at.0];
            let read = read_all(&mut doors, &at.0, at.1, topic.compacted).await;
            let hurt = world.is_of(at, &case.file)
                || case.other.as_ref().is_some_and(|other| world.is_of(at, other));
            match read {
                Ok(log) => {
                    if start == 0 && log.start == known.start {
                        look_up(world, &mut doors, facts, at, &log, case).await?;
                    }
                    let wrong = compare(case, at, known, &log, hurt, appended.get(at));
                    wrong
                        .into_iter()
                        .for_each(|wrong| world.wrong(format!("{case:?}: start {start}: {wrong}")));
                }
                // Named as unavailable, as a whole.
                Err(error) if hurt && error.to_string().contains("PARTITION_UNAVAILABLE") => {}
                Err(error) => world.wrong(format!("{case:?}: start {start}: {error:#}")),
            }
        }
        if start == 0 {
            if !matches!(kind(&case.file).as_str(), "log" | "log-start") {
                lag(world, &mut doors, facts, case).await?;
            }
            for at in facts.finals.keys() {
                append(world, &mut doors, at, facts.topics[&at.0].compacted, &mut appended).await?;
            }
            world.kill_or_stop_forgiving().await;
        }
    }
    Ok(())
}

/// Look-ups by time answer as before, or name what is lost right before the first record that is left and late enough.
async fn look_up(
    world: &mut World,
    doors: &mut Doors,
    facts: &Facts,
    at: &At,
    log: &FinalLog,
    case: &Case,
) -> anyhow::Result<()> {
    for lookup in facts.lookups.iter().filter(|lookup| lookup.at == *at) {
        let request = v1::ListOffsetsRequest {
            topic: at.0.clone(),
            partitions: vec![at.1],
            at: Some(v1::list_offsets_request::At::TimeMs(lookup.time_ms)),
            ..Default::default()
        };
        let answer = within(doors.admin.list_offsets(request)).await?.into_inner();
        let found = answer.offsets.first().context("one partition was asked for")?;
        let right = match &found.error {
            None => found.offset == lookup.offset || stands(log, lookup.time_ms, found.offset),
            Some(error) => {
                let failure = Failure::of_item(error);
                let range = failure.number("from_offset").zip(failure.number("until_offset"));
                failure.reason == "DATA_DAMAGED"
                    && range.is_some_and(|range| leads_to(log, lookup.time_ms, range))
            }
        };
        if !right {
            world.wrong(format!("{case:?}: {lookup:?} is answered by {found:?}, lost are {:?}", log.lost));
        }
    }
    Ok(())
}

/// The first record that is left and not earlier, and where the record before it ends.
fn first_left(log: &FinalLog, time_ms: i64) -> (Option<u64>, u64) {
    let place = log.times.iter().position(|(create, _)| *create >= time_ms);
    let before = place.unwrap_or(log.records.len()).checked_sub(1);
    let behind = before.map_or(log.start, |before| log.records[before].0 + 1);
    (place.map(|place| log.records[place].0), behind)
}

/// Whether it is the first that is left, with an earlier record between it and anything that is lost.
fn stands(log: &FinalLog, time_ms: i64, found: Option<u64>) -> bool {
    let (first, behind) = first_left(log, time_ms);
    let until = first.unwrap_or(log.end);
    found == first && !log.lost.iter().any(|(from, to)| *from < until && behind < *to)
}

/// Whether the range is lost, right before that.
fn leads_to(log: &FinalLog, time_ms: i64, range: (u64, u64)) -> bool {
    let (first, behind) = first_left(log, time_ms);
    log.lost.contains(&range) && behind <= range.0 && range.1 <= first.unwrap_or(log.end)
}

/// The lag of groups is counted as before: no log was changed.
async fn lag(world: &mut World, doors: &mut Doors, facts: &Facts, case: &Case) -> anyhow::Result<()> {
    let groups: std::collections::BTreeSet<_> = facts.lag.iter().map(|lag| lag.group.clone()).collect();
    for group in groups {
        let request = v1::GetLagRequest { groups: vec![group.clone()], topics: Vec::new() };
        let answer = within(doors.lag.get_lag(request)).await?.into_inner();
        for known in facts.lag.iter().filter(|known| known.group == group) {
            let now =
                answer.partitions.iter().find(|now| (&now.topic, now.partition) == (&known.at.0, known.at.1));
            if now
                .is_none_or(|now| now.committed_offset != known.committed || now.lag_records != known.records)
            {
                world.wrong(format!("{case:?}: {known:?} is {now:?} now"));
            }
        }
    }
    Ok(())
}

/// What is wrong with a partition after a file was changed.
fn compare(
    case: &Case,
    at: &At,
    known: &FinalLog,
    log: &FinalLog,
    hurt: bool,
    appended: Option<&BTreeMap<u64, u64>>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut expected: BTreeMap<u64, Option<u64>> = known.records.iter().copied().collect();
    expected.extend(appended.into_iter().flatten().map(|(offset, value)| (*offset, Some(*value))));
    let there: BTreeMap<u64, Option<u64>> = log.records.iter().copied().collect();
    for (offset, value) in &there {
        // Without a readable log start what lies before it in the first segment is back, as it was.
        let is_back = *offset < known.start && kind(&case.file) == "log-start" && value.is_some();
        if expected.get(offset) != Some(value) && !is_back {
            wrong.push(format!("{at:?} offset {offset} is {value:?}, it was {:?}", expected.get(offset)));
        }
    }
    let is_named = |offset: u64| log.lost.iter().any(|(from, until)| (*from..*until).contains(&offset));
    let missing: Vec<u64> = expected
        .keys()
        .copied()
        .filter(|offset| *offset >= log.start && !there.contains_key(offset))
        .collect();
    let unnamed: Vec<_> = missing.iter().filter(|offset| !is_named(**offset)).collect();
    if !unnamed.is_empty() {
        wrong.push(format!(
            "{at:?}: {} records from offset {} are missing, and not named",
            unnamed.len(),
            unnamed[0]
        ));
    }
    if log.start > known.start {
        wrong.push(format!("{at:?} begins at {} now, it was {}", log.start, known.start));
    }
    let of_log = kind(&case.file) == "log";
    let excused = hurt && of_log;
    if !excused && !missing.is_empty() {
        wrong.push(format!("{at:?}: {} records are lost, and no segment of it was changed", missing.len()));
    }
    if case.change == Change::Flip && missing.len() > BATCH_MAX {
        wrong.push(format!("{at:?}: a flipped bit costs {} records", missing.len()));
    }
    wrong
}

/// One more record in a partition; one that is hurt may refuse it by name.
async fn append(
    world: &mut World,
    doors: &mut Doors,
    at: &At,
    compacted: bool,
    appended: &mut BTreeMap<At, BTreeMap<u64, u64>>,
) -> anyhow::Result<()> {
    let number = world.load.take_numbers(1);
    ensure!(content(number, compacted).number.len() == 16, "a number is 16 digits");
    let data = batch(number, 1, compacted, None, unix_ms());
    let batch = v1::EncodedBatch { data, append_time_ms: 0 };
    let batches = vec![v1::PartitionBatch { partition: at.1, batch: Some(batch), expected_end: None }];
    let request = v1::ProduceRequest { topic: at.0.clone(), batches, ..Default::default() };
    let answer = match within(doors.produce.produce(request)).await {
        Ok(answer) => answer.into_inner().appends.into_iter().next(),
        Err(status) if Failure::of_status(&status).reason == "PARTITION_UNAVAILABLE" => return Ok(()),
        Err(status) => return Err(status).with_context(|| format!("an append to {at:?}")),
    };
    match answer {
        Some(v1::PartitionAppend { error: None, base_offset: Some(offset), .. }) => {
            appended.entry(at.clone()).or_default().insert(offset, number);
        }
        Some(v1::PartitionAppend { error: Some(error), .. }) if error.reason == "PARTITION_UNAVAILABLE" => {}
        other => world.wrong(format!("an append to {at:?} came to {other:?}")),
    }
    Ok(())
}
