//! `rimstone topic`: makes, shows, changes and deletes topics.

mod loss;

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use rimstone_client::{Admin, OffsetQuery, Setting, TopicChange, TopicDetails, TopicSummary};
use rimstone_types::PartitionIndex;
use serde_json::{Value, json};

use crate::{
    exit::{Exit, Failure, Outcome},
    global::Global,
    output::{self, count, line, note, table},
    position::{Position, position},
    times::rfc3339,
};

/// Makes, shows, changes and deletes topics.
#[derive(Debug, Subcommand)]
pub(crate) enum Topic {
    /// Makes a topic
    Create(Create),
    /// Lists topics
    List(List),
    /// Shows a topic: its partitions, its settings with their bounds
    Describe(Describe),
    /// Changes settings, adds partitions
    Alter(Alter),
    /// Deletes a topic and everything in it
    Delete(Delete),
    /// Deletes the records before a place: moves the log start
    DeleteRecords(DeleteRecords),
    /// Shows what of a partition is damaged; gives it up for ever when it is named exactly
    AcceptLoss(loss::AcceptLoss),
}

/// Makes a topic.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// 1 to 249 characters of [a-zA-Z0-9._-]
    topic: String,
    /// How many partitions [default: the server's, 1 unless set otherwise]
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..))]
    partitions: Option<u32>,
    /// A setting, for example retention.ms=-1; may be repeated. `topic describe` shows them all
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// It is fine if the topic is there already, as it is
    #[arg(long)]
    if_not_exists: bool,
}

/// Lists topics.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Also the server's own, whose names begin with __
    #[arg(long)]
    internal: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Shows a topic.
#[derive(Debug, Args)]
pub(crate) struct Describe {
    /// Its name
    topic: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Changes settings, adds partitions.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Alter {
    /// Its name
    topic: String,
    /// A setting to set; may be repeated
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// A setting to put back to its default; may be repeated
    #[arg(long, value_name = "NAME")]
    reset: Vec<String>,
    /// The new number of partitions, not smaller than before; keys then go to other partitions
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..))]
    partitions: Option<u32>,
}

/// Deletes a topic.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Its name
    topic: String,
    /// It is fine if there is no such topic
    #[arg(long)]
    if_exists: bool,
}

/// Deletes the records before a place.
#[derive(Debug, Args)]
pub(crate) struct DeleteRecords {
    /// Its name
    topic: String,
    /// The first record to keep: latest (keeps none), an offset, or a time (partitions without a record
    /// since then stay as they are)
    #[arg(long, value_name = "PLACE", value_parser = position)]
    before: Position,
    /// Only in this partition; may be repeated
    #[arg(short, long = "partition", value_name = "N")]
    partitions: Vec<u32>,
}

impl Topic {
    pub(crate) async fn run(self, global: &Global) -> Outcome {
        let admin = global.admin()?;
        match self {
            Self::Create(create) => create.run(&admin, global.quiet).await,
            Self::List(list) => list.run(&admin).await,
            Self::Describe(describe) => describe.run(&admin).await,
            Self::Alter(alter) => alter.run(&admin, global.quiet).await,
            Self::Delete(delete) => delete.run(&admin, global.quiet).await,
            Self::DeleteRecords(delete) => delete.run(&admin).await,
            Self::AcceptLoss(accept) => accept.run(&admin).await,
        }
    }
}

