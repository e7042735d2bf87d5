//! A server in a child process: settings by environment, ports and data directory that stay the same when it
//! is started again, its output in a file that is shown when the test fails. Nothing is left running.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use rand::RngExt as _;
use rimstone_client::Admin;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::net::TcpSocket;

use crate::{binary::rimstone, wait::until};

/// Ports below those that the kernel gives to outgoing connections (32768 and up): while a server is down no
/// client's own end can come to lie on its port.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// How often other ports are tried before a test gives up.
const PORT_TRIES: usize = 20;

/// How much of a server's output a failing test shows.
const SHOWN_OUTPUT: usize = 16 << 10;

/// How a server is to be started.
#[derive(Debug, Clone)]
pub struct Setup {
    home: PathBuf,
    data: PathBuf,
    settings: Vec<(String, String)>,
    ports: Option<(u16, u16)>,
    /// Keep the ports, if they were not given, while the server is down.
    holders: Option<Arc<[TcpSocket; 2]>>,
    under: Vec<OsString>,
    environment: Vec<(String, String)>,
    may_be_unwell: bool,
}

impl Setup {
    /// A server that works in `home` (its output goes there) and keeps its data in `home/data`. It needs no
    /// reserve of disk space, so that a test may fill a small file system.
    pub fn new(home: &Path) -> Self {
        let settings = [("log.format", "json"), ("log.color", "never"), ("storage.disk_reserve", "0")];
        Self {
            home: home.to_path_buf(),
            data: home.join("data"),
            settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            ports: None,
            holders: None,
            under: Vec::new(),
            environment: Vec::new(),
            may_be_unwell: false,
        }
    }

    /// Takes it for ready too when a sync has failed on its way up, and it says so.
    #[must_use]
    pub fn may_be_unwell(mut self) -> Self {
        self.may_be_unwell = true;
        self
    }

    /// Starts the program by this command, which must become the program itself (as `prlimit` does, or
    /// `strace -D`): signals go to what was started. Nothing: by itself.
    #[must_use]
    pub fn under<S: AsRef<OsStr>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.under = command.into_iter().map(|word| word.as_ref().to_owned()).collect();
        self
    }

    /// Sets a variable of its environment that is no setting of ours.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Keeps the data elsewhere.
    #[must_use]
    pub fn data(mut self, folder: &Path) -> Self {
        self.data = folder.to_path_buf();
        self
    }

    /// Sets `section.key`.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Listens on these ports, gRPC and web.
    #[must_use]
    pub fn ports(mut self, grpc: u16, web: u16) -> Self {
        self.ports = Some((grpc, web));
        self
    }

    /// A server that is ready.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start(self) -> Server {
        self.try_start().await.unwrap_or_else(|failure| panic!("the server did not start: {failure:#?}"))
    }

    /// A server that is ready, or how it ended instead.
    ///
    /// # Errors
    /// [`StartFailure`] with what it wrote.
    pub async fn try_start(self) -> Result<Server, StartFailure> {
        if self.ports.is_some() {
            return self.launch().await;
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let [(grpc, grpc_holder), (web, web_holder)] = held_ports();
            let mut setup = self.clone().ports(grpc, web);
            setup.holders = Some(Arc::new([grpc_holder, web_holder]));
            match setup.launch().await {
                // Somebody was faster.
                Err(failure) if failure.output.contains("cannot listen") && tries < PORT_TRIES => {}
                outcome => return outcome,
            }
        }
    }

    async fn launch(self) -> Result<Server, StartFailure> {
        let mut server = self.spawn();
        server.wait_until_ready().await?;
        Ok(server)
    }

    /// A server of which nobody knows yet whether it comes up.
    ///
    /// # Panics
    /// If its ports were not chosen.
    pub fn spawn(self) -> Server {
        fs::create_dir_all(&self.home).expect("the folder of a test can be made");
        let (grpc, web) = self.ports.expect("ports were chosen before");
        let output = (0..)
            .map(|number| self.home.join(format!("server-{number}.log")))
            .find(|path| !path.exists())
            .expect("there is a number that was not used");
        let file = File::create(&output).expect("a file can be made in the folder of a test");
        let mut words = self.under.iter().map(OsString::as_os_str).chain([rimstone().as_os_str()]);
        let mut command = Command::new(words.next().expect("the program itself is a word"));
        command.args(words).arg("serve").current_dir(&self.home).stdin(Stdio::null());
        command.stdout(file.try_clone().expect("a descriptor can be copied")).stderr(file);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("RIMSTONE_") {
                command.env_remove(name);
            }
        }
        let fixed = [
            ("server.grpc_address".to_owned(), format!("127.0.0.1:{grpc}")),
            ("server.web_address".to_owned(), format!("127.0.0.1:{web}")),
            ("storage.data_directory".to_owned(), self.data.display().to_string()),
        ];
        for (name, value) in fixed.iter().chain(&self.settings) {
            command.env(environment_name(name), value);
        }
        for (name, value) in &self.environment {
            command.env(name, value);
        }
        let child = command.spawn().expect("the program can be started");
        Server { child, output, grpc_address: None, web_address: None, setup: self }
    }
}

