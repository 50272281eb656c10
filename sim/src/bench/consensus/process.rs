//! Three processes of one system: started with a log, killed, ended whatever happens. Shell.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// A process; killed when it is dropped.
pub(super) struct Process(Child);

impl Process {
    /// Starts a program whose words go to `log`; the kernel ends it when this thread ends, however that comes about.
    pub(super) fn start(program: &Command, log: &Path) -> Result<Self, String> {
        let said = |e: std::io::Error| format!("{}: {e}", log.display());
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log).map_err(said)?;
        let words = file.try_clone().map_err(said)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program.get_program());
        command.args(program.get_args()).stdin(Stdio::null()).stdout(file).stderr(words);
        command.spawn().map(Self).map_err(|e| format!("setpriv: {e}"))
    }

    /// Sends SIGKILL; the process is waited for when it is dropped.
    pub(super) fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.0.kill();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        // SIGKILL is not refused, so this does not hang.
        let _ = self.0.wait();
    }
}

/// Finds free ports of 127.0.0.1.
pub(super) fn free_ports<const N: usize>() -> Result<[u16; N], String> {
    // All are held until all are known, so that none is named twice.
    let mut held = Vec::with_capacity(N);
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(|e| format!("a port: {e}"))?;
        *port = listener.local_addr().map_err(|e| format!("a port: {e}"))?.port();
        held.push(listener);
    }
    Ok(ports)
}

/// Looks until there is something to see, or fails with what is missing.
pub(super) async fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, String> {
    let end = Instant::now() + limit;
    loop {
        match look().await {
            Ok(seen) => return Ok(seen),
            Err(why) if Instant::now() > end => {
                return Err(format!("waited {} s for {what}: {why}", limit.as_secs()));
            }
            Err(_) => sleep(LOOK).await,
        }
    }
}
