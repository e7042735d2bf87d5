//! The command line, run to its end.

use std::{
    ffi::OsStr,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{io::AsyncWriteExt as _, sync::watch};

use crate::{binary::rimstone, input::Line, wait::until};

/// How much of a command's output a failing test shows.
const SHOWN_OUTPUT: usize = 16 << 10;

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// `rimstone` with these arguments, without any setting of the environment.
pub fn command<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(rimstone());
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RIMSTONE_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command to its end.
///
/// # Panics
/// If it does not end.
pub async fn run(mut command: Command) -> Ran {
    let child = tokio::task::spawn_blocking(move || command.output().expect("the program can be started"));
    crate::wait::soon(child).await.expect("waiting for a child does not panic").into()
}

/// Runs a command that must succeed, and gives its stdout.
///
/// # Panics
/// If it fails.
pub async fn succeed<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> String {
    let command = command(arguments);
    let shown = format!("{command:?}");
    let ran = run(command).await;
    assert!(ran.status.success(), "{shown} ended with {}\n{}\n{}", ran.status, ran.stdout, ran.stderr);
    ran.stdout
}

/// A command that runs beside the test; killed when dropped. Its output goes to files.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Running {
    /// Starts it; the files are `name.out` and `name.err` in `home`.
    pub fn start(mut command: Command, home: &Path, name: &str) -> Self {
        let stdout = home.join(format!("{name}.out"));
        let stderr = home.join(format!("{name}.err"));
        let file = |path: &Path| File::create(path).expect("a file can be made in the folder of a test");
        let child = command.stdout(file(&stdout)).stderr(file(&stderr)).spawn();
        Self { child: child.expect("the program can be started"), stdout, stderr }
    }

    /// The same with these lines on its standard input, of which none may go in yet.
    pub fn start_fed(mut command: Command, home: &Path, name: &str, lines: &[Line]) -> (Self, Gate) {
        command.stdin(Stdio::piped());
        let mut running = Self::start(command, home, name);
        let input = running.child.stdin.take().expect("it is piped");
        let (gate, allowed) = watch::channel(0);
        let lines = lines.iter().map(|line| line.value.clone() + "\n").collect();
        tokio::spawn(feed(input, lines, allowed));
        (running, Gate(gate))
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it has ended.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a child has a number"), signal).expect("a child that runs can be signalled");
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// SIGKILL, and it is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a killed child ends");
    }

    /// SIGINT, as from a terminal.
    pub fn interrupt(&self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("a child takes signals");
    }

    /// What it did, once it has ended.
    ///
    /// # Panics
    /// If it does not end.
    pub async fn ended(&mut self) -> Ran {
        let status =
            until("the command ends", async || self.child.try_wait().expect("a child can be waited for"))
                .await;
        let text = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        Ran { status, stdout: text(&self.stdout), stderr: text(&self.stderr) }
    }
}

/// How far a command's input may go: before all of it may, the command has not seen its end.
#[derive(Debug)]
pub struct Gate(watch::Sender<usize>);

impl Gate {
    /// So many lines, from the first on, may go in.
    pub fn allow(&self, lines: usize) {
        self.0.send_replace(lines);
    }

    /// All of them may, and then the input ends.
    pub fn open(self) {
        self.allow(usize::MAX);
    }
}

/// What goes wrong is seen by who looks how the command has ended.
async fn feed(input: ChildStdin, lines: Vec<String>, mut allowed: watch::Receiver<usize>) {
    let mut input = tokio::process::ChildStdin::from_std(input).expect("it is a pipe");
    for (index, line) in lines.iter().enumerate() {
        if allowed.wait_for(|allowed| *allowed > index).await.is_err()
            || input.write_all(line.as_bytes()).await.is_err()
        {
            return;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            for path in [&self.stdout, &self.stderr] {
                let text = std::fs::read(path).unwrap_or_default();
                let text = &text[text.len().saturating_sub(SHOWN_OUTPUT)..];
                println!("--- {} ---\n{}", path.display(), String::from_utf8_lossy(text));
            }
        }
    }
}
