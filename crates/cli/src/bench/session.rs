//! What all phases of a run share: the server, the topics, what values are made of, what was measured.

use std::{num::NonZeroU32, time::Duration};

use rimstone_client::{Admin, Connection, ServerDetails};
use tokio::time::Instant;

use super::{
    bounds::Budget,
    meter::{Meter, Window},
    options::{Durability, Load},
    payload::{Random, Values},
    progress::Progress,
    report::{Phase, Report},
};
use crate::{
    exit::{Failure, Outcome},
    global::Global,
    output::note,
};

/// A topic under load.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) name: String,
    /// For the directory of its files.
    pub(crate) id: String,
    pub(crate) partitions: NonZeroU32,
}

/// A run of one workload.
pub(crate) struct Session {
    pub(crate) load: Load,
    pub(crate) random: Random,
    pub(crate) values: Values,
    pub(crate) report: Report,
    server: String,
    admin: Admin,
    quiet: bool,
    /// Topics that it made.
    made: Vec<String>,
}

impl Session {
    /// Looks whether the server is there, and makes ready what values are cut from.
    pub(crate) async fn begin(global: &Global, load: Load) -> Result<Self, Failure> {
        let admin = global.admin()?;
        let server: ServerDetails = admin.describe_server().await?;
        let seed = load.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
        let random = Random::new(seed);
        let size = load.size as usize;
        let values = match &load.payload {
            None => Values::random(size, &mut random.fork(0)),
            Some(path) => Values::of_file(path, size)
                .map_err(|error| Failure::usage(format!("--payload {}: {error}", path.display())))?,
        };
        Ok(Self {
            report: Report::new(seed, server),
            random,
            values,
            server: global.server.clone(),
            admin,
            quiet: global.quiet,
            made: Vec::new(),
            load,
        })
    }

    /// The topic that was named, or a new one.
    pub(crate) async fn topic(&mut self) -> Result<Target, Failure> {
        if let Some(name) = self.load.topic.clone() {
            let details = self.admin.describe_topic(&name).await?;
            return target(name, details.summary.id, details.summary.partitions);
        }
        let name = format!("bench-{}", uuid::Uuid::new_v4().simple());
        let acknowledged = match self.load.durability {
            Durability::Durable => "durable",
            Durability::Written => "written",
        };
        // Retention would take away what a long run has yet to read.
        let mut settings = vec![("rimstone.ack", acknowledged), ("retention.ms", "-1")];
        settings.extend(self.load.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        // Remembered before it is made: whatever becomes of the call, the topic is deleted.
        self.made.push(name.clone());
        let summary = self.admin.create_topic(&name, self.load.partitions, &settings).await?;
        target(name, summary.id, summary.partitions)
    }

    /// A connection of its own.
    pub(crate) fn connect(&self) -> Result<Connection, Failure> {
        Ok(Connection::new(&self.server)?)
    }

    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// The window and the bounds that the options ask for, from now on.
    pub(crate) fn bounded(&self) -> (Meter, Budget) {
        let from = Instant::now() + self.load.warm_up();
        let until = self.load.run_time().map(|time| from + time);
        (Meter::new(Window { from, until }), Budget::new(self.load.records, until))
    }

    /// So many records, as fast as they can.
    pub(crate) fn counted(&self, records: u64) -> (Meter, Budget) {
        (Meter::new(Window { from: Instant::now(), until: None }), Budget::new(Some(records), None))
    }

    /// So long, after warming up.
    pub(crate) fn timed(&self, time: Duration) -> (Meter, Budget) {
        let from = Instant::now() + self.load.warm_up();
        let until = Some(from + time);
        (Meter::new(Window { from, until }), Budget::new(None, until))
    }

    /// Until it is stopped.
    pub(crate) fn open_ended(&self) -> (Meter, Budget) {
        (Meter::new(Window { from: Instant::now(), until: None }), Budget::new(None, None))
    }

    /// Shows how a phase goes, until what this answers is dropped.
    pub(crate) fn watch(&self, name: &'static str, meter: &std::sync::Arc<Meter>) -> Progress {
        Progress::begin(self.quiet, name, meter)
    }

    pub(crate) fn measured(&mut self, phase: Phase) {
        self.report.phases.push(phase);
    }

    /// Deletes the topics that it made, and prints what was measured.
    pub(crate) async fn end(mut self, outcome: Outcome) -> Outcome {
        let mut outcome = outcome;
        for topic in std::mem::take(&mut self.made) {
            if self.load.keep {
                note(format!("topic {topic} is left"));
            } else if let Err(error) = self.admin.delete_topic(&topic).await
                && !error.is(rimstone_client::reason::TOPIC_NOT_FOUND)
            {
                let failure = Failure::from(error);
                let message = format!("topic {topic} could not be deleted: {failure}");
                // What went wrong first is what is told.
                if outcome.is_ok() {
                    outcome = Err(failure.saying(message));
                } else {
                    note(message);
                }
            }
        }
        self.report.print(&self.load)?;
        let errors = self.report.errors();
        outcome.and_then(|()| match errors {
            0 => Ok(()),
            errors => Err(Failure::failed(format!("{errors} requests failed; the report names the reasons"))),
        })
    }
}

fn target(name: String, id: String, partitions: u32) -> Result<Target, Failure> {
    let partitions = NonZeroU32::new(partitions)
        .ok_or_else(|| Failure::failed(format!("the server says that topic {name} has no partitions")))?;
    Ok(Target { name, id, partitions })
}
