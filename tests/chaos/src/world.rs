//! A run: a server in a child process, its clients, and what is done to the server. In the end everything settles, the
//! server is started twice more with appends in between, and the facts are gathered.
//!
//! Not here: which faults there are ([`crate::schedule`]).

pub(crate) mod gather;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rimstone_proto::v1;
use rimstone_tests::{
    mount::Mount,
    server::{Server, Setup, free_ports},
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    check::{Anomaly, Counts, check},
    clients::{
        Client, Doors, LATE, Load, PATIENCE as PATIENCE_OF_CLIENTS, Phase, dense, library, requests, tail,
        topics, within,
    },
    event::{Event, What, write_history},
    facts::{At, Facts, Topic},
    proxy::Proxy,
};

/// How long everything may take that a run waits for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(2);
/// How long clients may take to end when they are told to; the checker judges by its own bound, which is shorter.
const ENDING: Duration = Duration::from_secs(45);

/// The same for a run of which it is known that something is wrong.
const ENDING_OF_WRONG: Duration = Duration::from_secs(5);

/// What a run is made of.
#[derive(Debug, Clone)]
pub struct Shape {
    /// A new file system for the data, of so many MiB.
    pub disk: Disk,
    /// Batches that each producer sends; then it waits for the end.
    pub batches: u64,
    /// Where producers reach the server, if not directly.
    pub proxied: bool,
    /// More settings of the server.
    pub settings: Vec<(String, String)>,
    /// How the server makes things durable; chosen by the seed where nothing is said.
    pub sync: Option<&'static str>,
    /// Few clients, who do so much at a time as the schedule allows them ([`World::round`]).
    pub short: bool,
}

/// Where a run's data lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// In the folder of the run.
    Folder,
    /// On an ext4 of its own.
    Ext4(u64),
    /// On a tmpfs of its own.
    Tmpfs(u64),
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            disk: Disk::Folder,
            batches: u64::MAX,
            proxied: false,
            settings: Vec::new(),
            sync: None,
            short: false,
        }
    }
}

/// What a run came to.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// What must not be.
    pub wrong: Vec<String>,
    /// How much there was to check.
    pub counts: Counts,
    /// Faults that really fired, by kind.
    pub fired: BTreeMap<String, u64>,
    /// Acknowledged and sent records at each fault.
    pub at_faults: Vec<(u64, u64)>,
    /// How long it took from the end of the faults until no client had anything open.
    pub settled: Duration,
    /// How far a walk has come.
    pub walk: Option<Walk>,
}

/// A walk over all calls of a kind, after a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walk {
    /// The number to go on with.
    pub next: u64,
    /// The last number that came, if there is none behind it.
    pub ended: Option<u64>,
}

/// A run.
#[derive(Debug)]
pub struct World {
    /// Its folder.
    pub home: PathBuf,
    /// Its dice.
    pub random: StdRng,
    /// What its clients share.
    pub load: Load,
    /// Its own file system.
    pub mount: Option<Mount>,
    /// What is between producers and the server.
    pub proxy: Option<Proxy>,
    setup: Setup,
    server: Option<Server>,
    phase: watch::Sender<Phase>,
    producers: JoinSet<()>,
    readers: JoinSet<()>,
    /// The ids of topics, as the server lists them in the end.
    ids: BTreeMap<String, String>,
    /// Producers that heed rounds.
    bounded: usize,
    seed: u64,
    report: Report,
    begun: Instant,
}

/// The topics that are there from the beginning to the end.
fn topic_table(seed: u64) -> BTreeMap<String, Topic> {
    let plain = Topic { partitions: 3, ..Default::default() };
    let small = Topic { partitions: 2, ..plain };
    let compact =
        Topic { partitions: 2, compacted: true, tombstones_go: seed.is_multiple_of(2), ..Default::default() };
    let short = Topic { partitions: 1, retention: true, ..Default::default() };
    [("plain", plain), ("small", small), ("compact", compact), ("short", short)]
        .map(|(name, topic)| (name.to_owned(), topic))
        .into()
}

