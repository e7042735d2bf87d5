//! The processes of a run: servers, clients, and what the system says of them.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::{Child, ChildStdout, Command},
    time::{sleep, timeout},
};

/// A client that runs longer has hung.
const CLIENT_TIME_MAX: Duration = Duration::from_secs(180);
/// A server that takes longer to start or to stop has hung.
const SERVER_WAIT_MAX: Duration = Duration::from_secs(30);
/// A port that was free may be taken before a server that cannot choose one itself listens on it.
const STARTS_MAX: u32 = 3;
/// Longer than a disk stands still now and then: a window in which nothing comes cannot be measured.
const QUICK_TIME_MAX_MS: u64 = 2_000;
/// How often it is looked whether a server is ready.
const LOOK: Duration = Duration::from_millis(1);

/// Where programs and data are.
#[derive(Debug)]
pub struct Lab {
    /// The server under test, which is also its generator of load.
    pub rimstone: PathBuf,
    /// Where the programs of this package are.
    pub programs: PathBuf,
    /// On the disk under test.
    pub disk: PathBuf,
    /// A file system in memory.
    pub memory: PathBuf,
    /// Tiny runs: do all rows work?
    pub quick: bool,
}

/// A server in a process of its own, with a directory of its own; both are gone when it is dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Kept open: a server must not fail for want of somebody who reads.
    _stdout: Option<BufReader<ChildStdout>>,
    /// Where it listens.
    pub address: String,
    web: Option<String>,
    directory: TempDir,
    /// From the start of the process until it was ready.
    pub ready: Duration,
}

impl Lab {
    /// The programs of this package lie beside the one that runs; both must be built.
    ///
    /// # Errors
    /// One is not there, or the place for data is not.
    pub fn new(
        rimstone: &Path,
        programs: &[&str],
        disk: &Path,
        memory: &Path,
        quick: bool,
    ) -> anyhow::Result<Self> {
        let here = std::env::current_exe()?;
        let beside = here.parent().context("a program lies in a directory")?.to_path_buf();
        let needed = programs.iter().map(|name| beside.join(name));
        for program in needed.chain([rimstone.to_path_buf()]) {
            ensure!(program.is_file(), "{} is not there: cargo build --release", program.display());
        }
        Ok(Self {
            rimstone: rimstone.canonicalize()?,
            programs: beside,
            disk: disk.canonicalize().with_context(|| format!("no directory {}", disk.display()))?,
            memory: memory.to_path_buf(),
            quick,
        })
    }

