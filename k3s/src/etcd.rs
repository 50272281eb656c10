//! The etcd member of this server: who leads, who belongs, and handing the leadership over. Shell.

use std::future::Future;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{self, Certificate, Channel, ClientTlsConfig, Endpoint};

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
    /// Whether its name is one that K3s makes of the Kubernetes node `node`. Releases up to 1.21 make it of the host's name instead.
    fn is_named(&self, node: &str) -> bool {
        let suffix = self.name.strip_prefix(node).and_then(|rest| rest.strip_prefix('-'));
        suffix.is_some_and(|suffix| {
            suffix.len() == 8 && suffix.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
    }
}

/// A Kubernetes node, as etcd may know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The Kubernetes node's name.
    pub node: String,
    /// Its addresses in the overlay, which never change.
    pub addresses: Vec<IpAddr>,
}

impl Identity {
    /// Finds its member: by address, and only where no member has one of them by name.
    pub fn find<'a>(&self, members: &'a [Member]) -> Option<&'a Member> {
        let here = |member: &&Member| member.addresses.iter().any(|ip| self.addresses.contains(ip));
        members
            .iter()
            .find(here)
            .or_else(|| members.iter().find(|member| member.is_named(&self.node)))
    }
}

/// The members, and the member that named them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Every member.
    pub members: Vec<Member>,
    endpoint: String,
}

impl View {
    /// Makes a view, as the member at `endpoint` gave it.
    pub fn new(members: Vec<Member>, endpoint: String) -> Self {
        Self { members, endpoint }
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

/// What a daemon asks of its server's etcd member; [`Etcd`] says what each call does.
pub trait EtcdApi: Send + Sync + 'static {
    /// All members, as this server's member knows them, or else the first of `others` that answers.
    fn members_anywhere(
        &self,
        others: &[IpAddr],
    ) -> impl Future<Output = Result<View, EtcdError>> + Send;
    /// Hands the leadership to another healthy voter, if this server leads.
    fn hand_over(
        &self,
        avoid: &[Identity],
    ) -> impl Future<Output = Result<HandOver, EtcdError>> + Send;
    /// Takes a member out of the cluster.
    fn remove(
        &self,
        view: &View,
        member: &Member,
    ) -> impl Future<Output = Result<(), EtcdError>> + Send;
}

impl EtcdApi for Etcd {
    async fn members_anywhere(&self, others: &[IpAddr]) -> Result<View, EtcdError> {
        Etcd::members_anywhere(self, others).await
    }

    async fn hand_over(&self, avoid: &[Identity]) -> Result<HandOver, EtcdError> {
        Etcd::hand_over(self, avoid).await
    }

    async fn remove(&self, view: &View, member: &Member) -> Result<(), EtcdError> {
        Etcd::remove(self, view, member).await
    }
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

    /// Whether a member's data lie under `data_dir`: without them this server is in no etcd cluster.
    pub fn has_data(data_dir: &Path) -> bool {
        data_dir.join("server/db/etcd/member/wal").exists()
    }

    /// All members, as this server's member knows them; linearizable, so it fails without a quorum.
    pub async fn members(&self) -> Result<Vec<Member>, EtcdError> {
        self.view(LOCAL).await.map(|view| view.members)
    }

    /// All members, as this server's member knows them, or else the first of `others` (servers' addresses) that answers.
    pub async fn members_anywhere(&self, others: &[IpAddr]) -> Result<View, EtcdError> {
        let mut found = self.view(LOCAL).await;
        for ip in others {
            if found.is_ok() {
                break;
            }
            found = self.view(&client_url(*ip)).await.or(found);
        }
        found
    }