fn topic_settings(
    name: &str,
    topic: &Topic,
    short: bool,
    random: &mut StdRng,
) -> Vec<(&'static str, String)> {
    let segment = if random.random() || short { "4096" } else { "16384" };
    let mut settings = match name {
        "plain" => vec![("retention.ms", "-1")],
        "small" => vec![("segment.bytes", segment), ("retention.ms", "-1")],
        "compact" => vec![
            ("segment.bytes", segment),
            ("cleanup.policy", "compact"),
            ("min.cleanable.dirty.ratio", "0.01"),
        ],
        _ => vec![
            ("segment.bytes", "4096"),
            ("retention.bytes", if short { "6000" } else { "20000" }),
            ("retention.ms", "-1"),
        ],
    };
    if topic.tombstones_go {
        settings.push(("delete.retention.ms", "50"));
    }
    settings.into_iter().map(|(name, value)| (name, value.to_owned())).collect()
}

impl World {
    /// A server with its topics, in a folder that is emptied first; nobody writes yet.
    ///
    /// # Errors
    /// If the server does not start, or does not make topics.
    pub async fn new(home: &Path, seed: u64, shape: &Shape) -> anyhow::Result<Self> {
        if home.exists() {
            fs::remove_dir_all(home).context("an older run's folder can be removed")?;
        }
        fs::create_dir_all(home)?;
        let mut random = StdRng::seed_from_u64(seed);
        let mount = match shape.disk {
            Disk::Folder => None,
            Disk::Ext4(mebibytes) => Some(Mount::ext4(home, mebibytes)),
            Disk::Tmpfs(mebibytes) => Some(Mount::tmpfs(home, mebibytes)),
        };
        let data = mount.as_ref().map_or(home, Mount::point).join("data");
        // One of four with a sync for each file, which is what other file systems get.
        let sync = shape.sync.unwrap_or(if seed % 4 == 3 { "fdatasync" } else { "auto" });
        let (grpc, web) = free_ports();
        let mut setup = Setup::new(home)
            .data(&data)
            .ports(grpc, web)
            .setting("storage.sync", sync)
            .setting("storage.maintenance_interval", "100ms")
            .setting("storage.compaction_interval", "100ms");
        for (name, value) in &shape.settings {
            setup = setup.setting(name, value);
        }
        let (phase, watching) = watch::channel(Phase::Work);
        let endpoint = format!("127.0.0.1:{grpc}");
        let load = Load::new(topic_table(seed), endpoint.clone(), endpoint, watching);
        let mut world = Self {
            home: home.to_path_buf(),
            load,
            mount,
            proxy: None,
            setup,
            server: None,
            phase,
            producers: JoinSet::new(),
            readers: JoinSet::new(),
            ids: BTreeMap::new(),
            bounded: 0,
            seed,
            report: Report::default(),
            begun: Instant::now(),
            random: StdRng::seed_from_u64(random.random()),
        };
        world.start().await?;
        let mut doors = Doors::to(&world.load.endpoint);
        for (name, topic) in world.load.topics.iter() {
            let settings = topic_settings(name, topic, shape.short, &mut random);
            let settings = settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            let request =
                v1::CreateTopicRequest { topic: name.clone(), partitions: topic.partitions, settings };
            within(doors.admin.create_topic(request)).await.context("a topic is made")?;
        }
        Ok(world)
    }

