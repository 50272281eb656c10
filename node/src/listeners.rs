//! What the daemon listens on, and who has it if it is taken. Shell.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use api::daemon::Daemon;
use api::tls::Papers;
use raft_store::rt::Scope;
use rustls::ServerConfig;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;

use crate::config::Config;
use crate::daemon::{DaemonError, Paths};
use crate::env::Server;

/// The state of a listening socket in `/proc/net/tcp`.
const LISTENING: &str = "0A";
/// The state of a socket without a peer in `/proc/net/udp`.
const UNCONNECTED: &str = "07";

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}{by}")]
pub struct ListenError {
    /// Which one.
    pub address: String,
    /// The operating system's answer.
    pub source: io::Error,
    /// Who has it.
    pub by: Holder,
}

/// The process that has an address, if it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder(Option<(u32, String)>);

impl Holder {
    /// Whether it is a daemon like this one.
    pub fn is_skein(&self) -> bool {
        self.0.as_ref().is_some_and(|(_, name)| name == "skein")
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some((pid, name)) => write!(f, "; {name} (process {pid}) has it"),
            None => Ok(()),
        }
    }
}

/// What the daemon listens on; bound before anything else, so that a second daemon ends at once.
pub struct Listeners {
    api: TcpListener,
    http: TcpListener,
    local: UnixListener,
    tls: Arc<ServerConfig>,
}

impl Server for Listeners {
    fn serve<D: Daemon>(self, scope: &Scope, daemon: Arc<D>, fatal: mpsc::Sender<String>) {
        let ends = |what: &'static str| {
            let fatal = fatal.clone();
            async move |why: String| {
                // Full only if the daemon ends already.
                let _ = fatal.try_send(format!("{what} ended: {why}"));
            }
        };
        let (end, over_tls, tls) = (ends("the API"), daemon.clone(), self.tls);
        scope.spawn("api", async move {
            let result = api::server::serve_tls(over_tls, self.api, tls).await;
            end(format!("{result:?}")).await;
        });
        let (end, locally) = (ends("the local socket"), daemon.clone());
        scope.spawn("local api", async move {
            let result = api::server::serve_local(locally, self.local).await;
            end(format!("{result:?}")).await;
        });
        let end = ends("HTTP");
        scope.spawn("http", async move {
            let result = api::http::serve(daemon, self.http).await;
            end(format!("{result:?}")).await;
        });
    }
}

/// Listens on what the configuration says; the local socket's path is among the `paths`.
///
/// # Errors
/// When the papers cannot be used, or an address is taken or cannot be listened on.
pub async fn listen(
    config: &Config,
    paths: &Paths,
    papers: &Papers,
) -> Result<Listeners, DaemonError> {
    let tls = papers.server().map_err(DaemonError::Tls)?;
    bind_all(config, paths, tls).await.map_err(DaemonError::Listen)
}

async fn bind_all(
    config: &Config,
    paths: &Paths,
    tls: Arc<ServerConfig>,
) -> Result<Listeners, ListenError> {
    let api = bind(config.listen).await?;
    let http = bind(config.http).await?;
    let address = paths.socket.display().to_string();
    let failed = |source, by| ListenError { address: address.clone(), source, by };
    if tokio::net::UnixStream::connect(&paths.socket).await.is_ok() {
        // Its file could be replaced, and the other daemon would hear of commands no more.
        let by = holder(&unix_inodes(&read("/proc/net/unix"), &paths.socket));
        return Err(failed(io::Error::from_raw_os_error(nix::libc::EADDRINUSE), by));
    }
    let local = api::server::bind_local(&paths.socket);
    let local = local.map_err(|source| failed(source, Holder::default()))?;
    Ok(Listeners { api, http, local, tls })
}

async fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let first = TcpListener::bind(address).await;
    let bound = match first {
        // A host without IPv6 has no [::] to listen on.
        Err(e) if address.is_ipv6() && e.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => {
            TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], address.port()))).await
        }
        other => other,
    };
    bound.map_err(|source| {
        let taken = source.kind() == io::ErrorKind::AddrInUse;
        let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(read).concat();
        let by = if taken {
            holder(&inodes(&tables, address.port(), LISTENING))
        } else {
            Holder::default()
        };
        ListenError { address: address.to_string(), source, by }
    })
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Returns who has a UDP port; nobody where the kernel itself has it, as WireGuard does.
pub(crate) fn udp_holder(port: u16) -> Holder {
    let tables = ["/proc/net/udp", "/proc/net/udp6"].map(read).concat();
    holder(&inodes(&tables, port, UNCONNECTED))
}

/// The sockets on a port in this state, in a table like `/proc/net/tcp`.
fn inodes(table: &str, port: u16, state: &str) -> Vec<String> {
    let port = format!(":{port:04X}");
    let listens = |line: &&str| {
        let mut words = line.split_whitespace().skip(1);
        words.next().is_some_and(|local| local.ends_with(&port)) && words.nth(1) == Some(state)
    };
    let lines = table.lines().filter(listens);
    lines.filter_map(|line| line.split_whitespace().nth(9).map(str::to_owned)).collect()
}

/// The sockets bound to a path, in a table like `/proc/net/unix`.
fn unix_inodes(table: &str, path: &Path) -> Vec<String> {
    let path = path.display().to_string();
    let bound = table.lines().filter(|line| line.split_whitespace().nth(7) == Some(&path));
    bound.filter_map(|line| line.split_whitespace().nth(6).map(str::to_owned)).collect()
}

/// The first process that has one of these sockets.
fn holder(inodes: &[String]) -> Holder {
    let links: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let has = |pid: &u32| {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut open = open.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        open.any(|link| links.iter().any(|l| link.as_os_str() == l.as_str()))
    };
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids = all.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    let found = pids.find(has);
    Holder(found.map(|pid| (pid, read(&format!("/proc/{pid}/comm")).trim().to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_found_in_the_kernels_tables() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:1D38 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0\n   \
            1: 0100007F:1D38 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0\n";
        assert_eq!(inodes(table, 7480, LISTENING), ["4711"]);
        assert!(inodes(table, 7443, LISTENING).is_empty());
        let table = "Num RefCount Protocol Flags Type St Inode Path\n0: 00000002 00000000 00010000 0001 01 99 /run/a.sock\n";
        assert_eq!(unix_inodes(table, Path::new("/run/a.sock")), ["99"]);
    }

    #[test]
    fn who_has_a_udp_port_is_named() {
        let socket = std::net::UdpSocket::bind("[::1]:0").unwrap();
        let words = udp_holder(socket.local_addr().unwrap().port()).to_string();
        assert!(words.contains(&format!("(process {})", std::process::id())), "{words}");
    }

    #[tokio::test]
    async fn who_has_a_port_is_named() {
        let first = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let refused = bind(first.local_addr().unwrap()).await.unwrap_err();
        let words = refused.to_string();
        assert!(words.contains(&format!("(process {})", std::process::id())), "{words}");
    }
}