    async fn view(&self, endpoint: &str) -> Result<View, EtcdError> {
        let status = self.status(endpoint).await?;
        let request = wire::MemberListRequest { linearizable: true };
        let list: wire::MemberListResponse =
            self.call(endpoint, "/etcdserverpb.Cluster/MemberList", request).await?;
        let here = status.header.as_ref().map_or(0, |header| header.member_id);
        let local = if endpoint == LOCAL { here } else { 0 };
        let members = list.members.into_iter().map(|m| listed(m, status.leader, local)).collect();
        Ok(View { members, endpoint: endpoint.to_owned() })
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
    /// Members of `avoid` (such as nodes that drain too) are taken only if there is nobody else.
    pub async fn hand_over(&self, avoid: &[Identity]) -> Result<HandOver, EtcdError> {
        if !self.is_leader().await? {
            return Ok(HandOver::NotLeader);
        }
        let mut best: Option<((bool, u64), Member)> = None;
        let members = self.members().await?;
        let avoided: Vec<u64> =
            avoid.iter().filter_map(|node| node.find(&members)).map(|member| member.id).collect();
        for member in members {
            if member.local || member.learner || member.name.is_empty() {
                continue;
            }
            let Some(applied) = self.fitness(&member).await else {
                continue;
            };
            let wanted = !avoided.contains(&member.id);
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

    /// Takes `member` out of the cluster, through the member that named it.
    ///
    /// K3s does so itself when the Node object is deleted, if it finds the member under the Node's name.
    /// etcd refuses (`unhealthy cluster`) until all members have been connected for five seconds: try again.
    pub async fn remove(&self, view: &View, member: &Member) -> Result<(), EtcdError> {
        let request = wire::MemberRemoveRequest { id: member.id };
        let _: wire::MemberRemoveResponse =
            self.call(&view.endpoint, "/etcdserverpb.Cluster/MemberRemove", request).await?;
        Ok(())
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

    async fn connect(&self, endpoint: &str) -> Result<Channel, transport::Error> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.ca))
            .identity(transport::Identity::from_pem(&self.certificate, self.key.expose()));
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

/// Where K3s has a server's member listen for clients.
fn client_url(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(four) => format!("https://{four}:2379"),
        IpAddr::V6(six) => format!("https://[{six}]:2379"),
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

    fn member(id: u64, name: &str, address: &str) -> Member {
        let member = wire::Member {
            id,
            name: name.into(),
            peer_urls: vec![format!("https://{address}:2380")],
            ..Default::default()
        };
        listed(member, 1, 2)
    }

    fn node(name: &str, addresses: &[&str]) -> Identity {
        let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        Identity { node: name.into(), addresses }
    }

    #[test]
    fn members_are_known_by_address_and_else_by_name() {
        // n1 and n2 are on machines that are called debian, as an old K3s shows them; n3's machine is called n1.
        let members = [
            member(1, "debian-0a1b2c3d", "10.0.0.1"),
            member(2, "debian-4e5f6a7b", "[fd00::2]"),
            member(3, "n1-8c9d0e1f", "10.0.0.3"),
            member(4, "n4-8c9d0e1f", "192.0.2.4"),
            member(5, "", "10.0.0.5"),
        ];
        let found = |name: &str, addresses: &[&str]| {
            node(name, addresses).find(&members).map(|member| member.id)
        };
        assert_eq!(found("n1", &["fd00::1", "10.0.0.1"]), Some(1));
        assert_eq!(found("n2", &["fd00::2", "10.0.0.2"]), Some(2));
        assert_eq!(found("n3", &["10.0.0.3"]), Some(3));
        assert_eq!(found("n4", &["10.0.0.4"]), Some(4), "by name, as no member has its address");
        assert_eq!(found("n4", &[]), Some(4));
        assert_eq!(found("n5", &["10.0.0.5"]), Some(5), "a member that never started has no name");
        assert_eq!(found("n6", &["10.0.0.6"]), None);
        assert_eq!(found("", &[]), None);
        assert!(members[0].leader && !members[0].local && members[1].local);
    }

    #[test]
    fn only_k3s_own_kind_of_name_counts() {
        assert!(member(1, "n1-0a1b2c3d", "10.0.0.1").is_named("n1"));
        assert!(!member(1, "n1-b-0a1b2c3d", "10.0.0.1").is_named("n1"));
        assert!(!member(1, "n1", "10.0.0.1").is_named("n1"));
    }

    #[test]
    fn both_families_have_client_urls() {
        assert_eq!(client_url("10.0.0.1".parse().unwrap()), "https://10.0.0.1:2379");
        assert_eq!(client_url("fd00::1".parse().unwrap()), "https://[fd00::1]:2379");
    }

    #[test]
    fn without_certificates_there_is_no_member() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Etcd::open(dir.path()), Err(EtcdError::NoMember(_))));
    }
}
