//! A server of the binary under test, and the binary as a shell runs it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
#![allow(dead_code, reason = "each test file takes what it needs")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// A test that waits longer has hung.
const HUNG: Duration = Duration::from_secs(30);

pub(crate) fn rimstone(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rimstone"));
    command.args(arguments).stdin(Stdio::null()).env_remove("RIMSTONE_SERVER").env("NO_COLOR", "1");
    command
}

/// Exit code, standard output, standard error.
pub(crate) fn answer(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().expect("no signal"), text(output.stdout), text(output.stderr))
}

pub(crate) fn run(arguments: &[&str]) -> (i32, String, String) {
    answer(rimstone(arguments).output().unwrap())
}

/// Runs with this on standard input.
pub(crate) fn run_with_input(arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut command = rimstone(arguments);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    answer(child.wait_with_output().unwrap())
}

pub(crate) fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

pub(crate) fn wait_until(what: &str, mut met: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !met() {
        assert!(begun.elapsed() < HUNG, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

/// A running server; killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: String,
}

impl Server {
    pub(crate) fn start(data: &Path) -> Self {
        let data = data.to_str().unwrap();
        let mut child =
            rimstone(&["serve", "--data", data, "--listen", "127.0.0.1:0", "--web", "127.0.0.1:0"])
                .stdout(Stdio::piped())
                .stderr(fs::File::create(Path::new(data).with_extension("log")).unwrap())
                .spawn()
                .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines
            .map_while(Result::ok)
            .find_map(|line| line.trim().strip_prefix("gRPC").map(|address| address.trim().to_owned()));
        Self { child, address: address.expect("the banner says where it listens") }
    }

    /// Runs a command against this server.
    pub(crate) fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        answer(rimstone(arguments).env("RIMSTONE_SERVER", &self.address).output().unwrap())
    }

    /// Runs a command that must succeed, and answers its data.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let (code, out, err) = self.run(arguments);
        assert_eq!(code, 0, "{arguments:?}: {err}");
        out
    }

    pub(crate) fn ok_with_input(&self, arguments: &[&str], input: &str) -> String {
        let mut all = vec!["--server", &self.address];
        all.extend(arguments);
        let (code, _, err) = run_with_input(&all, input);
        assert_eq!(code, 0, "{arguments:?}: {err}");
        err
    }

    /// Stops it in order.
    pub(crate) fn stop(mut self) {
        signal(&self.child, "TERM");
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