    /// All clients begin.
    pub fn begin(&mut self, shape: &Shape, producing_endpoint: Option<String>) {
        if let Some(endpoint) = producing_endpoint {
            self.load.producing_endpoint = endpoint;
        }
        let (load, seed, batches) = (self.load.clone(), self.seed, shape.batches);
        let client = |kind: &str, index| Client::new(&load, kind, index, seed);
        if shape.short {
            self.load.begin_round(0);
        }
        // The last says who is there in a short run too.
        let plans = [
            ("plain", None, false, false),
            ("plain", Some("a"), true, false),
            ("small", None, true, true),
            ("compact", Some("b"), false, true),
            ("compact", None, true, false),
            ("short", Some("c"), false, true),
        ];
        let plans = plans.into_iter().zip(0..).filter(|((.., in_short), _)| *in_short || !shape.short);
        for ((topic, name, stream, _), index) in plans {
            let plan = dense::Plan {
                topic: topic.to_owned(),
                name: name.map(|name| format!("producer-{name}")),
                stream,
                batches,
            };
            self.producers.spawn(dense::run(client("dense", index), plan));
        }
        for (topic, index) in ["plain", "compact"].into_iter().zip(0..).take(if shape.short { 1 } else { 2 })
        {
            self.producers.spawn(requests::run(client("requests", index), topic.to_owned(), batches));
        }
        let records = batches.saturating_mul(4);
        self.producers.spawn(library::produce(client("library", 0), "small".to_owned(), records));
        self.producers.spawn(topics::run(client("topics", 0), Some("short".to_owned())));
        self.bounded = self.producers.len();
        for (topic, index) in load.topics.keys().zip(0..) {
            self.readers.spawn(tail::run(client("tail", index), topic.clone()));
        }
        for index in 0..2 {
            self.readers.spawn(library::member(client("member", index), "small".to_owned()));
        }
    }

    /// The running server.
    ///
    /// # Panics
    /// If none runs.
    pub fn server(&mut self) -> &mut Server {
        self.server.as_mut().expect("a schedule knows whether its server runs")
    }

    /// Where the data is.
    pub fn data(&self) -> PathBuf {
        self.mount.as_ref().map_or(&*self.home, Mount::point).join("data")
    }

