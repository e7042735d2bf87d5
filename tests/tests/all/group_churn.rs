//! Members join, leave, freeze and die at random, and so does the server, while records come in. Whatever
//! happens, the histories of the members must stand up to the checker.
//!
//! `RIMSTONE_CHURNS` sets the number of rounds, `RIMSTONE_SEED` runs one seed alone.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use rimstone_tests::{
    calls::Calls,
    command::{Running, command, succeed},
    group::{
        check::check,
        crowd::{Crew, Crowd},
    },
    input::{NUMBER_HEADER, made_up},
    server::{Server, Setup},
    wait::until,
};
use tokio::time::{sleep, timeout};

use crate::groups::{caught_up, crew, lag};

/// Enough for CI; `just churn 50` runs more.
const ROUNDS: u64 = 1;
const STEPS: u32 = 25;
const LINES: u64 = 12_000;
const TOPIC: &str = "lines";
const GROUP: &str = "churn";
/// The last of them are static members.
const NAMES: [&str; 6] = ["ada", "bo", "cy", "dee", "eve", "fay"];
const STATIC: [&str; 2] = ["eve", "fay"];
/// Comes last.
const LAST: &str = "zoe";
/// Some sessions end although nobody has died: of those who are frozen, and on a loaded machine.
const SESSION_TIMEOUT: Duration = Duration::from_secs(3);
/// Everything settles so soon after the last fault, or the test fails: several sessions, on a loaded machine too.
const SETTLES: Duration = Duration::from_secs(60);

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is no number")))
}

/// How often each thing happened.
#[derive(Debug, Default)]
struct Faults {
    joins: u32,
    leaves: u32,
    kills: u32,
    freezes: u32,
    takeovers: u32,
    servers_killed: u32,
    servers_stopped: u32,
}

struct Churn {
    random: StdRng,
    crowd: Crowd,
    server: Option<Server>,
    faults: Faults,
}

impl Churn {
    fn join(&mut self, member: &str) {
        let instance = STATIC.contains(&member).then_some(member);
        let seed = self.random.random();
        self.crowd.join(member, instance, seed);
        self.faults.joins += 1;
    }

    fn some_of(&mut self, names: &[String]) -> Option<String> {
        names.choose(&mut self.random).cloned()
    }

    async fn step(&mut self) {
        self.crowd.reap();
        let running = self.crowd.running();
        let absent: Vec<_> =
            NAMES.iter().map(|name| (*name).to_owned()).filter(|name| !running.contains(name)).collect();
        let frozen = self.crowd.frozen();
        let awake: Vec<_> = running.iter().filter(|name| !frozen.contains(name)).cloned().collect();
        match self.random.random_range(0..100) {
            0..40 => {
                if let Some(member) = self.some_of(&absent) {
                    self.join(&member);
                }
            }
            40..52 => {
                if let Some(member) = self.some_of(&awake) {
                    self.crowd.leave(&member).await;
                    self.faults.leaves += 1;
                }
            }
            52..67 => {
                if let Some(member) = self.some_of(&running) {
                    self.crowd.kill(&member);
                    self.faults.kills += 1;
                }
            }
            67..77 => {
                if let Some(member) = self.some_of(&awake) {
                    self.crowd.freeze(&member);
                    self.faults.freezes += 1;
                }
            }
            77..85 => {
                if let Some(member) = self.some_of(&frozen) {
                    self.crowd.thaw(&member);
                }
            }
            // The one that hangs goes on later and finds another in its place.
            85..90 => {
                let named: Vec<_> =
                    frozen.into_iter().filter(|name| NAMES.contains(&name.as_str())).collect();
                if let Some(member) = self.some_of(&named) {
                    self.crowd.disown(&member);
                    self.join(&member);
                    self.faults.takeovers += 1;
                }
            }
            _ => self.restart().await,
        }
    }

    async fn restart(&mut self) {
        let mut server = self.server.take().expect("there is a server between steps");
        if self.random.random_bool(0.7) {
            server.kill();
            self.faults.servers_killed += 1;
        } else {
            server.stop().await;
            self.faults.servers_stopped += 1;
        }
        self.server = Some(server.start_again().await);
    }

