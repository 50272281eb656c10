//! The command line's side of the API: connect, fail over between endpoints, decode refusals. Shell.

use std::net::SocketAddr;
use std::path::Path;

use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};
use uuid::Uuid;

use crate::pki::fleet_name;
use crate::proto::{self, RedeemRequest, RedeemResponse};
use crate::status::{detail, exit_code, read_detail};
use crate::ticket::JoinTicket;
use crate::tls::{Papers, join_client};
use crate::transport::{chain, connect};

/// How long one member may take over an admission, which is committed meanwhile.
const REDEEM_MAX: std::time::Duration = std::time::Duration::from_secs(20);

/// A failure as the command line shows it: three lines and an exit code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct ApiError {
    /// What failed.
    pub what: String,
    /// Why.
    pub why: String,
    /// What to run next.
    pub next: String,
    /// A word for programs.
    pub reason: String,
    /// The exit code.
    pub code: u8,
}

impl From<proto::ErrorDetail> for ApiError {
    fn from(d: proto::ErrorDetail) -> Self {
        let code = exit_code(&d);
        Self { what: d.what, why: d.why, next: d.next, reason: d.reason, code }
    }
}

impl From<Status> for ApiError {
    fn from(s: Status) -> Self {
        read_detail(&s).into()
    }
}

/// What an operator's workstation keeps in its context file.
#[derive(Clone, Serialize, Deserialize)]
pub struct ContextFile {
    /// The format.
    pub schema: u32,
    /// The fleet.
    pub fleet: Uuid,
    /// Where nodes are reached, tried in order.
    pub endpoints: Vec<SocketAddr>,
    /// The operator's certificate, PEM.
    pub certificate: String,
    /// Its private key, PEM.
    pub key: String,
    /// The fleet's authority, PEM.
    pub authority: String,
}

/// Connects to the daemon of this machine.
///
/// # Errors
/// When it does not listen.
pub async fn connect_local(socket: &Path) -> Result<Channel, ApiError> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://local");
    endpoint.connect_with_connector(connector).await.map_err(|e| {
        let why = format!("{}: {}", socket.display(), chain(&e));
        let next = if why.contains("Permission denied") {
            "run it as root, or use an operator's context file (--context FILE)"
        } else {
            "start it with `systemctl start skein`; a machine that is no member yet runs `skein init` or `skein join TICKET`"
        };
        detail("no_daemon", "the daemon of this machine does not answer", why, next).into()
    })
}

/// Connects to the first node of a context that answers.
///
/// # Errors
/// When none does.
pub async fn connect_context(context: &ContextFile) -> Result<Channel, ApiError> {
    let papers = Papers {
        cert_pem: context.certificate.clone(),
        key_pem: context.key.clone().into(),
        ca_pem: context.authority.clone(),
    };
    let what = "no node of the context was reached";
    let next = "check the network, or make a fresh context on a member: skein operator add NAME";
    let tls = papers
        .client()
        .map_err(|e| ApiError::from(detail("context", what, e.to_string(), next)))?;
    let mut tried = Vec::new();
    for endpoint in &context.endpoints {
        match connect(*endpoint, fleet_name(context.fleet), tls.clone()).await {
            Ok(channel) => return Ok(channel),
            Err(e) => tried.push(format!("{endpoint}: {e}")),
        }
    }
    Err(detail("unreachable", what, tried.join("; "), next).into())
}

/// Redeems a ticket at the first member that answers. The secret goes only to the fleet that the ticket names.
///
/// # Errors
/// When no member answers, the one that does is of another fleet, or the ticket is refused.
pub async fn redeem(
    ticket: &JoinTicket,
    request: RedeemRequest,
) -> Result<RedeemResponse, ApiError> {
    const WHAT: &str = "this machine did not join";
    let next = "check that it reaches these addresses (TCP), or make a fresh ticket on a member: skein ticket create";
    let tls = join_client(ticket.fingerprint)
        .map_err(|e| ApiError::from(detail("tls", WHAT, e.to_string(), next)))?;
    let mut tried = Vec::new();
    for endpoint in &ticket.endpoints {
        let channel = match connect(*endpoint, fleet_name(ticket.fleet), tls.clone()).await {
            Ok(channel) => channel,
            Err(e) => {
                let foreign = e.contains("UnknownIssuer") || e.contains("NotValidForName");
                let why = if foreign {
                    "it belongs to another fleet than the ticket".to_owned()
                } else {
                    e
                };
                tried.push(format!("{endpoint}: {why}"));
                continue;
            }
        };
        let mut client = proto::join_client::JoinClient::new(channel);
        let answer = tokio::time::timeout(REDEEM_MAX, client.redeem(request.clone())).await;
        let answer =
            answer.unwrap_or_else(|_| Err(Status::unavailable("it did not answer in time")));
        match answer {
            Ok(answer) => return Ok(answer.into_inner()),
            // Another member may answer where this one cannot; a refusal is the same everywhere.
            Err(s)
                if matches!(
                    s.code(),
                    tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::DeadlineExceeded
                ) =>
            {
                tried.push(format!("{endpoint}: {}", read_detail(&s).why));
            }
            Err(s) => return Err(s.into()),
        }
    }
    let why =
        if tried.is_empty() { "the ticket names no endpoint".into() } else { tried.join("; ") };
    Err(detail("unreachable", WHAT, why, next).into())
}
