//! `rimstone serve`: the server, until a signal.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process,
};

use clap::Args;
use rimstone_client::DEFAULT_ENDPOINT;
use rimstone_server::{Ended, StartedServer, init_telemetry, run};

use crate::{
    config,
    exit::{Exit, Failure, Outcome, with_causes},
    global::Global,
    output::count,
};

/// Runs the server until SIGINT or SIGTERM; a second signal ends it at once.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Where the data is [default: ./data]
    #[arg(long, value_name = "DIRECTORY")]
    data: Option<PathBuf>,
    /// Where gRPC listens [default: 127.0.0.1:9190]; port 0 takes a free one
    #[arg(long, visible_alias = "grpc", value_name = "ADDRESS")]
    listen: Option<String>,
    /// Where the web pages (/metrics, /livez, /readyz) listen [default: 127.0.0.1:9180]
    #[arg(long, value_name = "ADDRESS")]
    web: Option<String>,
    /// Keeps everything in memory and forgets it at the end
    #[arg(long, conflicts_with = "data")]
    memory: bool,
    /// The settings file [default: rimstone.toml in the working directory, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One more setting, for example limits.connections=100; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", value_parser = crate::topic::key_value)]
    set: Vec<(String, String)>,
}

impl Serve {
    pub(crate) async fn run(self, global: &Global) -> Outcome {
        let config = config::load(self.config.as_deref(), &self.overrides(global)?)
            .map_err(|failure| failure.hint("all settings with their bounds: rimstone config check"))?;
        init_telemetry(&config.log).map_err(|error| Failure::usage(with_causes(error.as_ref())))?;
        #[cfg(feature = "planted")]
        rimstone_server::plant().map_err(|error| Failure::usage(with_causes(error.as_ref())))?;
        match run(config, banner).await {
            Ok(Ended::Clean) => Ok(()),
            // Tasks are still running; nobody waits for them.
            Ok(Ended::AtOnce) => process::exit(Exit::Interrupted as i32),
            Err(error) => Err(Failure::failed(with_causes(error.as_ref()))),
        }
    }

    /// The flags as settings, which win over file and environment.
    fn overrides(&self, global: &Global) -> Result<Vec<(String, String)>, Failure> {
        let mut overrides = self.set.clone();
        let mut set = |key: &str, value: String| overrides.push((key.to_owned(), value));
        if let Some(data) = &self.data {
            let data = data.to_str().ok_or_else(|| Failure::usage("--data is not UTF-8"))?;
            set("storage.data_directory", data.to_owned());
        }
        if let Some(address) = &self.listen {
            set("server.grpc_address", address.clone());
        }
        if let Some(address) = &self.web {
            set("server.web_address", address.clone());
        }
        if self.memory {
            set("storage.backend", "memory".to_owned());
        }
        match (global.quiet, global.verbose) {
            (true, _) => set("log.filter", "error".to_owned()),
            (_, 0) => {}
            (_, 1) => set("log.filter", "debug,h2=info,hyper=info,tower=info".to_owned()),
            _ => set("log.filter", "trace".to_owned()),
        }
        Ok(overrides)
    }
}

/// Says where the server is and, as long as there are no topics, what to type next. On standard output: whoever starts a server on port 0
/// reads its ports here.
fn banner(server: &StartedServer) {
    let (topics, partitions) = server.contents();
    let data = match server.data_directory() {
        Some(directory) => {
            let contents = [count(topics.into(), "topic"), count(partitions.into(), "partition")];
            format!("{} ({})", directory.display(), contents.join(", "))
        }
        None => "in memory: forgotten at the end".to_owned(),
    };
    let sync = server.sync_method();
    let grpc = server.grpc_address();
    let next = if topics == 0 { next_steps(grpc) } else { String::new() };
    let text = format!(
        "Rimstone {version}\n  \
         gRPC   {grpc}\n  \
         web    http://{web}  (/metrics /livez /readyz)\n  \
         data   {data}\n  \
         sync   {name}: {reason}\n{next}",
        version = env!("CARGO_PKG_VERSION"),
        web = server.web_address(),
        name = sync.name,
        reason = sync.reason,
    );
    let mut out = io::stdout().lock();
    // A server whose output nobody reads serves all the same.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// What to type at a server without topics.
fn next_steps(grpc: SocketAddr) -> String {
    let elsewhere = if format!("http://{grpc}") == DEFAULT_ENDPOINT {
        String::new()
    } else {
        format!(" --server {grpc}")
    };
    let me = std::env::args().next().unwrap_or_else(|| "rimstone".to_owned());
    format!(
        "Type next:\n  \
         {me}{elsewhere} topic create visits --partitions 6\n  \
         echo 'hello' | {me}{elsewhere} produce visits\n  \
         {me}{elsewhere} consume visits\n"
    )
}
