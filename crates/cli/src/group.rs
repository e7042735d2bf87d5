//! `rimstone group`: who reads together, and where they stand.

use clap::{Args, Subcommand};
use rimstone_client::{
    Admin, CommittedOffset, GroupDetails, GroupMember, GroupSummary, Groups, OffsetCommit, OffsetQuery,
    TopicPartition, reason,
};
use rimstone_types::{Offset, PartitionIndex};
use serde_json::{Value, json};

use crate::{
    exit::{Failure, Outcome},
    global::Global,
    output::{self, count, line, note, table},
    position::{Position, position},
    times::rfc3339,
};

/// Shows groups, their members and committed offsets; commits, deletes, clones.
#[derive(Debug, Subcommand)]
pub(crate) enum Group {
    /// Lists groups
    List(List),
    /// Shows a group: its members, what they own, what is committed
    Describe(Describe),
    /// Commits offsets of a group that has no members; makes the group if there is none
    Commit(Commit),
    /// Forgets a group and its offsets; it must have no members
    Delete(Delete),
    /// Makes a new group with the offsets of another, which is left alone
    Clone(CloneGroup),
}

/// Lists groups.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only groups whose name begins with this
    #[arg(default_value = "")]
    prefix: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Shows a group.
#[derive(Debug, Args)]
pub(crate) struct Describe {
    /// Its name
    group: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Commits offsets.
#[derive(Debug, Args)]
pub(crate) struct Commit {
    /// Its name
    group: String,
    /// The topic
    topic: String,
    /// The next record to read: earliest, latest, an offset, or a time such as '2h ago' (the end where there is
    /// no record since)
    #[arg(long, value_name = "PLACE", value_parser = position, required_unless_present = "none")]
    at: Option<Position>,
    /// Takes what is committed away
    #[arg(long, conflicts_with = "at")]
    none: bool,
    /// Only in this partition; may be repeated
    #[arg(short, long = "partition", value_name = "N")]
    partitions: Vec<u32>,
    /// Kept with the offset, for the readers' own use
    #[arg(long, default_value = "", hide_default_value = true)]
    metadata: String,
}

/// Forgets a group.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Its name
    group: String,
    /// It is fine if there is no such group
    #[arg(long)]
    if_exists: bool,
}