    /// Starts the server; it must come up.
    ///
    /// # Errors
    /// If it does not.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        let setup = self.setup.clone();
        self.start_as(setup).await
    }

    /// Starts it in another way; it must come up.
    ///
    /// # Errors
    /// If it does not.
    pub async fn start_as(&mut self, setup: Setup) -> anyhow::Result<()> {
        match setup.try_start().await {
            Ok(server) => self.server = Some(server),
            Err(failure) => {
                bail!("the server did not start: {}\n{}", failure.status, tail_of(&failure.output))
            }
        }
        Ok(())
    }

    /// Starts it in another way; it may end instead: how, and what it said.
    pub async fn try_start_as(&mut self, setup: Setup) -> Option<rimstone_tests::server::StartFailure> {
        match setup.try_start().await {
            Ok(server) => {
                self.server = Some(server);
                None
            }
            Err(failure) => Some(failure),
        }
    }

    /// Begins to start the server, and does not wait for it.
    pub fn spawn(&mut self) {
        self.server = Some(self.setup.clone().spawn());
    }

    /// How the server is started.
    pub fn setup(&self) -> Setup {
        self.setup.clone()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill();
            self.load.recorder.note("driver", What::Ended);
        }
    }

    /// SIGTERM, and a clean end.
    pub async fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.stop().await;
            self.load.recorder.note("driver", What::Ended);
        }
    }

    /// Whether the server has ended by itself; it is forgotten then.
    pub fn has_ended(&mut self) -> Option<std::process::ExitStatus> {
        let status = self.server.as_mut()?.has_ended()?;
        self.server = None;
        self.load.recorder.note("driver", What::Ended);
        Some(status)
    }

    /// A kill or a stop, as the dice fall.
    pub async fn kill_or_stop(&mut self) {
        if self.random.random() { self.kill() } else { self.stop().await }
    }

    /// The same; of a server that was made to fail a stop may end otherwise than well, but it must end.
    pub async fn kill_or_stop_forgiving(&mut self) {
        if self.random.random() {
            self.kill();
        } else {
            self.stop_as_it_may().await;
        }
    }

    /// Writes down that a fault fired, and how much is acknowledged at this moment.
    pub fn fired(&mut self, kind: &str) {
        self.load.recorder.note("driver", What::Fault { what: kind.to_owned() });
        *self.report.fired.entry(kind.to_owned()).or_default() += 1;
        self.report.at_faults.push((self.load.acknowledged(), self.load.sent()));
    }

    /// Writes down that the device fails from now on, or is well again.
    pub fn device(&mut self, fails: bool) {
        self.load.recorder.note("driver", What::Device { fails });
    }

    /// Counts a fault of which nothing is acknowledged, as one at a start.
    pub fn fired_quietly(&mut self, kind: &str) {
        self.load.recorder.note("driver", What::Fault { what: kind.to_owned() });
        *self.report.fired.entry(kind.to_owned()).or_default() += 1;
    }

    /// Something that must not be.
    pub fn wrong(&mut self, what: impl Into<String>) {
        self.report.wrong.push(what.into());
    }

    /// Waits until so many more records are acknowledged, or the server has ended; whether it runs.
    ///
    /// # Errors
    /// If neither comes about.
    pub async fn acknowledge_more(&mut self, records: u64) -> anyhow::Result<bool> {
        let goal = self.load.acknowledged() + records;
        let load = self.load.clone();
        self.until(&format!("{records} more records are acknowledged"), || load.acknowledged() >= goal).await
    }

    /// Waits until something is so, or the server has ended; whether it runs.
    ///
    /// # Errors
    /// If neither comes about.
    pub async fn until(&mut self, what: &str, mut is_so: impl FnMut() -> bool) -> anyhow::Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            if self.server.is_some() && self.has_ended().is_some() {
                return Ok(false);
            }
            ensure!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
            sleep(LOOK).await;
        }
        Ok(true)
    }

    /// Has each producer do so much, and waits for it, or until the server has ended; whether it runs.
    ///
    /// # Errors
    /// If neither comes about.
    pub async fn round(&mut self, units: u64) -> anyhow::Result<bool> {
        let round = self.load.begin_round(units);
        let (load, bounded) = (self.load.clone(), self.bounded);
        self.until("everybody has done his part", || load.done_with(round) == bounded).await
    }

    /// SIGTERM, and how the server ended.
    pub async fn stop_as_it_may(&mut self) -> Option<std::process::ExitStatus> {
        let mut server = self.server.take()?;
        server.signal(rustix::process::Signal::TERM);
        let status = server.ended().await;
        self.load.recorder.note("driver", What::Ended);
        Some(status)
    }

    /// How far a walk has come.
    pub fn walked(&mut self, walk: Walk) {
        self.report.walk = Some(walk);
    }

    /// A moment that no event marks.
    pub async fn moment(&mut self, micros_max: u64) {
        let micros = self.random.random_range(0..=micros_max);
        sleep(Duration::from_micros(micros)).await;
    }

    /// No more faults: the clients come to their end, the server is started twice more with appends in between, and
    /// everything is checked. The server must run.
    ///
    /// # Errors
    /// If that cannot be done; what is wrong with the data is in the report.
    pub async fn finish(&mut self) -> anyhow::Result<(Report, Facts)> {
        self.load.recorder.note("driver", What::FaultsEnd);
        self.phase.send_replace(Phase::Drain);
        let begun = Instant::now();
        let violated = |event: &Event| matches!(event.what, What::Violation { .. });
        // Where something is wrong already nobody waits for what cannot settle.
        let is_wrong = self.load.recorder.events().iter().any(violated);
        let deadline = begun + if is_wrong { ENDING_OF_WRONG } else { ENDING };
        Self::ended(&mut self.producers, deadline).await?;
        self.phase.send_replace(Phase::Finish);
        Self::ended(&mut self.readers, deadline).await?;
        self.report.settled = begun.elapsed();
        if let Some(status) = self.has_ended() {
            self.wrong(format!("I4: the server has ended by itself: {status}"));
            self.start().await?;
        }
        self.kill_or_stop().await;
        self.start().await?;
        self.append_everywhere("after-1").await?;
        self.kill_or_stop().await;
        // Nothing moves any more: what is read stays comparable with the files.
        let quiet = self
            .setup
            .clone()
            .setting("storage.maintenance_interval", "1h")
            .setting("storage.compaction_interval", "1h");
        self.start_as(quiet).await?;
        self.append_everywhere("after-2").await?;
        let mut facts = self.shown().await?;
        self.kill_or_stop().await;
        self.files(&mut facts)?;
        Ok((self.judge(&facts)?, facts))
    }

    /// Whether a file, relative to the data directory, is one of a partition's.
    pub fn is_of(&self, at: &At, file: &Path) -> bool {
        let Some(id) = self.ids.get(&at.0) else { return false };
        file.starts_with(Path::new("topics").join(id).join(at.1.to_string()))
    }

    /// Ends all clients; those that do not end are seen by the checker, as they have not settled.
    async fn ended(clients: &mut JoinSet<()>, deadline: Instant) -> anyhow::Result<()> {
        while !clients.is_empty() {
            match tokio::time::timeout_at(deadline, clients.join_next()).await {
                Ok(Some(Ok(())) | None) => {}
                Ok(Some(Err(error))) => bail!("a client panicked: {error}"),
                Err(_) => clients.abort_all(),
            }
            if Instant::now() > deadline {
                while clients.join_next().await.is_some() {}
            }
        }
        Ok(())
    }

    /// One record more in each partition of each topic.
    async fn append_everywhere(&mut self, who: &str) -> anyhow::Result<()> {
        let topics: Vec<_> = self.load.topics.iter().map(|(name, topic)| (name.clone(), *topic)).collect();
        // They end when they have nothing more to send.
        let (_phase, watching) = watch::channel(Phase::Work);
        let mut load = self.load.clone().watching(watching);
        load.producing_endpoint.clone_from(&load.endpoint);
        let mut tasks = JoinSet::new();
        for ((topic, _), index) in topics.into_iter().zip(0..) {
            let client = Client::new(&load, who, index, self.seed);
            let plan = dense::Plan { topic, name: None, stream: index % 2 == 0, batches: 4 };
            tasks.spawn(dense::run(client, plan));
        }
        Self::ended(&mut tasks, Instant::now() + ENDING).await
    }

    fn judge(&mut self, facts: &Facts) -> anyhow::Result<Report> {
        let (wrong, counts) = check(facts);
        self.report.counts = counts;
        self.report.wrong.extend(wrong.iter().map(Anomaly::to_string));
        let panics = self.panics()?;
        self.report.wrong.extend(panics);
        self.report.wrong.extend(hangs(&facts.events));
        for (acknowledged, _) in self.report.at_faults.clone() {
            let all = self.load.acknowledged();
            if acknowledged == 0 || acknowledged >= all {
                let what = format!(
                    "a fault came with {acknowledged} records of {all} acknowledged: it shows nothing"
                );
                self.wrong(what);
            }
        }
        if !self.report.wrong.is_empty() {
            self.keep(facts)?;
        }
        Ok(self.report.clone())
    }

    /// I4: the servers' own words.
    fn panics(&self) -> anyhow::Result<Vec<String>> {
        let mut said = Vec::new();
        for entry in fs::read_dir(&self.home)? {
            let path = entry?.path();
            if path.extension().is_some_and(|suffix| suffix == "log") {
                let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
                let lines = text.lines().filter(|line| line.contains("panicked at"));
                said.extend(lines.map(|line| format!("I4: {}: {line}", path.display())));
            }
        }
        Ok(said)
    }

    fn keep(&self, facts: &Facts) -> anyhow::Result<()> {
        write_history(&self.home.join("history.jsonl"), &facts.events)?;
        fs::write(self.home.join("wrong.txt"), self.report.wrong.join("\n") + "\n")?;
        Ok(())
    }

    /// What the report says so far.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// How long the run has been going.
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Writes down the history of a run that could not be finished.
    pub fn keep_history(&self) {
        let events = self.load.recorder.events();
        if let Err(error) = write_history(&self.home.join("history.jsonl"), &events) {
            println!("the history cannot be kept: {error}");
        }
    }

    /// Ends what runs and takes the file system away.
    pub async fn close(&mut self) {
        self.producers.abort_all();
        self.readers.abort_all();
        while self.producers.join_next().await.is_some() {}
        while self.readers.join_next().await.is_some() {}
        self.kill();
    }
}

