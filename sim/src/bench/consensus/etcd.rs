//! etcd as the peer: three members with TLS everywhere, and a client of its API. Shell.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::load::{Client, value};
use super::process::{Process, free_ports, until};
use super::{MEMBERS, Members};
use crate::rehearsal::pki::Authority;

/// How long a call may take that only looks.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// How long members may take to find together.
const READY_MAX: Duration = Duration::from_secs(30);
/// How many keys are written, so that the database stays small, as Skein's ring of events does.
const KEYS: u64 = 2_000;

/// Three members.
pub(super) struct Etcd {
    binary: PathBuf,
    dir: PathBuf,
    timers: Vec<String>,
    clients: [u16; MEMBERS],
    peers: [u16; MEMBERS],
    tls: ClientTlsConfig,
    members: [Option<Process>; MEMBERS],
}

fn url(port: u16) -> String {
    format!("https://127.0.0.1:{port}")
}

impl Etcd {
    /// Starts three members with folders in `dir`; `timers` are heartbeat and election in milliseconds.
    pub(super) async fn start(
        binary: &Path,
        dir: &Path,
        timers: Option<(u32, u32)>,
    ) -> Result<Self, String> {
        std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let authority = Authority::open(dir, "ca")?;
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let (cert, key) = authority.sign("bench", "bench", &names)?;
        for (name, text) in [("tls.crt", &cert), ("tls.key", &key)] {
            std::fs::write(dir.join(name), text).map_err(|e| format!("{name}: {e}"))?;
        }
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&authority.cert_pem))
            .identity(Identity::from_pem(cert, key));
        let timers = timers.map(|(beat, election)| {
            vec![format!("--heartbeat-interval={beat}"), format!("--election-timeout={election}")]
        });
        let mut etcd = Self {
            binary: binary.to_owned(),
            dir: dir.to_owned(),
            timers: timers.unwrap_or_default(),
            clients: free_ports()?,
            peers: free_ports()?,
            tls,
            members: [const { None }; MEMBERS],
        };
        for member in 0..MEMBERS {
            etcd.restart(member)?;
        }
        until("etcd to lead", READY_MAX, async || etcd.leader().await).await?;
        Ok(etcd)
    }

    fn arguments(&self, member: usize) -> Vec<String> {
        let path = |name: &str| self.dir.join(name).display().to_string();
        let (client, peer) = (url(self.clients[member]), url(self.peers[member]));
        let all = self.peers.iter().enumerate().map(|(i, p)| format!("n{i}={}", url(*p)));
        let mut args = vec![
            format!("--name=n{member}"),
            format!("--data-dir={}", path(&format!("n{member}"))),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={}", all.collect::<Vec<_>>().join(",")),
            "--client-cert-auth".into(),
            "--peer-client-cert-auth".into(),
            "--log-level=error".into(),
        ];
        for (flag, file) in
            [("trusted-ca-file", "ca.crt"), ("cert-file", "tls.crt"), ("key-file", "tls.key")]
        {
            args.push(format!("--{flag}={}", path(file)));
            args.push(format!("--peer-{flag}={}", path(file)));
        }
        args.extend(self.timers.iter().cloned());
        args
    }
}

impl Members for Etcd {
    type Client = EtcdClient;

    async fn leader(&self) -> Result<usize, String> {
        for member in (0..MEMBERS).filter(|m| self.members[*m].is_some()) {
            let status = self.connect(member).await?.status().await?;
            let header = status.header.unwrap_or_default();
            if status.leader != 0 && header.member_id == status.leader {
                return Ok(member);
            }
        }
        Err("no member leads".into())
    }

    async fn connect(&self, member: usize) -> Result<EtcdClient, String> {
        let endpoint =
            Endpoint::from_shared(url(self.clients[member])).map_err(|e| e.to_string())?;
        let endpoint = endpoint.tls_config(self.tls.clone()).map_err(|e| e.to_string())?;
        let endpoint = endpoint.connect_timeout(LOOK_MAX).tcp_nodelay(true);
        endpoint.connect().await.map(EtcdClient).map_err(|e| format!("etcd: {e:?}"))
    }

    fn kill(&mut self, member: usize) -> Option<Process> {
        let mut process = self.members[member].take()?;
        process.kill();
        Some(process)
    }

    fn restart(&mut self, member: usize) -> Result<(), String> {
        let mut command = Command::new(&self.binary);
        command.args(self.arguments(member));
        let log = self.dir.join(format!("n{member}.log"));
        self.members[member] = Some(Process::start(&command, &log)?);
        Ok(())
    }
}

/// A connection to one member.
#[derive(Clone)]
pub(super) struct EtcdClient(Channel);

impl EtcdClient {
    async fn call<Q, A>(&self, path: &'static str, request: Q) -> Result<A, String>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let mut grpc = tonic::client::Grpc::new(self.0.clone());
        grpc.ready().await.map_err(|e| format!("etcd: {e}"))?;
        let codec = tonic_prost::ProstCodec::<Q, A>::default();
        let path = PathAndQuery::from_static(path);
        let answer = grpc.unary(tonic::Request::new(request), path, codec).await;
        answer.map(tonic::Response::into_inner).map_err(|s| format!("etcd: {}", s.message()))
    }

    async fn status(&self) -> Result<StatusResponse, String> {
        let call = self.call("/etcdserverpb.Maintenance/Status", StatusRequest {});
        tokio::time::timeout(LOOK_MAX, call).await.map_err(|_| "no answer".to_owned())?
    }
}

impl Client for EtcdClient {
    async fn put(&self, number: u64) -> Result<(), String> {
        let key = format!("bench/{}", number % KEYS).into_bytes();
        let request = PutRequest { key, value: value(number).into_bytes() };
        self.call::<_, PutResponse>("/etcdserverpb.KV/Put", request).await.map(drop)
    }

    async fn read(&self) -> Result<(), String> {
        let request = RangeRequest { key: b"bench/1".to_vec() };
        let answer: RangeResponse = self.call("/etcdserverpb.KV/Range", request).await?;
        if answer.kvs.iter().any(|kv| !kv.value.is_empty()) {
            Ok(())
        } else {
            Err("nothing is there".into())
        }
    }
}

// What is needed of etcd's rpc.proto; a range without `serializable` is linearizable.

#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct Header {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(bytes = "vec", tag = "5")]
    value: Vec<u8>,
}