/// Makes a group like another.
#[derive(Debug, Args)]
pub(crate) struct CloneGroup {
    /// The group whose offsets are copied
    source: String,
    /// The new group
    target: String,
    /// Only offsets of this topic; may be repeated
    #[arg(long = "topic", value_name = "TOPIC")]
    topics: Vec<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Group {
    pub(crate) async fn run(self, global: &Global) -> Outcome {
        let groups = Groups::new(&global.server)?;
        match self {
            Self::List(list) => list.print(&groups.list(&list.prefix).await?),
            Self::Describe(describe) => {
                let details = groups.describe(&describe.group).await?;
                let offsets = groups.offsets(&describe.group, &[]).await?;
                if describe.json {
                    return Ok(output::json(&details_json(&details, &offsets))?);
                }
                print_details(&details, &offsets)
            }
            Self::Commit(commit) => commit.run(&groups, &global.admin()?).await,
            Self::Delete(delete) => {
                match groups.delete(&delete.group).await {
                    Ok(()) if !global.quiet => note(format!("deleted group {}", delete.group)),
                    Ok(()) => {}
                    Err(error) if delete.if_exists && error.is(reason::GROUP_NOT_FOUND) => {
                        note(format!("there is no group {}", delete.group));
                    }
                    Err(error) => return Err(error.into()),
                }
                Ok(())
            }
            Self::Clone(clone) => {
                let copied = groups.clone_group(&clone.source, &clone.target, &clone.topics).await?;
                if clone.json {
                    return Ok(output::json(&copied.iter().map(offset_json).collect::<Vec<_>>())?);
                }
                if !global.quiet {
                    note(format!("made group {} like {}", clone.target, clone.source));
                }
                Ok(offsets_table(&copied)?)
            }
        }
    }
}

impl List {
    fn print(&self, groups: &[GroupSummary]) -> Outcome {
        if self.json {
            return Ok(output::json(&groups.iter().map(summary_json).collect::<Vec<_>>())?);
        }
        let rows = groups.iter().map(|group| {
            [
                group.group.clone(),
                group.state.to_string(),
                group.members.to_string(),
                group.epoch.to_string(),
                or_dash(group.topics.join(",")),
            ]
        });
        Ok(table(["GROUP", "STATE", "MEMBERS", "EPOCH", "TOPICS"], &rows.collect::<Vec<_>>())?)
    }
}

impl Commit {
    async fn run(self, groups: &Groups, admin: &Admin) -> Outcome {
        let commits = self.commits(admin).await?;
        let answers = groups.commit(&self.group, &commits).await?;
        let mut refused = Vec::new();
        let mut rows = Vec::new();
        for (commit, answer) in commits.iter().zip(answers) {
            let said = match answer {
                Ok(flags) if flags.below_log_start => {
                    "committed; retention has taken records after it".to_owned()
                }
                Ok(flags) if flags.backwards => "committed; it was further on before".to_owned(),
                Ok(_) => "committed".to_owned(),
                Err(error) => {
                    let said = format!("refused: {error}");
                    refused.push(error);
                    said
                }
            };
            let offset = commit.offset.map_or("-".to_owned(), |offset| offset.to_string());
            rows.push([
                commit.at.topic.to_string(),
                commit.at.partition.to_string(),
                offset,
                said.to_owned(),
            ]);
        }
        table(["TOPIC", "PARTITION", "OFFSET", ""], &rows)?;
        let said = format!("refused {} of {}", refused.len(), count(commits.len() as u64, "offset"));
        // What helps a reader with such an offset helps nobody here.
        let failure = |error| Failure::from(error).without_hints().saying(said);
        refused.into_iter().next().map_or(Ok(()), |error| Err(failure(error)))
    }

