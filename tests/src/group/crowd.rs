//! The members of a group as child processes. Every start of a process writes a history of its own. Nothing is
//! left running.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    calls::Calls,
    group::{
        check::{Facts, Life},
        event::read_events,
        member::Options,
    },
    history::read_all,
    server::Server,
    wait::until,
};

/// How all members of a group are started.
#[derive(Debug, Clone)]
pub struct Crew {
    /// Where `rimstone-member` is: `env!("CARGO_BIN_EXE_rimstone-member")`.
    pub program: PathBuf,
    /// Where histories and outputs go.
    pub home: PathBuf,
    /// `HOST:PORT`.
    pub server: String,
    /// Their group.
    pub group: String,
    /// What they read.
    pub topic: String,
    /// Of every member.
    pub session_timeout: Duration,
    /// How fast they work.
    pub records_per_ms: u32,
}

/// The processes, those that have ended included.
#[derive(Debug)]
pub struct Crowd {
    crew: Crew,
    processes: Vec<Process>,
}

#[derive(Debug)]
struct Process {
    name: String,
    member: String,
    owner: String,
    history: PathBuf,
    output: PathBuf,
    child: Child,
    frozen: bool,
    ended: bool,
}

impl Crowd {
    /// Nobody yet.
    pub fn new(crew: Crew) -> Self {
        Self { crew, processes: Vec::new() }
    }

    /// Starts a member: under this id or, with an instance, under a new one.
    ///
    /// # Panics
    /// If one of this name is still running.
    pub fn join(&mut self, member: &str, instance: Option<&str>, seed: u64) {
        assert!(!self.running().contains(&member.to_owned()), "{member} is running");
        let name = format!("{member}-{}", self.processes.len() + 1);
        let history = self.crew.home.join(format!("{name}.jsonl"));
        let output = self.crew.home.join(format!("{name}.log"));
        let options = Options {
            server: self.crew.server.clone(),
            group: self.crew.group.clone(),
            // A static member is known by its instance, and comes under a new id each time.
            member: instance.map_or(member, |_| &name).to_owned(),
            instance: instance.map(str::to_owned),
            topic: self.crew.topic.clone(),
            history: history.clone(),
            session_timeout_ms: self.crew.session_timeout.as_millis().try_into().expect("a short time"),
            records_per_ms: self.crew.records_per_ms,
            seed,
        };
        let options = serde_json::to_string(&options).expect("options are plain");
        let file = File::create(&output).expect("a file can be made in the folder of a test");
        let mut command = Command::new(&self.crew.program);
        command.arg(options).stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let child = command.spawn().expect("a member can be started");
        let owner = instance.unwrap_or(member).to_owned();
        let member = member.to_owned();
        let process = Process { name, member, owner, history, output, child, frozen: false, ended: false };
        self.processes.push(process);
    }

    /// The members whose processes run, frozen ones included.
    pub fn running(&self) -> Vec<String> {
        let running = self.processes.iter().filter(|process| !process.ended);
        running.map(|process| process.member.clone()).collect()
    }

    /// The members that are frozen.
    pub fn frozen(&self) -> Vec<String> {
        let frozen = self.processes.iter().filter(|process| !process.ended && process.frozen);
        frozen.map(|process| process.member.clone()).collect()
    }

    fn process(&mut self, member: &str) -> &mut Process {
        let running = self.processes.iter_mut().find(|process| !process.ended && process.member == member);
        running.unwrap_or_else(|| panic!("{member} is not running"))
    }

    /// SIGKILL.
    pub fn kill(&mut self, member: &str) {
        let process = self.process(member);
        process.child.kill().expect("a child can be killed");
        process.child.wait().expect("a killed child ends");
        process.ended = true;
    }

    /// Lets a member leave, and waits until it has.
    ///
    /// # Panics
    /// If it does not, or fails.
    pub async fn leave(&mut self, member: &str) {
        let process = self.process(member);
        process.signal(Signal::TERM);
        let status = process.wait().await;
        assert!(status.success(), "{} ended with {status}", process.name);
    }

    /// SIGSTOP: it does nothing any more, and does not know it.
    pub fn freeze(&mut self, member: &str) {
        let process = self.process(member);
        process.signal(Signal::STOP);
        process.frozen = true;
    }

    /// SIGCONT.
    pub fn thaw(&mut self, member: &str) {
        let process = self.process(member);
        process.signal(Signal::CONT);
        process.frozen = false;
    }

    /// Forgets the name of a process, which goes on: another may take its place.
    pub fn disown(&mut self, member: &str) {
        let process = self.process(member);
        process.member = process.name.clone();
    }

    /// Takes note of the members that have ended because another has taken their place.
    ///
    /// # Panics
    /// If one has failed.
    pub fn reap(&mut self) {
        for process in self.processes.iter_mut().filter(|process| !process.ended) {
            if let Some(status) = process.child.try_wait().expect("a child can be waited for") {
                assert!(status.success(), "{} has ended with {status}", process.name);
                process.ended = true;
            }
        }
    }

    /// Asserts that no process has ended by itself.
    ///
    /// # Panics
    /// If one has.
    pub fn assert_running(&mut self) {
        for process in self.processes.iter_mut().filter(|process| !process.ended) {
            let status = process.child.try_wait().expect("a child can be waited for");
            assert!(status.is_none(), "{} has ended with {status:?}", process.name);
        }
    }

    /// How many records were worked on so far, repetitions included.
    pub fn done(&self) -> usize {
        let done = |process: &Process| {
            let text = std::fs::read_to_string(&process.history).unwrap_or_default();
            text.lines().filter(|line| line.contains(r#""event":"done""#)).count()
        };
        self.processes.iter().map(done).sum()
    }

    /// Everything that is known in the end, for [`super::check::check`].
    ///
    /// # Panics
    /// If the server does not tell.
    pub async fn facts(&self, server: &Server) -> Facts {
        let crew = &self.crew;
        let mut log: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        let mut records = read_all(&server.endpoint(), &crew.topic).await;
        records.sort_by_key(|record| (record.partition, record.offset));
        for record in records {
            let numbers = log.entry(record.partition).or_default();
            assert_eq!(record.offset, numbers.len() as u64, "nothing is taken from this log");
            numbers.push(record.number);
        }
        let mut calls = Calls::connect(server).await;
        let committed = calls.committed(&crew.group, &crew.topic).await;
        Facts {
            lives: self.lives(),
            log,
            committed: committed.expect("a group that has committed can tell"),
            session_timeout_ns: crew.session_timeout.as_nanos().try_into().expect("a short time"),
        }
    }

    /// What everybody has written down.
    pub fn lives(&self) -> Vec<Life> {
        let life = |process: &Process| Life {
            process: process.name.clone(),
            owner: process.owner.clone(),
            events: read_events(&process.history),
        };
        self.processes.iter().map(life).collect()
    }
}

impl Process {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("a child takes signals");
    }

    async fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        let look = async || child.try_wait().expect("a child can be waited for");
        let status = until("a member ends", look).await;
        self.ended = true;
        status
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // It may have ended already.
            drop(process.child.kill());
            drop(process.child.wait());
            if std::thread::panicking() {
                show(&process.output);
            }
        }
    }
}

fn show(output: &Path) {
    let text = std::fs::read_to_string(output).unwrap_or_default();
    if !text.is_empty() {
        println!("--- {} ---\n{text}", output.display());
    }
}
