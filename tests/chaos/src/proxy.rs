//! A TCP proxy between clients and the server that duplicates nothing, but delays, swallows answers and cuts
//! connections.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
};

/// One piece of bytes in so many is the last of its connection.
const CUTS: f64 = 0.12;
/// One in so many is held back for a moment.
const DELAYS: f64 = 0.2;
/// For how long at most.
const DELAY_MS: u64 = 20;

/// A running proxy; its connections end when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    endpoint: String,
    hurts: Arc<AtomicBool>,
    cuts: Arc<AtomicU64>,
    listening: JoinHandle<()>,
}

impl Proxy {
    /// Between whoever connects to it and `to`.
    ///
    /// # Errors
    /// If it cannot listen.
    pub async fn start(to: String, seed: u64) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let endpoint = listener.local_addr()?.to_string();
        let (hurts, cuts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let between = Between { hurts: Arc::clone(&hurts), cuts: Arc::clone(&cuts) };
        let listening = tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(seed);
            while let Ok((client, _)) = listener.accept().await {
                // A server that is away is told by the connection's end.
                if let Ok(server) = TcpStream::connect(&to).await {
                    between.clone().join(client, server, random.random());
                }
            }
        });
        Ok(Self { endpoint, hurts, cuts, listening })
    }

    /// Where it listens.
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// Whether it hurts, or only passes on.
    pub fn hurt(&self, hurts: bool) {
        self.hurts.store(hurts, Ordering::Relaxed);
    }

    /// How many connections it has cut.
    pub fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Relaxed)
    }

    /// The same, for a look from elsewhere.
    pub fn counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.cuts)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

#[derive(Debug, Clone)]
struct Between {
    hurts: Arc<AtomicBool>,
    cuts: Arc<AtomicU64>,
}

impl Between {
    fn join(self, client: TcpStream, server: TcpStream, seed: u64) {
        // Without these, small pieces wait for each other.
        drop(client.set_nodelay(true));
        drop(server.set_nodelay(true));
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let there = self.clone().pass(from_client, to_server, seed, false);
        let back = self.pass(from_server, to_client, seed + 1, true);
        tokio::spawn(async move {
            // Either way ends both: the halves are dropped.
            tokio::select! {
                () = there => {}
                () = back => {}
            }
        });
    }

    async fn pass(self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, seed: u64, answers: bool) {
        const PIECE: usize = 16 << 10;
        let mut random = StdRng::seed_from_u64(seed);
        let mut piece = vec![0; PIECE];
        while let Ok(length @ 1..) = from.read(&mut piece).await {
            if self.hurts.load(Ordering::Relaxed) {
                if random.random_bool(DELAYS) {
                    tokio::time::sleep(Duration::from_millis(random.random_range(0..=DELAY_MS))).await;
                }
                // Answers are lost rather than requests: the server has done what nobody is told of.
                if answers && random.random_bool(CUTS) {
                    self.cuts.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
            if to.write_all(&piece[..length]).await.is_err() {
                return;
            }
        }
    }
}