    async fn commits(&self, admin: &Admin) -> Result<Vec<OffsetCommit>, Failure> {
        let asked: Vec<_> = self.partitions.iter().copied().map(PartitionIndex).collect();
        let ends = admin.list_offsets(&self.topic, &asked, OffsetQuery::Latest).await?;
        let query = match self.at {
            Some(Position::Earliest) => Some(OffsetQuery::Earliest),
            Some(Position::Time(time)) => Some(OffsetQuery::At(time)),
            Some(Position::Latest | Position::Offset(_)) | None => None,
        };
        let found = match query {
            Some(query) => admin.list_offsets(&self.topic, &asked, query).await?,
            None => ends.clone(),
        };
        let commits = ends.into_iter().map(|end| {
            let found = found.iter().find(|found| found.partition == end.partition);
            let found = found.and_then(|found| found.offset).or(end.offset).unwrap_or_default();
            let offset = match self.at {
                None => None,
                Some(Position::Offset(offset)) => Some(offset),
                Some(_) => Some(found),
            };
            let at = TopicPartition::new(&self.topic, end.partition);
            OffsetCommit { at, offset, metadata: self.metadata.clone() }
        });
        Ok(commits.collect())
    }
}

fn print_details(details: &GroupDetails, offsets: &[CommittedOffset]) -> Outcome {
    let summary = &details.summary;
    line(format!(
        "group {}, {}, epoch {}, {}, {} assignment{}\n",
        summary.group,
        summary.state,
        summary.epoch,
        count(summary.members.into(), "member"),
        details.assignor,
        match details.backward_commits {
            0 => String::new(),
            times => format!(", {} backwards", count(times, "commit")),
        },
    ))?;
    if !details.members.is_empty() {
        let rows: Vec<_> = details.members.iter().map(member_row).collect();
        table(
            ["MEMBER", "INSTANCE", "CLIENT", "HOST", "EPOCH", "CONNECTED", "OWNS", "GIVES-BACK", "WAITS-FOR"],
            &rows,
        )?;
        line("")?;
    }
    Ok(offsets_table(offsets)?)
}

fn member_row(member: &GroupMember) -> [String; 9] {
    let waits: Vec<_> = member.target.iter().filter(|at| !member.owned.contains(at)).cloned().collect();
    [
        member.id.clone(),
        member.instance_id.clone().unwrap_or_else(|| "-".to_owned()),
        or_dash(member.client_id.clone()),
        or_dash(member.host.clone()),
        member.epoch.to_string(),
        if member.connected { "yes" } else { "no" }.to_owned(),
        places(&member.owned),
        places(&member.stopping),
        places(&waits),
    ]
}

/// Partitions by topic: `visits/0-2,5 orders/1`.
fn places(partitions: &[TopicPartition]) -> String {
    let mut sorted: Vec<_> = partitions.iter().collect();
    sorted.sort();
    let mut text = String::new();
    for topic in sorted.chunk_by(|a, b| a.topic == b.topic) {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(&topic[0].topic);
        let mut separator = '/';
        for run in topic.chunk_by(|a, b| a.partition.0 + 1 == b.partition.0) {
            let (first, last) = (run[0].partition, run[run.len() - 1].partition);
            text.push(separator);
            text.push_str(&first.to_string());
            if last != first {
                text.push_str(&format!("-{last}"));
            }
            separator = ',';
        }
    }
    or_dash(text)
}

fn offsets_table(offsets: &[CommittedOffset]) -> std::io::Result<()> {
    let rows = offsets.iter().map(|committed| {
        [
            committed.at.topic.to_string(),
            committed.at.partition.to_string(),
            committed.offset.map_or("-".to_owned(), |offset| offset.to_string()),
            committed.committed.map_or("-".to_owned(), rfc3339),
            committed.metadata.clone(),
        ]
    });
    table(["TOPIC", "PARTITION", "OFFSET", "COMMITTED", "METADATA"], &rows.collect::<Vec<_>>())
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

fn summary_json(group: &GroupSummary) -> Value {
    json!({
        "group": group.group,
        "state": group.state.to_string(),
        "members": group.members,
        "epoch": group.epoch,
        "topics": group.topics,
    })
}

fn details_json(details: &GroupDetails, offsets: &[CommittedOffset]) -> Value {
    let places = |places: &[TopicPartition]| {
        let places = places.iter().map(|at| json!({ "topic": *at.topic, "partition": at.partition.0 }));
        places.collect::<Vec<_>>()
    };
    let members = details.members.iter().map(|member| {
        json!({
            "member": member.id,
            "instance": member.instance_id,
            "client": member.client_id,
            "host": member.host,
            "epoch": member.epoch,
            "connected": member.connected,
            "topics": member.topics,
            "topic_prefix": member.topic_prefix,
            "owned": places(&member.owned),
            "stopping": places(&member.stopping),
            "target": places(&member.target),
            "session_timeout_ms": member.session_timeout.as_millis() as u64,
            "joined_ms": member.joined.as_millis(),
        })
    });
    let mut json = summary_json(&details.summary);
    json["assignor"] = details.assignor.to_string().into();
    json["backward_commits"] = details.backward_commits.into();
    json["members"] = members.collect();
    json["offsets"] = offsets.iter().map(offset_json).collect();
    json
}

fn offset_json(committed: &CommittedOffset) -> Value {
    json!({
        "topic": *committed.at.topic,
        "partition": committed.at.partition.0,
        "offset": committed.offset.map(Offset::get),
        "metadata": committed.metadata,
        "commit_time_ms": committed.committed.map(|time| time.as_millis()),
        "below_log_start": committed.below_log_start,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_told_by_topic_and_in_runs() {
        let at = |topic, partition| TopicPartition::new(topic, PartitionIndex(partition));
        assert_eq!(places(&[]), "-");
        assert_eq!(places(&[at("visits", 4)]), "visits/4");
        let many = [at("visits", 5), at("orders", 1), at("visits", 0), at("visits", 2), at("visits", 1)];
        assert_eq!(places(&many), "orders/1 visits/0-2,5");
    }
}