/// I4: calls that nobody answered, though nothing was done to the server meanwhile. Of a server that is gone the kernel
/// has told the client: who waits on all the same waits for its own HTTP/2 library (hyper 1.12 with h2 0.4.20: seen once, a
/// call that went out as a clean stop began).
fn hangs(events: &[Event]) -> Vec<String> {
    let asked = |late: &Event| {
        let mut of_call = events.iter().filter(|event| event.op == late.op && event.process == late.process);
        of_call.next().map_or(late.at_ns, |first| first.at_ns)
    };
    let outlived = |late: &Event| {
        let meanwhile = asked(late)..late.at_ns;
        events.iter().any(|event| event.what == What::Ended && meanwhile.contains(&event.at_ns))
    };
    let patience = PATIENCE_OF_CLIENTS.as_nanos() as u64;
    let faults: Vec<u64> = events
        .iter()
        .filter(|event| matches!(event.what, What::Fault { .. }))
        .map(|event| event.at_ns)
        .collect();
    let late = events.iter().filter(|event| match &event.what {
        What::Unknown { why } => why.contains(LATE),
        _ => false,
    });
    let alone = late.filter(|event| {
        let while_it_waited = event.at_ns.saturating_sub(patience + patience / 10)..event.at_ns;
        !faults.iter().any(|at| while_it_waited.contains(at)) && !outlived(event)
    });
    alone.map(|event| format!("I4: {} waited for call {} in vain", event.process, event.op)).collect()
}

