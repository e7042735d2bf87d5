//! `rimstone lag`: how far behind groups are.

use std::{io::IsTerminal as _, time::Duration};

use clap::Args;
use rimstone_client::{ClientError, Connection, Groups, Lag, PartitionLag, TopicLag, lag};
use rimstone_types::Offset;
use serde_json::{Value, json};

use crate::{
    consume::interrupted,
    exit::{Exit, Failure, Outcome},
    global::Global,
    output::{self, count, line, note, table},
};

/// Clears a terminal, and goes to its first place.
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

/// Shows how far behind groups are, in records that are really there and in seconds since the append of the first
/// of them.
///
/// A partition in which nothing is committed has no CURRENT-OFFSET; its lag counts from the first record there
/// is.
#[derive(Debug, Args)]
#[command(after_help = "\
--fail-above ends with exit code 7 as soon as a group is further behind in a topic: its records are summed over the
partitions, its seconds are those of the partition that is furthest behind. Where the lag of a partition cannot be
told, it ends with 1; so it does where a group that is named has nothing, neither a committed offset nor a partition
of a member: in any topic, or in one that is named as well.")]
pub(crate) struct LagCommand {
    /// Only these groups [default: all]
    #[arg(value_name = "GROUP")]
    groups: Vec<String>,
    /// Only this group, as other commands name one; may be repeated
    #[arg(long = "group", value_name = "GROUP")]
    named: Vec<String>,
    /// Only this topic; may be repeated
    #[arg(long = "topic", value_name = "TOPIC")]
    topics: Vec<String>,
    /// One line per group and topic
    #[arg(long)]
    by_topic: bool,
    /// As JSON (with --watch: one document a line)
    #[arg(long)]
    json: bool,
    /// Again and again, every 2 s or so often
    #[arg(short, long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "2s", require_equals = true,
          value_parser = humantime::parse_duration)]
    watch: Option<Duration>,
    /// Fails if a group is further behind in a topic: records (1000) or time (30s); may be given once for each
    #[arg(long, value_name = "LIMIT", value_parser = Limit::parse)]
    fail_above: Vec<Limit>,
}

/// How far behind is too far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    Records(u64),
    Time(Duration),
}

impl Limit {
    fn parse(text: &str) -> Result<Self, String> {
        if let Ok(records) = text.replace('_', "").parse() {
            return Ok(Self::Records(records));
        }
        humantime::parse_duration(text).map(Self::Time).map_err(|_| {
            format!("{text:?} is no limit; write records, for example 1000, or a time, for example 30s")
        })
    }

    /// What is wrong with a lag, if it is above.
    fn exceeded(self, topic: &TopicLag) -> Option<String> {
        let (behind, allowed) = match self {
            Self::Records(limit) if topic.records > limit => {
                (count(topic.records, "record"), limit.to_string())
            }
            Self::Time(limit) if topic.behind > limit => {
                (format!("{} s", seconds(topic.behind)), format!("{} s", seconds(limit)))
            }
            _ => return None,
        };
        Some(format!(
            "group {} is {behind} behind in topic {}; {allowed} are allowed",
            topic.group, topic.topic
        ))
    }
}

impl LagCommand {
    pub(crate) async fn run(self, global: &Global) -> Outcome {
        let connection = Connection::new(&global.server)?;
        let Some(every) = self.watch else {
            let lag = self.ask(&connection).await?;
            self.print(&lag)?;
            return self.judge(&lag);
        };
        tokio::select! {
            outcome = self.watch(&connection, every) => outcome,
            () = interrupted() => Err(Failure::new(Exit::Interrupted, "")),
        }
    }

    async fn ask(&self, connection: &Connection) -> Result<Lag, ClientError> {
        let groups: Vec<_> = self.groups.iter().chain(&self.named).map(String::as_str).collect();
        let topics: Vec<_> = self.topics.iter().map(String::as_str).collect();
        let lag = lag(connection, &groups, &topics).await?;
        // A name that is mistyped must not look like a group without lag.
        for group in groups {
            if !lag.partitions.iter().any(|at| at.group == group) {
                Groups::over(connection.clone()).describe(group).await?;
            }
        }
        Ok(lag)
    }

