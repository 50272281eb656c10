//! Listeners: gRPC with mutual TLS on TCP, and without on the local socket. Shell.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use futures::stream::unfold;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::daemon::Daemon;
use crate::pki::{Caller, caller};
use crate::service;

/// How long a client may take over the TLS handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// How many handshakes run at a time; more wait in the kernel's queue.
const HANDSHAKES: usize = 64;

/// A TLS connection that knows who is at its other end.
pub struct TlsPeer(TlsStream<TcpStream>, Caller);

/// A connection through the local socket.
pub struct LocalPeer(tokio::net::UnixStream);

macro_rules! delegate_io {
    ($type:ident) => {
        impl tokio::io::AsyncRead for $type {
            fn poll_read(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<io::Result<()>> {
                std::pin::Pin::new(&mut self.0).poll_read(cx, buf)
            }
        }

        impl tokio::io::AsyncWrite for $type {
            fn poll_write(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &[u8],
            ) -> std::task::Poll<io::Result<usize>> {
                std::pin::Pin::new(&mut self.0).poll_write(cx, buf)
            }

            fn poll_flush(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<io::Result<()>> {
                std::pin::Pin::new(&mut self.0).poll_flush(cx)
            }

            fn poll_shutdown(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<io::Result<()>> {
                std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
            }
        }
    };
}

delegate_io!(TlsPeer);
delegate_io!(LocalPeer);

impl Connected for TlsPeer {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.1.clone()
    }
}

impl Connected for LocalPeer {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        Caller::Local
    }
}

/// Serves the API on TCP until dropped.
///
/// # Errors
/// When the listener fails.
pub async fn serve_tls<D: Daemon>(
    daemon: Arc<D>,
    listener: TcpListener,
    tls: Arc<ServerConfig>,
) -> Result<(), tonic::transport::Error> {
    routes(daemon).serve_with_incoming(handshakes(listener, tls)).await
}

/// Serves the API on the local socket until dropped.
///
/// # Errors
/// When the listener fails.
pub async fn serve_local<D: Daemon>(
    daemon: Arc<D>,
    listener: UnixListener,
) -> Result<(), tonic::transport::Error> {
    let incoming = unfold(listener, |l| async {
        let accepted = l.accept().await.map(|(s, _)| LocalPeer(s));
        Some((accepted, l))
    });
    routes(daemon).serve_with_incoming(incoming).await
}

/// Makes the local socket, which only its owner may use.
///
/// # Errors
/// What the operating system answered.
pub fn bind_local(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        // Nobody else may even look, also in the moment before the socket's own mode is set.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn routes<D: Daemon>(daemon: Arc<D>) -> service::Gated<D> {
    let builder = tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20);
    service::register(builder, daemon)
}

/// Accepts connections and shakes hands with many at once, so that a slow one delays nobody.
fn handshakes(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
) -> impl Stream<Item = io::Result<TlsPeer>> {
    let (tx, rx) = mpsc::channel(HANDSHAKES);
    let accept = async move {
        let acceptor = TlsAcceptor::from(tls);
        let mut running = JoinSet::new();
        loop {
            while running.len() >= HANDSHAKES {
                running.join_next().await;
            }
            let Ok((tcp, from)) = listener.accept().await else {
                // Out of file descriptors, most likely: others close soon.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (acceptor, tx) = (acceptor.clone(), tx.clone());
            running.spawn(async move {
                let _ = tcp.set_nodelay(true);
                match timeout(HANDSHAKE_MAX, acceptor.accept(tcp)).await {
                    Ok(Ok(stream)) => {
                        let who = identify(&stream);
                        // A closed channel means that the server stops.
                        let _ = tx.send(Ok(TlsPeer(stream, who))).await;
                    }
                    Ok(Err(e)) => tracing::debug!(%from, error = %e, "TLS handshake failed"),
                    Err(_) => tracing::debug!(%from, "TLS handshake took too long"),
                }
            });
        }
    };
    let accept: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(accept);
    unfold((accept, rx), |(mut accept, mut rx)| async move {
        let next = tokio::select! {
            biased;
            next = rx.recv() => next,
            () = &mut accept => None,
        };
        next.map(|n| (n, (accept, rx)))
    })
}

fn identify(stream: &TlsStream<TcpStream>) -> Caller {
    let certs = stream.get_ref().1.peer_certificates();
    certs.and_then(<[_]>::first).map_or(Caller::Anonymous, |c| caller(c))
}
