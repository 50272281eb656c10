//! The etcd member of this server: who leads, who belongs, and handing the leadership over. Shell.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::secret::Secret;

/// How long one call may take; handing over waits for the target to win, at most one election time-out.
const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// The member on this server, as K3s binds it in every release.
const LOCAL: &str = "https://127.0.0.1:2379";

/// Why etcd did not answer as hoped.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// This server has no etcd member, or not yet.
    #[error(
        "no etcd client certificate under {0}; is this a server with embedded etcd that has started?"
    )]
    NoMember(String),
    /// A call failed.
    #[error("etcd at {endpoint} did not answer {call}: {detail}")]
    Call { endpoint: String, call: &'static str, detail: String },
}

/// A member of the etcd cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// etcd's id.
    pub id: u64,
    /// The name, which K3s makes of the node's name and a suffix; empty until it started for the first time.
    pub name: String,
    /// Whether it has no vote yet.
    pub learner: bool,
    /// Where other members reach it.
    pub addresses: Vec<IpAddr>,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
    /// Whether it leads, as this server's member sees it.
    pub leader: bool,
    /// Whether it is the member on this server.
    pub local: bool,
}

impl Member {
    /// Whether it belongs to the Kubernetes node `node`.
    pub fn is_node(&self, node: &str) -> bool {
        let suffix = self.name.strip_prefix(node).and_then(|rest| rest.strip_prefix('-'));
        suffix.is_some_and(|suffix| {
            suffix.len() == 8 && suffix.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
    }
}

/// What handing over the leadership came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandOver {
    /// This server did not lead.
    NotLeader,
    /// The member of this name leads now.
    Moved { to: String },
    /// No other healthy voter is there.
    NoCandidate,
}

/// The etcd member on this server.
#[derive(Debug, Clone)]
pub struct Etcd {
    ca: String,
    certificate: String,
    key: Secret,
}

impl Etcd {
    /// Reads the client certificate that K3s made under `data_dir`.
    pub fn open(data_dir: &Path) -> Result<Self, EtcdError> {
        let tls = data_dir.join("server/tls/etcd");
        let read = |name: &str| {
            std::fs::read_to_string(tls.join(name))
                .map_err(|_| EtcdError::NoMember(tls.display().to_string()))
        };
        Ok(Self {
            ca: read("server-ca.crt")?,
            certificate: read("client.crt")?,
            key: Secret::new(read("client.key")?),
        })
    }

    /// All members, as this server's member knows them; linearizable, so it fails without a quorum.
    pub async fn members(&self) -> Result<Vec<Member>, EtcdError> {
        let status = self.status(LOCAL).await?;
        let request = wire::MemberListRequest { linearizable: true };
        let list: wire::MemberListResponse =
            self.call(LOCAL, "/etcdserverpb.Cluster/MemberList", request).await?;
        let local = status.header.as_ref().map_or(0, |header| header.member_id);
        Ok(list.members.into_iter().map(|member| listed(member, status.leader, local)).collect())
    }

    /// Whether this server's member leads. Asks this member only, so it answers without a quorum too.
    pub async fn is_leader(&self) -> Result<bool, EtcdError> {
        let status = self.status(LOCAL).await?;
        Ok(status.leader != 0
            && status.header.is_some_and(|header| header.member_id == status.leader))
    }

    /// Whether this member follows or is a leader, and complains of nothing.
    pub async fn healthy(&self) -> Result<bool, EtcdError> {
        self.status(LOCAL).await.map(|status| status.leader != 0 && status.errors.is_empty())
    }

    /// Hands the leadership to the healthy voter that has applied most, if this server leads.
    ///
    /// Members named in `avoid` (Kubernetes node names, such as others that drain) are taken only if there is nobody else.
    pub async fn hand_over(&self, avoid: &[String]) -> Result<HandOver, EtcdError> {
        if !self.is_leader().await? {
            return Ok(HandOver::NotLeader);
        }
        let mut best: Option<((bool, u64), Member)> = None;
        for member in self.members().await? {
            if member.local || member.learner || member.name.is_empty() {
                continue;
            }
            let Some(applied) = self.fitness(&member).await else {
                continue;
            };
            let wanted = !avoid.iter().any(|node| member.is_node(node));
            if best.as_ref().is_none_or(|(rank, _)| (wanted, applied) > *rank) {
                best = Some(((wanted, applied), member));
            }
        }
        let Some((_, to)) = best else {
            return Ok(HandOver::NoCandidate);
        };
        let request = wire::MoveLeaderRequest { target_id: to.id };
        let _: wire::MoveLeaderResponse =
            self.call(LOCAL, "/etcdserverpb.Maintenance/MoveLeader", request).await?;
        Ok(HandOver::Moved { to: to.name })
    }

    /// Takes the member of the Kubernetes node `node` out of the cluster; says whether there was one.
    ///
    /// K3s does so itself when the Node object is deleted. This is for a server that never became a Node.
    /// etcd refuses (`unhealthy cluster`) until all members have been connected for five seconds: try again.
    pub async fn leave(&self, node: &str) -> Result<bool, EtcdError> {
        let Some(member) = self.members().await?.into_iter().find(|member| member.is_node(node))
        else {
            return Ok(false);
        };
        let request = wire::MemberRemoveRequest { id: member.id };
        let _: wire::MemberRemoveResponse =
            self.call(LOCAL, "/etcdserverpb.Cluster/MemberRemove", request).await?;
        Ok(true)
    }

