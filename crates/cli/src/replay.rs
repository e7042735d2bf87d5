//! `rimstone replay`: has a group read again, after a plan.

use std::{collections::BTreeMap, time::Duration};

use clap::{Args, Subcommand};
use rimstone_client::{
    Connection, PlannedPartition, ReplayPlan, ReplaySpec, ReplayTo, plan_replay, start_replay,
};
use rimstone_types::{Offset, PartitionIndex, Timestamp};
use serde_json::{Value, json};

use crate::{
    exit::{Failure, Outcome},
    global::Global,
    output::{self, count, line, note, table},
    position::time,
};

/// Has a group read again: plans, then moves its offsets or those of a clone.
#[derive(Debug, Subcommand)]
pub(crate) enum Replay {
    /// Shows what a replay would do: old and new offsets, records, bytes, and what retention has taken
    Plan(Plan),
    /// Shows the plan and, with --execute, does it; the group that is moved must have no members
    Run(Run),
}

/// Shows what a replay would do.
#[derive(Debug, Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    what: What,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Does a replay.
#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    what: What,
    /// Does it; without this nothing is changed
    #[arg(long)]
    execute: bool,
    /// Only if the plan is still the one with this fingerprint, as `replay plan` told it
    #[arg(long, value_name = "FINGERPRINT", requires = "execute")]
    plan: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What to replay.
#[derive(Debug, Args)]
struct What {
    /// The group
    group: String,
    #[command(flatten)]
    to: To,
    /// Only this topic; may be repeated [default: all that the group has committed offsets of]
    #[arg(long = "topic", value_name = "TOPIC")]
    topics: Vec<String>,
    /// Only this partition of every topic; may be repeated [default: all]
    #[arg(short, long = "partition", value_name = "N")]
    partitions: Vec<u32>,
    /// Moves the offsets of a new group of this name, and leaves the group alone: it may have members
    #[arg(long, value_name = "NEW-GROUP")]
    clone_to: Option<String>,
}

/// Where to: exactly one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct To {
    /// To the first record there is
    #[arg(long)]
    to_earliest: bool,
    /// To the end: what is not read yet is left out
    #[arg(long)]
    to_latest: bool,
    /// To this offset; or, for one topic, to an offset per partition: 0=100,3=250
    #[arg(long, value_name = "OFFSET", value_parser = Offsets::parse)]
    to_offset: Option<Offsets>,
    /// To the first record at or after this time, by the topic's time
    #[arg(long, value_name = "TIME", value_parser = time)]
    to_time: Option<Timestamp>,
    /// To the first record of the last so long, for example 2h or '1d 12h'
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    ago: Option<Duration>,
    /// By so many offsets on or, negative, back from what is committed; held within the log
    #[arg(long, value_name = "BY", allow_hyphen_values = true)]
    shift: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Offsets {
    All(Offset),
    Each(BTreeMap<PartitionIndex, Offset>),
}

impl Offsets {
    fn parse(text: &str) -> Result<Self, String> {
        let offset = |text: &str| {
            let number: u64 = text.trim().parse().map_err(|_| {
                format!("{text:?} is not an offset; write 100, or 0=100,3=250 for an offset per partition")
            })?;
            Offset::new(number).map_err(|error| error.to_string())
        };
        if !text.contains('=') {
            return offset(text).map(Self::All);
        }
        let mut each = BTreeMap::new();
        for pair in text.split(',') {
            let (partition, at) =
                pair.split_once('=').ok_or_else(|| format!("{pair:?} is not PARTITION=OFFSET"))?;
            let number = partition.trim().parse().map_err(|_| format!("{partition:?} is not a partition"))?;
            if each.insert(PartitionIndex(number), offset(at)?).is_some() {
                return Err(format!("partition {number} is named twice"));
            }
        }
        Ok(Self::Each(each))
    }
}

impl What {
    fn spec(&self) -> Result<ReplaySpec, Failure> {
        let to = &self.to;
        let to = match to {
            To { to_earliest: true, .. } => ReplayTo::Earliest,
            To { to_latest: true, .. } => ReplayTo::Latest,
            To { to_offset: Some(Offsets::All(offset)), .. } => ReplayTo::Offset(*offset),
            To { to_offset: Some(Offsets::Each(offsets)), .. } => {
                if self.topics.len() != 1 {
                    return Err(Failure::usage("an offset per partition needs exactly one --topic"));
                }
                ReplayTo::Offsets(offsets.clone())
            }
            To { to_time: Some(time), .. } => ReplayTo::Time(*time),
            To { ago: Some(ago), .. } => ReplayTo::Ago(*ago),
            To { shift: Some(by), .. } => ReplayTo::Shift(*by),
            _ => return Err(Failure::usage("say where to: --to-earliest, --to-time, --ago or another")),
        };
        Ok(ReplaySpec {
            group: self.group.clone(),
            topics: self.topics.clone(),
            partitions: self.partitions.iter().copied().map(PartitionIndex).collect(),
            to,
            clone_to: self.clone_to.clone(),
        })
    }
}