/// `RIMSTONE_SECTION__KEY`; further dots become `_`.
fn environment_name(setting: &str) -> String {
    let (section, key) = setting.split_once('.').expect("a setting is a section and a key");
    format!("RIMSTONE_{section}__{}", key.replace('.', "_")).to_uppercase()
}

/// Two ports that are free now.
pub fn free_ports() -> (u16, u16) {
    let [(grpc, _), (web, _)] = held_ports();
    (grpc, web)
}

/// Two ports that are free, and are not taken for free by another test while their sockets are kept.
fn held_ports() -> [(u16, TcpSocket); 2] {
    let mut random = rand::rng();
    let mut held = || {
        (0..1000)
            .map(|_| random.random_range(PORTS))
            .find_map(|port| Some((port, hold(port)?)))
            .expect("one port of a thousand is free")
    };
    [held(), held()]
}

/// A socket that is bound to a port and never listens; `None` if anybody has the port. A server may listen there beside it,
/// because it asks to share the port, as the holder does once it has it.
fn hold(port: u16) -> Option<TcpSocket> {
    let socket = TcpSocket::new_v4().expect("a socket can be made");
    socket.bind((Ipv4Addr::LOCALHOST, port).into()).ok()?;
    socket.set_reuseaddr(true).expect("a socket can have it");
    Some(socket)
}

/// How a server ended that did not become ready.
#[derive(Debug)]
pub struct StartFailure {
    /// How the process ended.
    pub status: ExitStatus,
    /// What it wrote to both its streams.
    pub output: String,
}

/// A running server; killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    output: PathBuf,
    grpc_address: Option<SocketAddr>,
    web_address: Option<SocketAddr>,
    setup: Setup,
}

impl Server {
    /// Where gRPC listens, as the server itself says.
    pub fn grpc(&self) -> SocketAddr {
        self.grpc_address.expect("a server that is ready has said where it listens")
    }

    /// The same, as the clients take it.
    pub fn endpoint(&self) -> String {
        self.grpc().to_string()
    }

    /// Where the web pages listen.
    pub fn web(&self) -> SocketAddr {
        self.web_address.expect("a server that is ready has said where it listens")
    }

    /// The folder of its data.
    pub fn data(&self) -> &Path {
        &self.setup.data
    }

    /// The calls that administer it.
    pub fn admin(&self) -> Admin {
        Admin::new(&self.endpoint()).expect("the address of a server is an address")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far, to both streams.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// How this server is started: at the same place.
    pub fn setup(&self) -> Setup {
        self.setup.clone()
    }

    /// A page of the web server: status and text; `None` if nobody answers.
    pub fn page(&self, path: &str) -> Option<(u16, String)> {
        get(self.web_address?, path)
    }

    /// The sum of a metric over all its series; `None` where it is not there.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.page("/metrics")?;
        let mut values = text
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .peekable();
        values.peek()?;
        Some(values.sum())
    }

    async fn wait_until_ready(&mut self) -> Result<(), StartFailure> {
        let failure = until("the server becomes ready", async || {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return Some(Some(StartFailure { status, output: self.output() }));
            }
            let (grpc, web) = started_line(&self.output())?;
            (self.grpc_address, self.web_address) = (Some(grpc), Some(web));
            let (status, text) = self.page("/readyz")?;
            let unwell = self.setup.may_be_unwell && text.contains("a sync failed");
            (status == 200 || unwell).then_some(None)
        })
        .await;
        failure.map_or(Ok(()), Err)
    }

    /// SIGKILL, and the process is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a killed child ends");
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("a child takes signals");
    }

    /// How the process ended; `None` if it runs.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// How the process ended, once it has.
    ///
    /// # Panics
    /// If it does not end.
    pub async fn ended(&mut self) -> ExitStatus {
        until("the server ends", async || self.child.try_wait().expect("a child can be waited for")).await
    }

    /// SIGTERM, and a clean end.
    ///
    /// # Panics
    /// If it ends otherwise than with status 0.
    pub async fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.ended().await;
        assert!(status.success(), "the server ended with {status} (signal {:?})", status.signal());
    }

    /// Starts it again at the same place, after it has ended.
    pub async fn start_again(self) -> Self {
        let setup = self.setup();
        drop(self);
        setup.start().await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            let output = self.output();
            let mut from = output.len().saturating_sub(SHOWN_OUTPUT);
            while !output.is_char_boundary(from) {
                from += 1;
            }
            println!("--- {} ---\n{}", self.output.display(), &output[from..]);
        }
    }
}

/// The addresses in the line that says that the server has started.
fn started_line(output: &str) -> Option<(SocketAddr, SocketAddr)> {
    output.lines().find_map(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        let fields = line.get("fields")?;
        if fields.get("message")? != "started" {
            return None;
        }
        let address = |name| fields.get(name)?.as_str()?.parse().ok();
        Some((address("grpc_address")?, address("web_address")?))
    })
}

/// A page by HTTP: status and body.
fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}
