//! Skein's side: three daemons without K3s and overlay, and a client of their API. Shell.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use api::client::{ContextFile, connect_context};
use api::proto;
use api::proto::fleet_client::FleetClient;
use api::proto::peer_client::PeerClient;
use node::env::linux::LinuxFiles;
use node::env::linux::{random, wall};
use node::identity::Identity;
use raft_store::apply::{Command as Change, Outcome, Proposal, codec};
use raft_store::model::{RequestId, Severity};
use raft_store::raft::kind;
use tonic::transport::Channel;

use super::load::{Client, value};
use super::process::{Process, free_ports, until};
use super::{MEMBERS, Members};
use crate::beside::beside;

/// How long a call may take that only looks.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// How long daemons may take to find together.
const READY_MAX: Duration = Duration::from_secs(60);
/// The kind of the events that are put.
const EVENT: &str = "bench";

/// Three daemons.
pub(super) struct Skein {
    exe: PathBuf,
    dir: PathBuf,
    ports: [u16; MEMBERS],
    http: [u16; MEMBERS],
    members: [Option<Process>; MEMBERS],
    ticket: String,
}

fn here(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

impl Skein {
    /// Starts three daemons with folders in `dir`; all vote in the end.
    pub(super) async fn start(dir: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let mut skein = Self {
            exe: beside("skein-bench", "nothing was measured")?,
            dir: dir.to_owned(),
            ports: free_ports()?,
            http: free_ports()?,
            members: [const { None }; MEMBERS],
            ticket: String::new(),
        };
        skein.restart(0)?;
        let ticket = async || {
            let mut fleet = FleetClient::new(skein.connect(0).await?.channel);
            let request = proto::CreateTicketRequest {
                role: "voter".into(),
                uses: 2,
                ..proto::CreateTicketRequest::default()
            };
            let call = tokio::time::timeout(LOOK_MAX, fleet.create_ticket(request)).await;
            let made = call.map_err(|_| "no answer")?.map_err(|s| s.message().to_owned())?;
            Ok(made.into_inner().ticket)
        };
        skein.ticket = until("the first daemon", READY_MAX, ticket).await?;
        for member in 1..MEMBERS {
            skein.restart(member)?;
        }
        let voters = async || match skein.status(0).await? {
            status if status.voters.len() == MEMBERS && status.quorum => Ok(()),
            status => Err(format!("{} of {MEMBERS} vote", status.voters.len())),
        };
        until("all daemons to vote", READY_MAX, voters).await?;
        Ok(skein)
    }

    async fn status(&self, member: usize) -> Result<proto::Status, String> {
        let mut fleet = FleetClient::new(self.connect(member).await?.channel);
        let call = fleet.get_status(proto::GetStatusRequest {});
        let call = tokio::time::timeout(LOOK_MAX, call).await.map_err(|_| "no answer")?;
        call.map(tonic::Response::into_inner).map_err(|s| s.message().to_owned())
    }
}

impl Members for Skein {
    type Client = SkeinClient;

    async fn leader(&self) -> Result<usize, String> {
        for member in (0..MEMBERS).filter(|m| self.members[*m].is_some()) {
            let status = self.status(member).await?;
            if status.quorum && status.leader == format!("n{member}") {
                return Ok(member);
            }
        }
        Err("no daemon leads".into())
    }

    /// Connects with the member's own certificate, as another member would.
    async fn connect(&self, member: usize) -> Result<SkeinClient, String> {
        let identity = Identity::load(&LinuxFiles, &self.dir.join(format!("n{member}")));
        let identity = identity.map_err(|e| e.to_string())?;
        let fleet = identity.membership().map_err(|e| e.to_string())?.fleet;
        let context = ContextFile {
            schema: 1,
            fleet,
            endpoints: vec![here(self.ports[member])],
            certificate: identity.cert_pem(&LinuxFiles).map_err(|e| e.to_string())?,
            key: identity.tls_key_pem().to_owned(),
            authority: identity.ca_pem(&LinuxFiles).map_err(|e| e.to_string())?,
        };
        let channel = connect_context(&context).await.map_err(|e| e.to_string())?;
        Ok(SkeinClient { channel })
    }

    fn kill(&mut self, member: usize) -> Option<Process> {
        let mut process = self.members[member].take()?;
        process.kill();
        Some(process)
    }

    fn restart(&mut self, member: usize) -> Result<(), String> {
        let mut command = Command::new(&self.exe);
        let name = format!("n{member}");
        command.arg("consensus-node").arg(self.dir.join(&name)).arg("--node").arg(&name);
        command.arg("--listen").arg(here(self.ports[member]).to_string());
        command.arg("--http").arg(here(self.http[member]).to_string());
        if member > 0 {
            command.arg("--join").arg(&self.ticket);
        }
        let log = self.dir.join(format!("{name}.log"));
        self.members[member] = Some(Process::start(&command, &log)?);
        Ok(())
    }
}

/// A connection to one daemon.
#[derive(Clone)]
pub(super) struct SkeinClient {
    channel: Channel,
}

/// What a leader answers to a forwarded proposal.
#[derive(Clone, PartialEq, prost::Message)]
struct Reply {
    /// 0 done, 1 not the leader, 2 no quorum, 3 stopped.
    #[prost(uint32, tag = "1")]
    status: u32,
    #[prost(bytes = "vec", tag = "3")]
    outcome: Vec<u8>,
}

impl Client for SkeinClient {
    async fn put(&self, number: u64) -> Result<(), String> {
        let mut id = [0; 16];
        random(&mut id);
        let proposal = Proposal {
            request: RequestId(uuid::Builder::from_random_bytes(id).into_uuid()),
            at: wall(),
            by: "bench".into(),
            command: Change::Note {
                kind: EVENT.into(),
                severity: Severity::Low,
                node: None,
                cluster: None,
                payload: serde_json::Value::String(value(number)),
            },
        };
        let body = codec::encode_proposal(&proposal);
        let frame = proto::Frame { kind: kind::PROPOSE, body };
        let answer = PeerClient::new(self.channel.clone()).call(frame).await;
        let answer = answer.map_err(|s| s.message().to_owned())?.into_inner();
        let reply = <Reply as prost::Message>::decode(answer.body.as_slice());
        let reply = reply.map_err(|e| e.to_string())?;
        if reply.status != 0 {
            return Err(format!("not carried out: status {}", reply.status));
        }
        match codec::decode_outcome(&reply.outcome).map_err(|e| e.to_string())? {
            Outcome::Rejected { rejection } => Err(rejection.to_string()),
            Outcome::Done { .. } | Outcome::Duplicate { .. } => Ok(()),
        }
    }

    async fn read(&self) -> Result<(), String> {
        let request = proto::ListEventsRequest { limit: 1, ..proto::ListEventsRequest::default() };
        let answer = FleetClient::new(self.channel.clone()).list_events(request).await;
        let events = answer.map_err(|s| s.message().to_owned())?.into_inner().events;
        if events.is_empty() { Err("nothing is there".into()) } else { Ok(()) }
    }
}
