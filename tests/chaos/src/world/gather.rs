//! What the server shows in the end, and what the files hold.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, ensure};
use rand::{RngExt as _, seq::IteratorRandom as _};
use rimstone_proto::v1;

use super::World;
use crate::{
    clients::{Doors, answer::Failure, library, tail, within},
    event::What,
    facts::{At, Facts, FinalLog, Lag, TimeLookup, Topic},
    files,
};

/// Look-ups by time in each partition.
const LOOKUPS: usize = 4;

impl World {
    /// Everything that the server shows.
    pub(super) async fn shown(&mut self) -> anyhow::Result<Facts> {
        let mut doors = Doors::to(&self.load.endpoint);
        let events = self.load.recorder.events();
        let mut facts = Facts { topics: (*self.load.topics).clone(), events, ..Default::default() };
        let listed = within(doors.admin.list_topics(v1::ListTopicsRequest::default())).await?.into_inner();
        facts.listed = listed.topics.iter().map(|topic| topic.name.clone()).collect();
        self.ids = listed.topics.into_iter().map(|topic| (topic.name, topic.id)).collect();
        for topic in made(&facts) {
            facts.topics.insert(topic, Topic { partitions: 1, ..Default::default() });
        }
        for (name, topic) in facts.topics.clone() {
            if !facts.listed.contains(&name) {
                continue;
            }
            for partition in 0..topic.partitions {
                let log = read_all(&mut doors, &name, partition, topic.compacted).await?;
                let at = (name.clone(), partition);
                self.look_up(&mut doors, &at, &log, &mut facts.lookups).await?;
                facts.finals.insert(at, log);
            }
        }
        let groups: Vec<_> = self
            .load
            .topics
            .keys()
            .map(|topic| tail::group_of(topic))
            .chain([library::GROUP.to_owned()])
            .collect();
        for group in groups {
            offsets_of(&mut doors, group, &mut facts).await?;
        }
        Ok(facts)
    }

    async fn look_up(
        &mut self,
        doors: &mut Doors,
        at: &At,
        log: &FinalLog,
        lookups: &mut Vec<TimeLookup>,
    ) -> anyhow::Result<()> {
        let times: Vec<i64> = log.times.iter().map(|(create, _)| *create).sample(&mut self.random, LOOKUPS);
        for time in times {
            let time_ms = time + self.random.random_range(-1..=1);
            let request = v1::ListOffsetsRequest {
                topic: at.0.clone(),
                partitions: vec![at.1],
                at: Some(v1::list_offsets_request::At::TimeMs(time_ms)),
                ..Default::default()
            };
            let answer = within(doors.admin.list_offsets(request)).await?.into_inner();
            let found = answer.offsets.first().context("one partition was asked for")?;
            ensure!(found.error.is_none(), "{at:?}: {:?}", found.error);
            lookups.push(TimeLookup { at: at.clone(), time_ms, offset: found.offset });
        }
        Ok(())
    }

    /// What the files of the stopped server hold.
    pub(super) fn files(&mut self, facts: &mut Facts) -> anyhow::Result<()> {
        let ids: BTreeMap<&str, &str> =
            self.ids.iter().map(|(name, id)| (id.as_str(), name.as_str())).collect();
        let data = self.data();
        for (id, partition, _) in files::partitions(&data)? {
            let Some(name) = ids.get(id.as_str()) else { continue };
            let Some(topic) = facts.topics.get(*name) else { continue };
            let log = files::read(&data, &id, partition, topic.compacted)
                .with_context(|| format!("the files of {name}/{partition}"))?;
            facts.files.insert(((*name).to_owned(), partition), log);
        }
        let missing: Vec<_> = facts.finals.keys().filter(|at| !facts.files.contains_key(*at)).collect();
        ensure!(missing.is_empty(), "no files for {missing:?}");
        Ok(())
    }
}

/// Topics that were made during the run and not deleted.
fn made(facts: &Facts) -> BTreeSet<String> {
    let mut asked = BTreeMap::new();
    let mut made = BTreeSet::new();
    for event in &facts.events {
        match &event.what {
            What::Create { topic } => drop(asked.insert(event.op, topic.clone())),
            What::Delete { topic } => drop(made.remove(topic)),
            What::Done => {
                if let Some(topic) = asked.remove(&event.op) {
                    made.insert(topic);
                }
            }
            _ => {}
        }
    }
    made
}

/// A partition from its log start to its high watermark. Damage is skipped, and told.
pub(crate) async fn read_all(
    doors: &mut Doors,
    topic: &str,
    partition: u32,
    compacted: bool,
) -> anyhow::Result<FinalLog> {
    let mut log = FinalLog::default();
    let mut offset = 0;
    loop {
        let request = v1::FetchRequest {
            topic: topic.to_owned(),
            partitions: vec![v1::FetchPartition { partition, offset, max_bytes: 0 }],
            ..Default::default()
        };
        let answer = within(doors.consume.fetch(request)).await?.into_inner();
        let part = answer.partitions.into_iter().next().context("one partition was asked for")?;
        if let Some(error) = part.error {
            let failure = Failure::of_item(&error);
            offset = match (failure.reason.as_str(), failure.number("log_start_offset")) {
                ("OFFSET_OUT_OF_RANGE", Some(start)) if start > offset => start,
                ("DATA_DAMAGED", _) => {
                    let lost = failure.number("from_offset").zip(failure.number("until_offset"));
                    let lost = lost.with_context(|| format!("damage without a range: {failure:?}"))?;
                    ensure!(lost.1 > offset, "damage that does not end behind {offset}: {failure:?}");
                    log.lost.push(lost);
                    lost.1
                }
                _ => anyhow::bail!("{topic}/{partition} cannot be read from {offset}: {failure:?}"),
            };
            continue;
        }
        let ends = part.ends.context("an answer has the ends")?;
        (log.start, log.end) = (ends.log_start_offset, ends.high_watermark);
        log.records.extend(part.records.iter().map(|record| tail::seen(record, compacted)));
        log.times.extend(part.records.iter().map(|record| (record.create_time_ms, record.append_time_ms)));
        if part.next_offset >= log.end || part.next_offset == offset {
            return Ok(log);
        }
        offset = part.next_offset;
    }
}

async fn offsets_of(doors: &mut Doors, group: String, facts: &mut Facts) -> anyhow::Result<()> {
    let request = v1::FetchOffsetsRequest { group: group.clone(), partitions: Vec::new() };
    let offsets = match within(doors.groups.fetch_offsets(request)).await {
        Ok(answer) => answer.into_inner().offsets,
        Err(status) if Failure::of_status(&status).reason == "GROUP_NOT_FOUND" => Vec::new(),
        Err(status) => return Err(status).context("the offsets of a group"),
    };
    let offsets: BTreeMap<_, _> =
        offsets.into_iter().filter_map(|at| Some(((at.topic, at.partition), at.offset?))).collect();
    let known = !offsets.is_empty();
    facts.committed.insert(group.clone(), offsets);
    if !known {
        return Ok(());
    }
    let request = v1::GetLagRequest { groups: vec![group], topics: Vec::new() };
    let answer = within(doors.lag.get_lag(request)).await.context("the lag of a group")?.into_inner();
    for lag in answer.partitions {
        ensure!(lag.error.is_none(), "{lag:?}");
        facts.lag.push(Lag {
            group: lag.group,
            at: (lag.topic, lag.partition),
            committed: lag.committed_offset,
            records: lag.lag_records,
        });
    }
    Ok(())
}
