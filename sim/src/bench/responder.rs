//! Answers on every address of a host with the host's name, then gives back what it is told. Shell.

use std::time::Duration;

use clap::Args;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long a silent client is kept.
const IDLE_MAX: Duration = Duration::from_secs(900);

/// `skein-sim respond`.
#[derive(Debug, Args)]
pub struct RespondArgs {
    /// The port.
    #[arg(long, default_value_t = super::PORT)]
    port: u16,
}

/// Answers until it is killed.
///
/// # Errors
/// When the port is taken.
pub fn run(args: &RespondArgs) -> Result<u8, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| format!("the runtime: {e}"))?.block_on(serve(args.port))
}

async fn serve(port: u16) -> Result<u8, String> {
    let name = nix::unistd::gethostname().map_err(|e| format!("the host's name: {e}"))?;
    let name = format!("{}\n", name.to_string_lossy());
    let listener =
        TcpListener::bind(("::", port)).await.map_err(|e| format!("port {port}: {e}"))?;
    let mut clients = JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        if let Ok((client, _)) = listener.accept().await {
            clients.spawn(answer(client, name.clone()));
        }
    }
}

async fn answer(mut client: TcpStream, name: String) {
    if client.write_all(name.as_bytes()).await.is_err() {
        return;
    }
    let mut buffer = [0; 256];
    while let Ok(Ok(read @ 1..)) = timeout(IDLE_MAX, client.read(&mut buffer)).await {
        if client.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
