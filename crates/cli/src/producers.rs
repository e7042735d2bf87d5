//! `rimstone producers`: who writes, and where they stand.

use clap::{Args, Subcommand};
use rimstone_client::ProducerDetails;
use serde_json::json;

use crate::{
    exit::Outcome,
    global::Global,
    output::{self, note, table},
    times::rfc3339,
};

/// Shows and deletes producers.
#[derive(Debug, Subcommand)]
pub(crate) enum Producers {
    /// Lists the named producers, or everybody who writes to a topic
    List(List),
    /// Forgets a named producer: its name, its epoch and what it wrote last in every partition
    Delete(Delete),
}

/// Lists producers.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Everybody the server remembers writing to this topic, named or not
    #[arg(long)]
    topic: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Forgets a named producer.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Its name
    name: String,
}

impl Producers {
    pub(crate) async fn run(self, global: &Global) -> Outcome {
        let admin = global.admin()?;
        match self {
            Self::List(list) => list.print(&admin.list_producers(list.topic.as_deref()).await?),
            Self::Delete(delete) => {
                admin.delete_producer(&delete.name).await?;
                if !global.quiet {
                    note(format!("deleted producer {}", delete.name));
                }
                Ok(())
            }
        }
    }
}

impl List {
    fn print(&self, producers: &[ProducerDetails]) -> Outcome {
        if self.json {
            return Ok(output::json(&producers.iter().map(as_json).collect::<Vec<_>>())?);
        }
        let mut rows = Vec::new();
        for producer in producers {
            let row = |at: String, last: String, by: &str, when: String| {
                let name = producer.name.clone().unwrap_or_else(|| "-".to_owned());
                [name, producer.id.to_string(), producer.epoch.to_string(), at, last, by.to_owned(), when]
            };
            if producer.partitions.is_empty() {
                rows.push(row(String::new(), String::new(), "", String::new()));
            }
            for at in &producer.partitions {
                let numbering = if at.by_request { "request" } else { "record" };
                let place = format!("{}/{}", at.topic, at.partition);
                rows.push(row(place, at.last_sequence.to_string(), numbering, rfc3339(at.last_append)));
            }
        }
        Ok(table(["NAME", "ID", "EPOCH", "PARTITION", "LAST", "NUMBERED BY", "LAST APPEND"], &rows)?)
    }
}

fn as_json(producer: &ProducerDetails) -> serde_json::Value {
    let partitions = producer.partitions.iter().map(|at| {
        json!({
            "topic": at.topic,
            "partition": at.partition.0,
            "last_sequence": at.last_sequence,
            "by_request": at.by_request,
            "last_append_ms": at.last_append.as_millis(),
        })
    });
    json!({
        "name": producer.name,
        // As text: JavaScript has no such numbers.
        "producer_id": producer.id.to_string(),
        "producer_epoch": producer.epoch,
        "partitions": partitions.collect::<Vec<_>>(),
    })
}