    async fn watch(&self, connection: &Connection, every: Duration) -> Outcome {
        let terminal = std::io::stdout().is_terminal();
        let mut begun = false;
        let mut ticks = tokio::time::interval(every.max(Duration::from_millis(10)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.ask(connection).await {
                Ok(lag) => {
                    if terminal && !self.json {
                        line(format!("{CLEAR}{}", crate::times::rfc3339(lag.measured)))?;
                    } else if begun && !self.json {
                        line("")?;
                    }
                    begun = true;
                    self.print(&lag)?;
                    self.judge(&lag)?;
                }
                // A server that is started again is watched on; one that was never there is not.
                Err(error) if begun && error.is_retriable() => note(format!("no lag: {error}")),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn print(&self, lag: &Lag) -> Outcome {
        if self.json {
            let document = as_json(lag);
            return if self.watch.is_some() {
                Ok(line(document.to_string())?)
            } else {
                Ok(output::json(&document)?)
            };
        }
        for (at, error) in lag.partitions.iter().filter_map(|at| Some((at, at.error.as_ref()?))) {
            note(format!("no lag of group {} in {}: {error}", at.group, at.at));
        }
        if self.by_topic {
            let rows: Vec<_> = lag.topics.iter().map(topic_row).collect();
            return Ok(table(["GROUP", "TOPIC", "PARTITIONS", "LAG", "SECONDS"], &rows)?);
        }
        let rows: Vec<_> = lag.partitions.iter().map(partition_row).collect();
        let head = [
            "GROUP",
            "TOPIC",
            "PARTITION",
            "CURRENT-OFFSET",
            "LOG-END-OFFSET",
            "LAG",
            "SECONDS",
            "MEMBER",
            "HOST",
            "CLIENT",
        ];
        Ok(table(head, &rows)?)
    }

    fn judge(&self, lag: &Lag) -> Outcome {
        if self.fail_above.is_empty() {
            return Ok(());
        }
        let above = lag
            .topics
            .iter()
            .flat_map(|topic| self.fail_above.iter().filter_map(|limit| limit.exceeded(topic)));
        let above: Vec<_> = above.collect();
        if !above.is_empty() {
            return Err(Failure::new(Exit::Behind, above.join("\n       ")));
        }
        // Nothing to judge by must not pass for no lag.
        for group in self.groups.iter().chain(&self.named) {
            let of_group = || lag.partitions.iter().filter(|at| at.group == *group);
            if let Some(topic) =
                self.topics.iter().find(|topic| !of_group().any(|at| *at.at.topic == ***topic))
            {
                let message =
                    format!("group {group} has committed nothing in topic {topic}, and no member has it");
                return Err(Failure::failed(message));
            }
            if of_group().next().is_none() {
                let message = format!("group {group} has committed nothing, and no member has a partition");
                return Err(Failure::failed(message));
            }
        }
        let unknown = lag.partitions.iter().find(|at| at.error.is_some());
        unknown.map_or(Ok(()), |at| {
            Err(Failure::failed(format!("the lag of group {} in {} cannot be told", at.group, at.at)))
        })
    }
}

/// With milliseconds, always with a point: what is parsed as a number stays one.
fn seconds(behind: Duration) -> String {
    format!("{:.3}", behind.as_secs_f64())
}

fn partition_row(lag: &PartitionLag) -> [String; 10] {
    let dash = || "-".to_owned();
    let known = |text: String| if lag.error.is_none() { text } else { dash() };
    let of_owner = |text: Option<&String>| text.filter(|text| !text.is_empty()).cloned().unwrap_or_else(dash);
    let owner = lag.owner.as_ref();
    [
        lag.group.clone(),
        lag.at.topic.to_string(),
        lag.at.partition.to_string(),
        lag.committed.map_or_else(dash, |offset| offset.to_string()),
        known(lag.log_end.to_string()),
        known(lag.records.to_string()),
        known(seconds(lag.behind)),
        of_owner(owner.map(|owner| &owner.member_id)),
        of_owner(owner.map(|owner| &owner.host)),
        of_owner(owner.map(|owner| &owner.client_id)),
    ]
}

fn topic_row(lag: &TopicLag) -> [String; 5] {
    [
        lag.group.clone(),
        lag.topic.clone(),
        lag.partitions.to_string(),
        lag.records.to_string(),
        seconds(lag.behind),
    ]
}

fn as_json(lag: &Lag) -> Value {
    let partitions = lag.partitions.iter().map(|lag| {
        let known = lag.error.is_none();
        let owner = lag.owner.as_ref();
        json!({
            "group": lag.group,
            "topic": *lag.at.topic,
            "partition": lag.at.partition.0,
            "current_offset": lag.committed.map(Offset::get),
            "log_start_offset": known.then_some(lag.log_start.get()),
            "log_end_offset": known.then_some(lag.log_end.get()),
            "lag": known.then_some(lag.records),
            "lag_ms": known.then_some(lag.behind.as_millis() as u64),
            "below_log_start": lag.below_log_start,
            "commit_time_ms": lag.commit_time.map(|time| time.as_millis()),
            "member": owner.map(|owner| &owner.member_id),
            "host": owner.map(|owner| &owner.host),
            "client": owner.map(|owner| &owner.client_id),
            "error": lag.error.as_ref().map(ToString::to_string),
        })
    });
    let topics = lag.topics.iter().map(|lag| {
        json!({
            "group": lag.group,
            "topic": lag.topic,
            "partitions": lag.partitions,
            "unknown_partitions": lag.unknown,
            "lag": lag.records,
            "lag_ms": lag.behind.as_millis() as u64,
        })
    });
    json!({
        "measured_ms": lag.measured.as_millis(),
        "partitions": partitions.collect::<Vec<_>>(),
        "topics": topics.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_records_or_times() {
        assert_eq!(Limit::parse("1000"), Ok(Limit::Records(1000)));
        assert_eq!(Limit::parse("1_000_000"), Ok(Limit::Records(1_000_000)));
        assert_eq!(Limit::parse("0"), Ok(Limit::Records(0)));
        assert_eq!(Limit::parse("30s"), Ok(Limit::Time(Duration::from_secs(30))));
        assert_eq!(Limit::parse("1m 30s"), Ok(Limit::Time(Duration::from_secs(90))));
        for bad in ["", "-1", "many", "1.5"] {
            assert!(Limit::parse(bad).unwrap_err().contains("30s"), "{bad}");
        }
    }

    #[test]
    fn a_limit_is_exceeded_above_it_and_not_at_it() {
        let topic = TopicLag {
            group: "g".to_owned(),
            topic: "t".to_owned(),
            records: 1000,
            behind: Duration::from_millis(30_000),
            partitions: 1,
            unknown: 0,
        };
        for limit in ["1000", "30s"] {
            assert_eq!(Limit::parse(limit).unwrap().exceeded(&topic), None, "{limit}");
        }
        let said = Limit::parse("999").unwrap().exceeded(&topic).unwrap();
        assert_eq!(said, "group g is 1000 records behind in topic t; 999 are allowed");
        let said = Limit::parse("29s").unwrap().exceeded(&topic).unwrap();
        assert_eq!(said, "group g is 30.000 s behind in topic t; 29.000 s are allowed");
    }
}
