//! Calls to other daemons: one channel per address and lane, given up quickly when it does not answer. Shell.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use uuid::Uuid;

use crate::pki::{fleet_name, node_name};
use crate::proto::Frame;
use crate::proto::peer_client::PeerClient;

/// How long a connection may take, TLS included.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// The largest frame: a snapshot's piece or a batch of entries, with room.
pub(crate) const FRAME_MAX: usize = 32 * 1024 * 1024;

/// Keeps bulk apart from heartbeats, so that neither waits behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Small and urgent.
    Quick,
    /// Large.
    Bulk,
}

/// Why a call to a daemon failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PeerError {
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// No address answered.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// It answered with a refusal.
    #[error("refused: {0}")]
    Refused(String),
}

/// Says what a call's status means for the caller.
pub fn failed(status: &tonic::Status) -> PeerError {
    let words = status.message().to_owned();
    match status.code() {
        tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled => {
            PeerError::Unreachable(words)
        }
        _ => PeerError::Refused(words),
    }
}

type Key = (Uuid, Lane);

/// Channels to other daemons. Clones share them.
#[derive(Clone)]
pub struct PeerPool {
    tls: Arc<ClientConfig>,
    channels: Arc<Mutex<BTreeMap<Key, (SocketAddr, Channel)>>>,
}

/// Opens a channel that speaks TLS under `name` to whatever listens at `address`.
pub(crate) async fn connect(
    address: SocketAddr,
    name: String,
    tls: Arc<ClientConfig>,
) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|e| e.to_string())?
        .connect_timeout(CONNECT_MAX)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20);
    let connector = tower::service_fn(move |_: Uri| {
        let (tls, name) = (tls.clone(), name.clone());
        async move {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::try_from(name).map_err(std::io::Error::other)?;
            let stream = TlsConnector::from(tls).connect(name, tcp).await?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    match timeout(CONNECT_MAX, endpoint.connect_with_connector(connector)).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(e)) => Err(chain(&e)),
        Err(_) => Err(format!("no connection within {CONNECT_MAX:?}")),
    }
}

/// Writes an error with all that caused it.
pub(crate) fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(s) = source {
        let part = s.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        source = s.source();
    }
    text
}

impl PeerPool {
    /// Makes a pool that shows our certificate.
    pub fn new(tls: Arc<ClientConfig>) -> Self {
        Self { tls, channels: Arc::default() }
    }

    fn channels(&self) -> MutexGuard<'_, BTreeMap<Key, (SocketAddr, Channel)>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a frame to the node `to`, which is known to be at one of `addresses`.
    ///
    /// # Errors
    /// When nothing answers within `deadline`, or the node refuses.
    pub async fn call(
        &self,
        to: Uuid,
        lane: Lane,
        addresses: &[SocketAddr],
        (kind, body): (u32, Bytes),
        deadline: Duration,
    ) -> Result<(u32, Bytes), PeerError> {
        let attempt = async {
            let channel = self.channel(to, lane, addresses).await?;
            let mut client = PeerClient::new(channel)
                .max_decoding_message_size(FRAME_MAX)
                .max_encoding_message_size(FRAME_MAX);
            let frame = Frame { kind, body: body.to_vec() };
            client.call(frame).await.map_err(|s| failed(&s))
        };
        let result = match timeout(deadline, attempt).await {
            Ok(result) => result,
            Err(_) => Err(PeerError::Timeout(deadline)),
        };
        match result {
            Ok(answer) => {
                let frame = answer.into_inner();
                Ok((frame.kind, frame.body.into()))
            }
            Err(e) => {
                // A refusal came over a good channel; anything else may be the channel's fault.
                if !matches!(e, PeerError::Refused(_)) {
                    self.channels().remove(&(to, lane));
                }
                Err(e)
            }
        }
    }

    /// Sends a frame to whichever node of the fleet listens at `address`.
    ///
    /// # Errors
    /// When nothing of the fleet answers there within `deadline`.
    pub async fn call_at(
        &self,
        address: SocketAddr,
        fleet: Uuid,
        (kind, body): (u32, Bytes),
        deadline: Duration,
    ) -> Result<(u32, Bytes), PeerError> {
        let attempt = async {
            let channel = connect(address, fleet_name(fleet), self.tls.clone())
                .await
                .map_err(PeerError::Unreachable)?;
            let frame = Frame { kind, body: body.to_vec() };
            let answer = PeerClient::new(channel).call(frame).await;
            answer.map_err(|s| PeerError::Refused(s.message().to_owned()))
        };
        match timeout(deadline, attempt).await {
            Ok(answer) => answer.map(|a| {
                let frame = a.into_inner();
                (frame.kind, frame.body.into())
            }),
            Err(_) => Err(PeerError::Timeout(deadline)),
        }
    }

    async fn channel(
        &self,
        to: Uuid,
        lane: Lane,
        addresses: &[SocketAddr],
    ) -> Result<Channel, PeerError> {
        let known = self.channels().get(&(to, lane)).cloned();
        if let Some((at, channel)) = known
            && addresses.contains(&at)
        {
            return Ok(channel);
        }
        if addresses.is_empty() {
            return Err(PeerError::Unreachable("no address is known".into()));
        }
        // All at once: a dead address must not delay a good one.
        let attempts = addresses.iter().map(|a| {
            let (tls, name, a) = (self.tls.clone(), node_name(to), *a);
            Box::pin(async move {
                connect(a, name, tls).await.map(|c| (a, c)).map_err(|e| format!("{a}: {e}"))
            })
        });
        match futures::future::select_ok(attempts).await {
            Ok(((address, channel), _)) => {
                self.channels().insert((to, lane), (address, channel.clone()));
                Ok(channel)
            }
            Err(e) => Err(PeerError::Unreachable(e)),
        }
    }
}