/// The end of a long text.
fn tail_of(text: &str) -> &str {
    const SHOWN: usize = 2_000;
    let from = text.len().saturating_sub(SHOWN);
    let from = (from..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    &text[from..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_in_vain_is_told_unless_the_server_was_hurt_or_is_gone() {
        const SECOND: u64 = 1_000_000_000;
        let event = |at: u64, process: &str, op, what| Event {
            at_ns: at * SECOND,
            process: process.to_owned(),
            op,
            what,
        };
        let late = || What::Unknown { why: format!("DeadlineExceeded  {LATE}") };
        let call = [
            event(50, "a", 0, What::Settled),
            event(100, "a", 7, What::Trim { topic: "t".to_owned(), partition: 0, before: 1 }),
            event(101, "b", 7, What::Done),
            event(110, "a", 7, late()),
        ];
        let with = |more: Vec<Event>| hangs(&call.iter().cloned().chain(more).collect::<Vec<_>>());
        assert_eq!(with(Vec::new()), ["I4: a waited for call 7 in vain"]);
        // What was before it, or comes after it, explains nothing.
        for at in [60, 99, 110, 120] {
            assert_eq!(with(vec![event(at, "driver", 0, What::Ended)]).len(), 1, "{at}");
        }
        assert!(with(vec![event(105, "driver", 0, What::Ended)]).is_empty());
        let fault = |at| event(at, "driver", 0, What::Fault { what: "SIGKILL".to_owned() });
        assert!(with(vec![fault(105)]).is_empty());
        assert_eq!(with(vec![fault(60)]).len(), 1);
    }
}