    /// What figures are taken on.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn machine(&self) -> anyhow::Result<String> {
        let cores = std::thread::available_parallelism()?;
        let system = rustix::system::uname();
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let cpu = cpu.trim_start_matches([' ', '\t', ':']);
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory =
            memory.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default().trim();
        Ok(format!(
            "{cores} processors ({cpu}), {memory}, {} {}, data in {}",
            system.sysname().to_string_lossy(),
            system.release().to_string_lossy(),
            self.disk.display()
        ))
    }

    /// So many, or, in a quick run, a thousandth of it.
    pub fn count(&self, count: u64) -> u64 {
        if self.quick { (count / 1000).max(10) } else { count }
    }

    /// So long; in a quick run no longer than `QUICK_TIME_MAX_MS`.
    pub fn time(&self, millis: u64) -> String {
        format!("{}ms", if self.quick { millis.min(QUICK_TIME_MAX_MS) } else { millis })
    }

    /// Rimstone on a directory of its own in `place`.
    ///
    /// # Errors
    /// It cannot be started, or is not ready in time.
    pub async fn server(&self, place: &Path) -> anyhow::Result<Server> {
        self.server_in(directory_in(place)?).await
    }

    async fn server_in(&self, directory: TempDir) -> anyhow::Result<Server> {
        let mut command = Command::new(&self.rimstone);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--web", "127.0.0.1:0", "--data"])
            .arg(directory.path().join("data"));
        let begun = Instant::now();
        let (child, mut stdout) = spawn(&mut command, &directory)?;
        let (mut address, mut web) = (None, None);
        while address.is_none() || web.is_none() {
            let line = next_line(&mut stdout, &directory).await?;
            if let Some(found) = line.trim().strip_prefix("gRPC ") {
                address = Some(found.trim().to_owned());
            } else if let Some(found) = line.trim().strip_prefix("web ") {
                web = found
                    .trim()
                    .split(' ')
                    .next()
                    .and_then(|url| url.strip_prefix("http://"))
                    .map(str::to_owned);
            }
        }
        let address = address.context("the banner says where gRPC listens")?;
        let mut server =
            Server { child, _stdout: Some(stdout), address, web, directory, ready: Duration::ZERO };
        server.wait_until_ready(begun).await?;
        server.ready = begun.elapsed();
        Ok(server)
    }

    /// The reference server, bare or with a store on the disk under test.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn reference_server(&self, stores: bool) -> anyhow::Result<Server> {
        let directory = directory_in(&self.disk)?;
        let mut command = Command::new(self.programs.join("reference"));
        command.args(["serve", "--listen", "127.0.0.1:0"]);
        if stores {
            command.arg("--store").arg(directory.path().join("store"));
        }
        let begun = Instant::now();
        let (child, mut stdout) = spawn(&mut command, &directory)?;
        let line = next_line(&mut stdout, &directory).await?;
        let address = line.trim().strip_prefix("listening ").context("it says where it listens")?.to_owned();
        Ok(Server { child, _stdout: Some(stdout), address, web: None, directory, ready: begun.elapsed() })
    }

    /// Another server, which says nothing of where it listens: `command` makes it for a free port and a directory
    /// on the disk under test, and it is ready when somebody answers there.
    ///
    /// # Errors
    /// It cannot be started, ends, or does not listen in time.
    pub async fn other_server(&self, command: impl Fn(u16, &Path) -> Command) -> anyhow::Result<Server> {
        let mut failure = None;
        for _ in 0..STARTS_MAX {
            match self.start_other(&command).await {
                Ok(server) => return Ok(server),
                // Somebody else may have taken the port meanwhile.
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.context("it is tried once at least")?)
    }

    async fn start_other(&self, command: &impl Fn(u16, &Path) -> Command) -> anyhow::Result<Server> {
        let directory = directory_in(&self.disk)?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = command(address.port(), directory.path());
        let begun = Instant::now();
        let (mut child, stdout) = spawn(&mut command, &directory)?;
        // What it says goes nowhere else; a pipe that nobody reads would fill up.
        let mut lines = stdout.lines();
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        while TcpStream::connect(address).await.is_err() {
            if let Some(status) = child.try_wait()? {
                let log = fs::read_to_string(directory.path().join("log")).unwrap_or_default();
                bail!("{:?} ended with {status}: {}", command.as_std(), log.trim());
            }
            ensure!(begun.elapsed() < SERVER_WAIT_MAX, "nobody listens within {SERVER_WAIT_MAX:?}");
            sleep(LOOK).await;
        }
        let address = address.to_string();
        Ok(Server { child, _stdout: None, address, web: None, directory, ready: begun.elapsed() })
    }

    /// `rimstone bench` with these words, against this server; the document it prints.
    ///
    /// # Errors
    /// It fails, hangs, or prints something else than a document.
    pub async fn bench(&self, server: &Server, words: &str) -> anyhow::Result<Value> {
        let mut command = Command::new(&self.rimstone);
        command.arg("bench").args(words.split_whitespace());
        command.args(["--json", "--quiet", "--server", &server.address]);
        document(command).await
    }

    /// A client of the reference.
    ///
    /// # Errors
    /// It fails, hangs, or prints something else than a document.
    pub async fn reference(&self, server: &Server, words: &str) -> anyhow::Result<Value> {
        self.program("reference", server, words).await
    }

    /// A program of this package that talks to this server.
    ///
    /// # Errors
    /// It fails, hangs, or prints something else than a document.
    pub async fn program(&self, name: &str, server: &Server, words: &str) -> anyhow::Result<Value> {
        let mut command = Command::new(self.programs.join(name));
        command.args(words.split_whitespace()).args(["--server", &server.address]);
        document(command).await
    }

    /// The disk under test by itself.
    ///
    /// # Errors
    /// It fails, hangs, or prints something else than a document.
    pub async fn disk(&self, words: &str) -> anyhow::Result<Value> {
        let mut command = Command::new(self.programs.join("reference"));
        command.arg("disk").args(words.split_whitespace()).arg("--directory").arg(&self.disk);
        document(command).await
    }

    /// A command of `rimstone` that has nothing to tell.
    ///
    /// # Errors
    /// It fails or hangs.
    pub async fn rimstone(&self, server: &Server, words: &str) -> anyhow::Result<()> {
        let mut command = Command::new(&self.rimstone);
        command.args(words.split_whitespace()).args(["--quiet", "--server", &server.address]);
        output(command).await.map(drop)
    }
}

