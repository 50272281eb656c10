//! Asks through a VIP at a fixed pace and prints each answer; shares nothing with what it asks. Shell.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsConnector;

use super::record::{Clock, Held, Line, Sample};
use super::{tls, writer};

/// How long a connect and the name may take.
const CONNECT_MAX: Duration = Duration::from_millis(200);
/// How long a handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(1);
/// Pause between two words on a connection that is kept open.
const WORD_EVERY: Duration = Duration::from_millis(100);
/// What is still under way at the end is waited for this long.
const LAST_MAX: Duration = Duration::from_secs(2);

/// `skein-sim observe`.
#[derive(Debug, Args)]
pub struct ObserveArgs {
    /// Where a responder answers, as host:port.
    answer: SocketAddr,
    /// Where an API answers with TLS.
    #[arg(long)]
    tls: Option<SocketAddr>,
    /// Write to Kubernetes with this kubeconfig.
    #[arg(long)]
    write: Option<PathBuf>,
    /// How many clients write, each all the time.
    #[arg(long, default_value = "2")]
    writers: u8,
    /// How many connections are opened at the beginning and kept.
    #[arg(long, default_value = "8")]
    held: u8,
    /// Pause between two attempts, in milliseconds.
    #[arg(long, default_value = "20")]
    every: u64,
}

/// What every task has: when it all began, and where lines go.
#[derive(Clone)]
pub(super) struct Pen {
    since: Instant,
    lines: UnboundedSender<Line>,
}

impl Pen {
    #[expect(clippy::disallowed_methods, reason = "it measures real time")]
    fn new(lines: UnboundedSender<Line>) -> Self {
        Self { since: Instant::now(), lines }
    }

    /// Microseconds since the beginning.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn line(&self, line: Line) {
        // The reader is gone only when the process ends.
        let _ = self.lines.send(line);
    }

    /// Writes an attempt down that began at `at` and is over now.
    pub(super) fn sample(&self, clock: Clock, at: u64, result: Result<Option<String>, String>) {
        let took = self.now().saturating_sub(at);
        let (by, error) = match result {
            Ok(by) => (by, None),
            Err(error) => (None, Some(error)),
        };
        self.line(Line::Sample(Sample { clock, at, took, by, error }));
    }
}

/// Observes until its input ends; each line of it is a mark.
///
/// # Errors
/// When it cannot begin; what fails later is the result.
pub fn run(args: ObserveArgs) -> Result<u8, String> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(|e| format!("the runtime: {e}"))?.block_on(observe(args))
}

async fn observe(args: ObserveArgs) -> Result<u8, String> {
    let (sender, mut lines) = unbounded_channel();
    let pen = Pen::new(sender);
    let (end, ended) = watch::channel(false);
    let every = Duration::from_millis(args.every.max(1));
    let mut tasks = JoinSet::new();
    for _ in 0..args.held {
        tasks.spawn(hold(pen.clone(), args.answer, ended.clone()));
    }
    tasks.spawn(pace(every, ended.clone(), {
        let (pen, target) = (pen.clone(), args.answer);
        move || attempt_answer(pen.clone(), target)
    }));
    if let Some(target) = args.tls {
        let connector = tls::anyone()?;
        let pen = pen.clone();
        tasks.spawn(pace(every, ended.clone(), move || {
            attempt_tls(pen.clone(), target, connector.clone())
        }));
    }
    if let Some(path) = &args.write {
        let writer = Arc::new(writer::Writer::open(path)?);
        for _ in 0..args.writers {
            tasks.spawn(writer::write_on(pen.clone(), writer.clone(), ended.clone()));
        }
        tasks.spawn(writer::tidy_up(writer, ended.clone()));
    }
    tasks.spawn(marks(pen.clone(), end));
    drop(pen);
    let mut out = std::io::stdout();
    while let Some(line) = lines.recv().await {
        let text = serde_json::to_string(&line).map_err(|e| e.to_string())?;
        // Without a reader there is nothing to observe for.
        writeln!(out, "{text}").map_err(|e| format!("the reader: {e}"))?;
    }
    Ok(0)
}

/// Writes down what is said on the input; its end is the end.
async fn marks(pen: Pen, end: watch::Sender<bool>) {
    let mut input = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(name)) = input.next_line().await {
        pen.line(Line::Mark { name, at: pen.now() });
    }
    let _ = end.send(true);
}

/// Begins an attempt at each tick, whether or not the ones before are over.
async fn pace<F>(every: Duration, mut ended: watch::Receiver<bool>, begin: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut attempts = JoinSet::new();
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            biased;
            _ = ended.changed() => break,
            _ = ticks.tick() => {}
        }
        while attempts.try_join_next().is_some() {}
        attempts.spawn(begin());
    }
    let _ = timeout(LAST_MAX, async { while attempts.join_next().await.is_some() {} }).await;
}

/// Gives up after some time, and says what an error means.
async fn within<T>(
    limit: Duration,
    what: impl Future<Output = std::io::Result<T>>,
) -> Result<T, String> {
    match timeout(limit, what).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(e.kind().to_string()),
        Err(_) => Err("timed out".into()),
    }
}

async fn attempt_answer(pen: Pen, target: SocketAddr) {
    let at = pen.now();
    let answer = within(CONNECT_MAX, async {
        let (_, name) = greet(target).await?;
        Ok(Some(name))
    });
    let answer = answer.await;
    pen.sample(Clock::Vip, at, answer);
}

/// Connects and reads the responder's name.
async fn greet(target: SocketAddr) -> std::io::Result<(TcpStream, String)> {
    let mut stream = TcpStream::connect(target).await?;
    let mut name = String::new();
    loop {
        match stream.read_u8().await? {
            b'\n' => return Ok((stream, name)),
            byte => name.push(char::from(byte)),
        }
    }
}

async fn attempt_tls(pen: Pen, target: SocketAddr, connector: TlsConnector) {
    let at = pen.now();
    let done = within(HANDSHAKE_MAX, async {
        let stream = TcpStream::connect(target).await?;
        connector.connect(ServerName::IpAddress(target.ip().into()), stream).await.map(|_| None)
    });
    let done = done.await;
    pen.sample(Clock::Tls, at, done);
}

/// Opens a connection and uses it until it breaks or all ends.
async fn hold(pen: Pen, target: SocketAddr, ended: watch::Receiver<bool>) {
    let Ok(Ok((mut stream, _))) = timeout(CONNECT_MAX, greet(target)).await else { return };
    let mut held = Held { broke: None, silence: 0 };
    let mut over = ended.clone();
    while !*ended.borrow() {
        let asked = pen.now();
        let echo = async {
            stream.write_all(b".").await?;
            stream.read_u8().await
        };
        let result = tokio::select! {
            biased;
            result = echo => result.map(drop),
            _ = over.changed() => Ok(()),
        };
        held.silence = held.silence.max(pen.now().saturating_sub(asked));
        if result.is_err() {
            held.broke = Some(pen.now());
            break;
        }
        sleep(WORD_EVERY).await;
    }
    pen.line(Line::Held(held));
}