impl Create {
    async fn run(self, admin: &Admin, quiet: bool) -> Outcome {
        let settings: Vec<_> = self.set.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        match admin.create_topic(&self.topic, self.partitions.unwrap_or(0), &settings).await {
            Ok(topic) if !quiet => {
                note(format!(
                    "made topic {} with {}",
                    topic.name,
                    count(topic.partitions.into(), "partition")
                ));
            }
            Ok(_) => {}
            Err(error) if self.if_not_exists && error.is("TOPIC_EXISTS") => {
                note(format!("topic {} is there already", self.topic));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

impl List {
    async fn run(self, admin: &Admin) -> Outcome {
        let topics = admin.list_topics(self.internal).await?;
        if self.json {
            return Ok(output::json(&topics.iter().map(summary_json).collect::<Vec<_>>())?);
        }
        let row = |topic: &TopicSummary| {
            [topic.name.clone(), topic.partitions.to_string(), rfc3339(topic.created), topic.id.clone()]
        };
        let rows: Vec<_> = topics.iter().map(row).collect();
        Ok(table(["TOPIC", "PARTITIONS", "CREATED", "ID"], &rows)?)
    }
}

impl Describe {
    async fn run(self, admin: &Admin) -> Outcome {
        let topic = admin.describe_topic(&self.topic).await?;
        if self.json {
            return Ok(output::json(&details_json(&topic))?);
        }
        let summary = &topic.summary;
        line(format!(
            "topic {} ({}), {}, made {}{}\n",
            summary.name,
            summary.id,
            count(summary.partitions.into(), "partition"),
            rfc3339(summary.created),
            if summary.internal { ", the server's own" } else { "" }
        ))?;
        let partitions = topic.partitions.iter().map(|partition| {
            let ends = &partition.ends;
            [
                partition.partition.to_string(),
                ends.start.to_string(),
                ends.durable.to_string(),
                ends.durable.since(ends.start).to_string(),
                partition.bytes.to_string(),
                partition.undurable.to_string(),
                partition.segments.to_string(),
                partition.producers.to_string(),
                partition.dirty_ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
                partition.state.clone(),
            ]
        });
        let head = [
            "PARTITION",
            "START",
            "END",
            "OFFSETS",
            "BYTES",
            "UNDURABLE",
            "SEGMENTS",
            "PRODUCERS",
            "DIRTY",
            "STATE",
        ];
        table(head, &partitions.collect::<Vec<_>>())?;
        for partition in &topic.partitions {
            for (segment, reason) in &partition.compaction_obstacles {
                line(format!(
                    "partition {}: compaction passes segment {segment} by: {reason}",
                    partition.partition
                ))?;
            }
            for range in &partition.damaged {
                let which = match range.ranges {
                    0 | 1 => format!("offsets {}..{}", range.from, range.until),
                    ranges => format!(
                        "{} offsets among {}..{}, in {ranges} ranges,",
                        range.offsets, range.from, range.until
                    ),
                };
                line(format!("partition {}: {which} are DAMAGED: {}", partition.partition, range.reason))?;
            }
            let told: u64 = partition.damaged.iter().map(|range| range.ranges).sum();
            if partition.damaged_ranges > told {
                let more = partition.damaged_ranges - told;
                line(format!("partition {}: {more} more ranges are DAMAGED", partition.partition))?;
            }
            for loss in &partition.accepted_losses {
                line(format!(
                    "partition {}: {} were given up; kept in {}",
                    partition.partition,
                    loss::lost(loss),
                    loss.kept_in
                ))?;
            }
            let more = partition.accepted_loss_count.saturating_sub(partition.accepted_losses.len() as u64);
            if more > 0 {
                line(format!("partition {}: {more} more ranges were given up", partition.partition))?;
            }
        }
        line("")?;
        Ok(settings_table(&topic.settings)?)
    }
}

fn settings_table(settings: &[Setting]) -> std::io::Result<()> {
    let rows = settings.iter().map(|setting| {
        let whence = if setting.is_default { "default" } else { "set" };
        [setting.name.clone(), setting.value.clone(), whence.to_owned(), setting.description.clone()]
    });
    table(["SETTING", "VALUE", "", "MEANING"], &rows.collect::<Vec<_>>())
}

impl Alter {
    async fn run(self, admin: &Admin, quiet: bool) -> Outcome {
        if self.set.is_empty() && self.reset.is_empty() && self.partitions.is_none() {
            return Err(Failure::usage("nothing to change; give --set, --reset or --partitions"));
        }
        let change = TopicChange { set: self.set, reset: self.reset, partitions: self.partitions };
        let settings = admin.alter_topic(&self.topic, change).await?;
        if !quiet {
            note(format!("changed topic {}", self.topic));
        }
        let own: Vec<_> = settings.into_iter().filter(|setting| !setting.is_default).collect();
        Ok(settings_table(&own)?)
    }
}

impl Delete {
    async fn run(self, admin: &Admin, quiet: bool) -> Outcome {
        match admin.delete_topic(&self.topic).await {
            Ok(()) if !quiet => note(format!("deleted topic {}", self.topic)),
            Ok(()) => {}
            Err(error) if self.if_exists && error.is(rimstone_client::reason::TOPIC_NOT_FOUND) => {
                note(format!("there is no topic {}", self.topic));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

impl DeleteRecords {
    async fn run(self, admin: &Admin) -> Outcome {
        let asked: Vec<_> = self.partitions.iter().copied().map(PartitionIndex).collect();
        let query = match self.before {
            Position::Earliest => {
                return Err(Failure::usage("nothing lies before earliest; give latest, an offset or a time"));
            }
            Position::Latest | Position::Offset(_) => OffsetQuery::Latest,
            Position::Time(time) => OffsetQuery::At(time),
        };
        let found = admin.list_offsets(&self.topic, &asked, query).await?;
        let before: BTreeMap<_, _> = match self.before {
            Position::Offset(offset) => found.iter().map(|at| (at.partition, offset)).collect(),
            _ => found.iter().filter_map(|at| Some((at.partition, at.offset?))).collect(),
        };
        if before.is_empty() {
            return Err(Failure::new(Exit::NotFound, "no partition has a record at or after that time"));
        }
        let starts = admin.delete_records(&self.topic, &before).await.map_err(|error| {
            let outside = error.is(rimstone_client::reason::OFFSET_OUT_OF_RANGE);
            let mut failure = Failure::from(error);
            if outside {
                failure.hints = vec!["--before latest deletes everything that is there now".to_owned()];
            }
            failure
        })?;
        let rows: Vec<_> =
            starts.iter().map(|(partition, start)| [partition.to_string(), start.to_string()]).collect();
        Ok(table(["PARTITION", "START"], &rows)?)
    }
}

fn summary_json(topic: &TopicSummary) -> Value {
    json!({
        "topic": topic.name,
        "id": topic.id,
        "partitions": topic.partitions,
        "internal": topic.internal,
        "created_ms": topic.created.as_millis(),
    })
}

fn details_json(topic: &TopicDetails) -> Value {
    let partitions = topic.partitions.iter().map(|partition| {
        json!({
            "partition": partition.partition.0,
            "log_start_offset": partition.ends.start.get(),
            "last_stable_offset": partition.ends.stable.get(),
            "high_watermark": partition.ends.durable.get(),
            "log_end_offset": partition.ends.written.get(),
            "segments": partition.segments,
            "bytes": partition.bytes.get(),
            "undurable_bytes": partition.undurable.get(),
            "producers": partition.producers,
            "dirty_ratio": partition.dirty_ratio,
            "compaction_obstacles": partition
                .compaction_obstacles
                .iter()
                .map(|(segment, reason)| json!({ "segment": segment.get(), "reason": reason }))
                .collect::<Vec<_>>(),
            "damaged_ranges": partition.damaged_ranges,
            "accepted_loss_count": partition.accepted_loss_count,
            "damaged": partition.damaged.iter().map(loss::range_json).collect::<Vec<_>>(),
            "accepted_losses": partition.accepted_losses.iter().map(loss::loss_json).collect::<Vec<_>>(),
            "state": partition.state,
        })
    });
    let settings = topic.settings.iter().map(|setting| {
        json!({
            "name": setting.name,
            "value": setting.value,
            "default": setting.is_default,
            "description": setting.description,
        })
    });
    let mut document = summary_json(&topic.summary);
    document["settings"] = settings.collect();
    document["partition_details"] = partitions.collect();
    document
}

/// For clap: `name=value`.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err(format!("{text:?} is not NAME=VALUE, for example retention.ms=-1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_name_and_value() {
        assert_eq!(key_value("retention.ms=-1"), Ok(("retention.ms".to_owned(), "-1".to_owned())));
        assert_eq!(key_value("a = b=c "), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(key_value("retention.ms").unwrap_err().contains("NAME=VALUE"));
        assert!(key_value("=1").is_err());
    }
}