impl Server {
    /// Where Rimstone keeps its data.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    async fn wait_until_ready(&mut self, begun: Instant) -> anyhow::Result<()> {
        let Some(web) = self.web.clone() else { return Ok(()) };
        while !is_ready(&web).await {
            ensure!(begun.elapsed() < SERVER_WAIT_MAX, "not ready within {SERVER_WAIT_MAX:?}");
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Stops it in order, and starts another on the same data.
    ///
    /// # Errors
    /// It does not stop in order, or does not start.
    pub async fn restart(mut self, lab: &Lab) -> anyhow::Result<Self> {
        self.stop().await?;
        // The directory outlives the process.
        let Self { directory, .. } = self;
        lab.server_in(directory).await
    }

    /// Ends it at once, and is there when it has gone: what comes next has the machine for itself.
    ///
    /// # Errors
    /// It does not go.
    pub async fn end(mut self) -> anyhow::Result<()> {
        timeout(SERVER_WAIT_MAX, self.child.kill()).await.context("it does not end")??;
        Ok(())
    }

    async fn stop(&mut self) -> anyhow::Result<()> {
        let pid = self.pid().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
        let pid = pid.context("it runs")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = timeout(SERVER_WAIT_MAX, self.child.wait()).await.context("it does not stop")??;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }

    fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    fn proc(&self, file: &str) -> anyhow::Result<PathBuf> {
        Ok(Path::new("/proc").join(self.pid().context("it runs")?.to_string()).join(file))
    }

    /// Processor time so far.
    ///
    /// # Errors
    /// It has ended.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        cpu_of(&fs::read_to_string(self.proc("stat")?)?, rustix::param::clock_ticks_per_second())
    }

    /// Anonymous memory in bytes.
    ///
    /// # Errors
    /// It has ended.
    pub fn anonymous(&self) -> anyhow::Result<f64> {
        anonymous_of(&fs::read_to_string(self.proc("status")?)?)
    }

    /// Open descriptors.
    ///
    /// # Errors
    /// It has ended.
    pub fn descriptors(&self) -> anyhow::Result<f64> {
        Ok(fs::read_dir(self.proc("fd")?)?.count() as f64)
    }
}

/// Processor time from `/proc/PID/stat`: fields 14 and 15, counted behind the name, which may have spaces.
fn cpu_of(stat: &str, ticks_per_second: u64) -> anyhow::Result<Duration> {
    let (_, rest) = stat.rsplit_once(')').context("stat has a name")?;
    let ticks = |field: Option<&str>| field.and_then(|ticks| ticks.parse::<u64>().ok()).context("ticks");
    let mut fields = rest.split_whitespace().skip(11);
    let sum = ticks(fields.next())? + ticks(fields.next())?;
    Ok(Duration::from_secs_f64(sum as f64 / ticks_per_second as f64))
}

fn anonymous_of(status: &str) -> anyhow::Result<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("status has RssAnon")?;
    let kib = line.trim().strip_suffix("kB").context("it is in kB")?.trim().parse::<f64>()?;
    Ok(kib * 1024.0)
}

fn directory_in(place: &Path) -> anyhow::Result<TempDir> {
    tempfile::Builder::new()
        .prefix("rimstone-goals-")
        .tempdir_in(place)
        .with_context(|| format!("cannot make a directory in {}", place.display()))
}

