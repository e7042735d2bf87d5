//! The other servers. They keep what they are given on disk, as Rimstone does, and do nothing else meanwhile: no
//! snapshots, no rewriting.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::Context as _;
use rimstone_benches::lab::{Lab, Server};
use tokio::process::Command;

/// Where Debian puts servers, whether or not somebody's search path has it.
const SERVERS: &str = "/usr/sbin";

/// A server, and when it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Syncs its file before it answers.
    RedisAlways,
    /// Syncs every second.
    RedisEverySecond,
    /// Answers when the system has what was written; syncs every two minutes.
    Nats,
}

impl Peer {
    pub(crate) const ALL: [Self; 3] = [Self::RedisAlways, Self::RedisEverySecond, Self::Nats];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RedisAlways => "Redis Streams, synced",
            Self::RedisEverySecond => "Redis Streams, synced every second",
            Self::Nats => "NATS JetStream, not synced",
        }
    }

    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::RedisAlways => "redis-always",
            Self::RedisEverySecond => "redis-everysec",
            Self::Nats => "nats",
        }
    }

    /// How the client's subcommands begin.
    pub(crate) fn client(self) -> &'static str {
        match self {
            Self::RedisAlways | Self::RedisEverySecond => "redis",
            Self::Nats => "nats",
        }
    }

    /// The package of Debian, which is called as its program is.
    pub(crate) fn package(self) -> &'static str {
        match self {
            Self::RedisAlways | Self::RedisEverySecond => "redis-server",
            Self::Nats => "nats-server",
        }
    }

    /// Where its program is.
    pub(crate) fn program(self) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut places = std::env::split_paths(&path).chain([PathBuf::from(SERVERS)]);
        places.find_map(|place| Some(place.join(self.package())).filter(|program| program.is_file()))
    }

    pub(crate) async fn version(self) -> anyhow::Result<String> {
        let program = self.program().context("it is installed")?;
        let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().await?;
        let text = String::from_utf8_lossy(&output.stdout);
        // Redis tells its build as well.
        Ok(text.trim().split(" sha=").next().unwrap_or_default().to_owned())
    }

    pub(crate) async fn start(self, lab: &Lab) -> anyhow::Result<Server> {
        let program = self.program().context("it is installed")?;
        lab.other_server(|port, directory| self.command(&program, port, directory)).await
    }

    fn command(self, program: &Path, port: u16, directory: &Path) -> Command {
        let mut command = Command::new(program);
        let port = port.to_string();
        let sync = match self {
            Self::RedisAlways => "always",
            Self::RedisEverySecond => "everysec",
            Self::Nats => {
                command.args(["--addr", "127.0.0.1", "--port", &port, "--jetstream", "--store_dir"]);
                command.arg(directory);
                return command;
            }
        };
        command.args(["--bind", "127.0.0.1", "--port", &port, "--daemonize", "no", "--appendonly", "yes"]);
        command.args(["--appendfsync", sync, "--auto-aof-rewrite-percentage", "0", "--save", "", "--dir"]);
        command.arg(directory);
        command
    }
}