    /// Whatever the dice said: one comes while others have everything, and the server dies while they read.
    async fn ends_well(&mut self) {
        for member in self.crowd.frozen() {
            self.crowd.thaw(&member);
        }
        self.crowd.reap();
        if self.crowd.running().is_empty() {
            self.join("bo");
        }
        // Fewer than partitions, so that there is something for the last.
        for member in self.crowd.running().into_iter().skip(3) {
            self.crowd.leave(&member).await;
        }
        self.until_owners(|owners| !owners.contains("")).await;
        self.join(LAST);
        self.until_owners(|owners| !owners.contains("") && owners.contains(LAST)).await;
        let mut server = self.server.take().expect("there is a server between steps");
        server.kill();
        self.faults.servers_killed += 1;
        self.server = Some(server.start_again().await);
    }

    /// Waits until the owners of the partitions, "" for none, are like this.
    async fn until_owners(&self, are_so: impl Fn(&BTreeSet<String>) -> bool) {
        let mut calls = Calls::connect(self.server.as_ref().expect("there is a server between steps")).await;
        until("partitions have the owners that they are to have", async || {
            let partitions = calls.lag_of(GROUP).await.ok()?;
            let owners = partitions.into_iter().map(|partition| partition.member_id).collect();
            are_so(&owners).then_some(())
        })
        .await;
    }
}

async fn churn(home: &Path, seed: u64) {
    let server = Setup::new(home).start().await;
    let endpoint = server.endpoint();
    let create = ["topic", "create", TOPIC, "--partitions", "6", "--set", "retention.ms=-1"];
    succeed(create.into_iter().chain(["--server", &endpoint])).await;
    let file = home.join("input.txt");
    let text: String = made_up(LINES, seed).into_iter().map(|line| line.value + "\n").collect();
    fs::write(&file, text).unwrap();
    let produce = ["produce", TOPIC, file.to_str().unwrap(), "--server", &endpoint, "--rate", "800"];
    let key = ["--key-field", "1", "--line-number-header", NUMBER_HEADER];
    let mut producing = Running::start(command(produce.into_iter().chain(key)), home, "produce");

    let crew = Crew { session_timeout: SESSION_TIMEOUT, ..crew(&server, home, GROUP) };
    let crowd = Crowd::new(crew);
    let random = StdRng::seed_from_u64(seed);
    let mut churn = Churn { random, crowd, server: Some(server), faults: Faults::default() };
    churn.join("ada");
    churn.join("eve");
    // A producer whose server is not there when it begins gives up at once.
    until("something is read", async || (churn.crowd.done() > 0).then_some(())).await;
    for _ in 0..STEPS {
        churn.step().await;
        // How the steps are spread, no waiting for anything: up to somewhat more than a session time-out.
        let spread = if churn.random.random_bool(0.15) {
            SESSION_TIMEOUT + SESSION_TIMEOUT / 3
        } else {
            SESSION_TIMEOUT / 6
        };
        sleep(spread.mul_f64(churn.random.random())).await;
    }
    churn.ends_well().await;
    let ran = producing.ended().await;
    assert!(ran.status.success(), "{ran:#?}");
    let server = churn.server.take().unwrap();
    let settled = timeout(SETTLES, caught_up(&server, GROUP)).await;
    assert!(settled.is_ok(), "seed {seed}: {:?} behind after {SETTLES:?}", lag(&server, GROUP).await);
    churn.crowd.reap();
    for member in churn.crowd.running() {
        churn.crowd.leave(&member).await;
    }

    let facts = churn.crowd.facts(&server).await;
    let (wrong, counts) = check(&facts);
    println!("seed {seed}: {:?}, {counts:?}", churn.faults);
    assert_eq!(wrong, [], "seed {seed}, histories in {}", home.display());
    assert_eq!(facts.log.values().map(Vec::len).sum::<usize>() as u64, LINES);
    assert!(counts.tenures > 10 && counts.stops_confirmed > 0 && counts.resumed > 0, "too little happened");
    let Faults { joins, kills, servers_killed, .. } = churn.faults;
    assert!(joins > 2 && kills + servers_killed > 0, "too little happened");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_owner_per_epoch_and_nothing_lost_whoever_comes_and_goes() {
    let seeds: Vec<u64> = match number("RIMSTONE_SEED") {
        Some(seed) => vec![seed],
        None => {
            let rounds = number("RIMSTONE_CHURNS").unwrap_or(ROUNDS);
            std::iter::repeat_with(rand::random).take(usize::try_from(rounds).unwrap()).collect()
        }
    };
    for seed in seeds {
        println!("RIMSTONE_SEED={seed}");
        let mut home = tempfile::tempdir().unwrap();
        // The histories of a round that fails are looked at.
        home.disable_cleanup(true);
        churn(home.path(), seed).await;
        home.disable_cleanup(false);
    }
}