    /// How far a member is, `None` where it does not answer or complains.
    async fn fitness(&self, member: &Member) -> Option<u64> {
        for url in &member.client_urls {
            if let Ok(status) = self.status(url).await {
                return (status.errors.is_empty() && !status.is_learner)
                    .then_some(status.raft_applied_index);
            }
        }
        None
    }

    async fn status(&self, endpoint: &str) -> Result<wire::StatusResponse, EtcdError> {
        self.call(endpoint, "/etcdserverpb.Maintenance/Status", wire::StatusRequest {}).await
    }

    async fn call<Q, A>(
        &self,
        endpoint: &str,
        path: &'static str,
        request: Q,
    ) -> Result<A, EtcdError>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let failed =
            |detail: String| EtcdError::Call { endpoint: endpoint.to_owned(), call: path, detail };
        let work = async {
            let channel = self.connect(endpoint).await.map_err(|error| chain(&error))?;
            let mut grpc = tonic::client::Grpc::new(channel);
            grpc.ready().await.map_err(|error| chain(&error))?;
            let codec = tonic_prost::ProstCodec::<Q, A>::default();
            let answer = grpc
                .unary(tonic::Request::new(request), PathAndQuery::from_static(path), codec)
                .await;
            answer.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned())
        };
        match tokio::time::timeout(CALL_DEADLINE, work).await {
            Ok(outcome) => outcome.map_err(failed),
            Err(_) => Err(failed(format!("no answer within {} s", CALL_DEADLINE.as_secs()))),
        }
    }

    async fn connect(&self, endpoint: &str) -> Result<Channel, tonic::transport::Error> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.ca))
            .identity(Identity::from_pem(&self.certificate, self.key.expose()));
        Endpoint::from_shared(endpoint.to_owned())?
            .connect_timeout(CALL_DEADLINE / 2)
            .tls_config(tls)?
            .connect()
            .await
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

fn listed(member: wire::Member, leader: u64, local: u64) -> Member {
    Member {
        addresses: member.peer_urls.iter().filter_map(|url| address(url)).collect(),
        learner: member.is_learner,
        leader: leader != 0 && member.id == leader,
        local: local != 0 && member.id == local,
        id: member.id,
        name: member.name,
        client_urls: member.client_urls,
    }
}

fn address(url: &str) -> Option<IpAddr> {
    let authority = url.split("://").nth(1)?.split('/').next()?;
    let host = authority.rsplit_once(':')?.0;
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// The few messages of etcd's `rpc.proto` that are used here.
mod wire {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ResponseHeader {
        #[prost(uint64, tag = "2")]
        pub(super) member_id: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct StatusRequest {}

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct StatusResponse {
        #[prost(message, optional, tag = "1")]
        pub(super) header: Option<ResponseHeader>,
        #[prost(uint64, tag = "4")]
        pub(super) leader: u64,
        #[prost(uint64, tag = "7")]
        pub(super) raft_applied_index: u64,
        #[prost(string, repeated, tag = "8")]
        pub(super) errors: Vec<String>,
        #[prost(bool, tag = "10")]
        pub(super) is_learner: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct MoveLeaderRequest {
        #[prost(uint64, tag = "1")]
        pub(super) target_id: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct MoveLeaderResponse {}

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct MemberRemoveRequest {
        #[prost(uint64, tag = "1")]
        pub(super) id: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct MemberRemoveResponse {}

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct MemberListRequest {
        #[prost(bool, tag = "1")]
        pub(super) linearizable: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct MemberListResponse {
        #[prost(message, repeated, tag = "2")]
        pub(super) members: Vec<Member>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Member {
        #[prost(uint64, tag = "1")]
        pub(super) id: u64,
        #[prost(string, tag = "2")]
        pub(super) name: String,
        #[prost(string, repeated, tag = "3")]
        pub(super) peer_urls: Vec<String>,
        #[prost(string, repeated, tag = "4")]
        pub(super) client_urls: Vec<String>,
        #[prost(bool, tag = "5")]
        pub(super) is_learner: bool,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_known_by_their_nodes_name() {
        let member = |name: &str| {
            let member = wire::Member {
                id: 1,
                name: name.into(),
                peer_urls: vec!["https://10.0.0.1:2380".into(), "https://[fd00::1]:2380".into()],
                ..Default::default()
            };
            listed(member, 1, 2)
        };
        assert!(member("n1-0a1b2c3d").is_node("n1"));
        assert!(!member("n1-b-0a1b2c3d").is_node("n1"));
        assert!(!member("n1").is_node("n1"));
        assert!(!member("").is_node(""));
        let listed = member("n1-0a1b2c3d");
        assert_eq!(
            listed.addresses,
            ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]
        );
        assert!(listed.leader && !listed.local);
    }

    #[test]
    fn without_certificates_there_is_no_member() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Etcd::open(dir.path()), Err(EtcdError::NoMember(_))));
    }
}