impl Replay {
    pub(crate) async fn run(self, global: &Global) -> Outcome {
        let connection = Connection::new(&global.server)?;
        match self {
            Self::Plan(plan) => {
                let planned = plan_replay(&connection, &plan.what.spec()?).await?;
                print(&planned, plan.json, false)?;
                say_obstacle(&planned);
                Ok(())
            }
            Self::Run(run) => run.run(&connection, global.quiet).await,
        }
    }
}

impl Run {
    async fn run(self, connection: &Connection, quiet: bool) -> Outcome {
        let spec = self.what.spec()?;
        if !self.execute {
            let planned = plan_replay(connection, &spec).await?;
            print(&planned, self.json, false)?;
            say_obstacle(&planned);
            note("nothing was changed; the same command with --execute does it");
            return Ok(());
        }
        let done = start_replay(connection, &spec, self.plan.as_deref()).await?;
        print(&done, self.json, true)?;
        if !quiet {
            let moved = spec.clone_to.as_ref().unwrap_or(&spec.group);
            note(format!("done; group {moved} reads on from the new offsets"));
        }
        Ok(())
    }
}

fn say_obstacle(plan: &ReplayPlan) {
    for (at, error) in
        plan.partitions.iter().filter_map(|planned| Some((&planned.at, planned.error.as_ref()?)))
    {
        note(format!("{at} cannot be replayed: {error}"));
    }
    if let Some(obstacle) = &plan.obstacle {
        note(format!("it could not be done now: {obstacle}"));
    }
}

fn print(plan: &ReplayPlan, json: bool, done: bool) -> Outcome {
    if json {
        return Ok(output::json(&as_json(plan, done))?);
    }
    let rows: Vec<_> = plan.partitions.iter().map(row).collect();
    table(["TOPIC", "PARTITION", "OLD-OFFSET", "NEW-OFFSET", "RECORDS", "BYTES", "SKIPPED", "GONE"], &rows)?;
    let gone = match plan.gone {
        0 => String::new(),
        gone => format!("; retention has taken {} that were asked for", count(gone, "offset")),
    };
    let uncertain = plan.partitions.iter().filter(|planned| planned.may_be_gone).count() as u64;
    let uncertain = match uncertain {
        0 => String::new(),
        some => {
            format!(
                "; retention may have taken records of that time (GONE ?) in {}",
                count(some, "partition")
            )
        }
    };
    line(format!("\nreads {} again, {}{gone}{uncertain}", count(plan.records, "record"), plan.bytes))?;
    if !done {
        line(format!("plan {}", plan.fingerprint))?;
    }
    Ok(())
}

fn row(planned: &PlannedPartition) -> [String; 8] {
    let offset = |offset: Option<Offset>| offset.map_or("-".to_owned(), |offset| offset.to_string());
    [
        planned.at.topic.to_string(),
        planned.at.partition.to_string(),
        offset(planned.old),
        offset(planned.new),
        planned.records.to_string(),
        planned.bytes.get().to_string(),
        planned.skipped.to_string(),
        if planned.may_be_gone { "?".to_owned() } else { planned.gone.to_string() },
    ]
}

fn as_json(plan: &ReplayPlan, done: bool) -> Value {
    let partitions = plan.partitions.iter().map(|planned| {
        json!({
            "topic": *planned.at.topic,
            "partition": planned.at.partition.0,
            "old_offset": planned.old.map(Offset::get),
            "new_offset": planned.new.map(Offset::get),
            "log_start_offset": planned.log_start.get(),
            "log_end_offset": planned.log_end.get(),
            "records": planned.records,
            "bytes": planned.bytes.get(),
            "skipped": planned.skipped,
            "gone": planned.gone,
            "may_be_gone": planned.may_be_gone,
            "error": planned.error.as_ref().map(ToString::to_string),
        })
    });
    json!({
        "executed": done,
        "partitions": partitions.collect::<Vec<_>>(),
        "records": plan.records,
        "bytes": plan.bytes.get(),
        "gone": plan.gone,
        "fingerprint": plan.fingerprint,
        "obstacle": plan.obstacle,
        "planned_ms": plan.planned.as_millis(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_for_all_or_one_for_each() {
        let at = |offset| Offset::new(offset).unwrap();
        assert_eq!(Offsets::parse("100"), Ok(Offsets::All(at(100))));
        let each = [(PartitionIndex(0), at(100)), (PartitionIndex(3), at(250))];
        assert_eq!(Offsets::parse("0=100,3=250"), Ok(Offsets::Each(each.into())));
        for bad in ["", "x", "-1", "0=", "=1", "0=1,2", "0=1,0=2", "9223372036854775808"] {
            assert!(Offsets::parse(bad).is_err(), "{bad}");
        }
    }
}