/// Starts a server; what it logs goes to a file beside its data.
fn spawn(command: &mut Command, directory: &TempDir) -> anyhow::Result<(Child, BufReader<ChildStdout>)> {
    let log = fs::File::create(directory.path().join("log"))?;
    let shown = format!("{:?}", command.as_std());
    without_settings(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    let stdout = child.stdout.take().context("its output is piped")?;
    Ok((child, BufReader::new(stdout)))
}

async fn next_line(stdout: &mut BufReader<ChildStdout>, directory: &TempDir) -> anyhow::Result<String> {
    let mut line = String::new();
    let read = timeout(SERVER_WAIT_MAX, stdout.read_line(&mut line)).await.context("it says nothing")??;
    if read == 0 {
        let log = fs::read_to_string(directory.path().join("log")).unwrap_or_default();
        bail!("the server ended: {}", log.trim());
    }
    Ok(line)
}

async fn is_ready(web: &str) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(web).await?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer.starts_with(b"HTTP/1.1 200"))
    };
    ask.await.unwrap_or(false)
}

/// A setting of somebody's shell must not change what is measured.
fn without_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RIMSTONE_") {
            command.env_remove(name);
        }
    }
}

async fn output(mut command: Command) -> anyhow::Result<Vec<u8>> {
    without_settings(&mut command);
    let shown = format!("{:?}", command.as_std());
    command.stdin(Stdio::null()).kill_on_drop(true);
    let ran = timeout(CLIENT_TIME_MAX, command.output())
        .await
        .with_context(|| format!("{shown} did not end within {CLIENT_TIME_MAX:?}"))?
        .with_context(|| format!("cannot start {shown}"))?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.success(), "{shown} ended with {}: {}", ran.status, said.trim());
    Ok(ran.stdout)
}

async fn document(command: Command) -> anyhow::Result<Value> {
    Ok(serde_json::from_slice(&output(command).await?)?)
}

/// A number of a phase of a document, for example `bytes_per_s` or `latency.p50_ns`.
///
/// # Errors
/// It is not there, or not more than nothing.
pub fn figure(document: &Value, phase: &str, field: &str) -> anyhow::Result<f64> {
    let phases = document["phases"].as_array().context("a document has phases")?;
    let found = phases.iter().find(|found| found["name"] == phase);
    let found = found.with_context(|| format!("no phase {phase}"))?;
    let value = field.split('.').fold(found, |value, name| &value[name]);
    let value = value.as_f64().with_context(|| format!("{phase} has no {field}"))?;
    ensure!(value > 0.0, "{phase}: {field} is {value}");
    Ok(value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn figures_are_found_by_name_and_nothing_stands_for_what_is_missing() {
        let document = json!({"phases": [
            {"name": "fill", "bytes_per_s": 1.5},
            {"name": "read", "bytes_per_s": 2.5, "records_per_s": 0.0, "latency": {"p50_ns": 7}},
        ]});
        assert_eq!(figure(&document, "read", "bytes_per_s").expect("it is there"), 2.5);
        assert_eq!(figure(&document, "read", "latency.p50_ns").expect("it is there"), 7.0);
        for (phase, field) in [
            ("write", "bytes_per_s"),
            ("read", "nothing"),
            ("fill", "latency.p50_ns"),
            ("read", "records_per_s"),
        ] {
            assert!(figure(&document, phase, field).is_err(), "{phase} {field}");
        }
        assert!(figure(&json!({}), "read", "bytes_per_s").is_err());
    }

    #[test]
    fn what_the_system_says_of_a_process() {
        let stat = "42 (a (strange) name) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 3 0 100 1 1";
        assert_eq!(cpu_of(stat, 100).expect("ticks"), Duration::from_secs(3));
        assert!(cpu_of("42 (name) S 1", 100).is_err());
        let status = "Name:\tx\nVmRSS:\t  9000 kB\nRssAnon:\t    8192 kB\nRssFile:\t 10 kB\n";
        assert_eq!(anonymous_of(status).expect("memory"), 8192.0 * 1024.0);
        assert!(anonymous_of("Name:\tx\n").is_err());
    }
}
