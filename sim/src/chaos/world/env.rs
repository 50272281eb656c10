//! The daemon's ports in the simulated world. Shell.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use api::client::ApiError;
use api::daemon::Daemon;
use api::pki::Pki;
use api::proto::join_client::JoinClient;
use api::proto::{RedeemRequest, RedeemResponse};
use api::status::detail;
use api::ticket::JoinTicket;
use api::tls::Papers;
use ipnet::Ipv4Net;
use node::config::Config;
use node::daemon::{DaemonError, Paths};
use node::env::{Env, Files, Machine as MachinePort, Server};
use raft_store::disk::Disks;
use raft_store::model::UnixMillis;
use raft_store::rt::Scope;
use tokio::sync::mpsc;
use tonic::Code;
use uuid::Uuid;

use super::client::SimChannel;
use super::disk::SimDisks;
use super::host::HeardHost;
use super::life::Life;
use super::mesh::SimMesh;
use super::wire::SimWire;
use super::{Machine, World};
use crate::chaos::flaw::Flaw;
use crate::chaos::k3s::{SimEtcd, SimKube, cluster_ca};

/// A machine, also before it is a member.
pub struct SimMachine {
    world: World,
    machine: Arc<Machine>,
    disks: SimDisks,
}

impl SimMachine {
    /// Puts the ports of a machine together.
    pub fn new(world: World, machine: Arc<Machine>, scope: Scope) -> Self {
        let disks = SimDisks::new(machine.drive.clone(), scope);
        Self { world, machine, disks }
    }
}

impl MachinePort for SimMachine {
    fn files(&self) -> &dyn Files {
        &*self.machine.files
    }

    fn disks(&self) -> &dyn Disks {
        &self.disks
    }

    fn pki(&self) -> &dyn Pki {
        &self.machine.pki
    }

    fn routes(&self) -> Vec<Ipv4Net> {
        Vec::new()
    }

    fn wall(&self) -> UnixMillis {
        self.world.wall(&self.machine)
    }

    fn random(&self) -> [u8; 32] {
        self.machine.random()
    }

    async fn redeem(
        &self,
        ticket: &JoinTicket,
        request: RedeemRequest,
    ) -> Result<RedeemResponse, ApiError> {
        let mut tried = Vec::new();
        for endpoint in &ticket.endpoints {
            let channel = SimChannel::anonymous(&self.world, self.machine.number, *endpoint);
            let Some(channel) = channel else { continue };
            match JoinClient::new(channel).redeem(request.clone()).await {
                Ok(answer) => {
                    let mut answer = answer.into_inner();
                    if self.world.flaw() == Some(Flaw::ReusedId)
                        && self.machine.number.is_multiple_of(2)
                    {
                        answer.node_id = 1;
                    }
                    return Ok(answer);
                }
                Err(s)
                    if matches!(
                        s.code(),
                        Code::Unavailable | Code::Unknown | Code::DeadlineExceeded
                    ) =>
                {
                    tried.push(s.message().to_owned());
                }
                Err(s) => return Err(s.into()),
            }
        }
        let what = "this machine did not join";
        Err(detail("unreachable", what, tried.join("; "), "make a fresh ticket").into())
    }
}

/// A member's world.
pub struct SimEnv {
    here: SimMachine,
    life: Arc<Life>,
    me: Uuid,
}

impl SimEnv {
    /// Puts the ports of a member together.
    pub fn new(here: SimMachine, life: Arc<Life>, me: Uuid) -> Self {
        Self { here, life, me }
    }

    fn number(&self) -> usize {
        self.here.machine.number
    }
}

impl MachinePort for SimEnv {
    fn files(&self) -> &dyn Files {
        self.here.files()
    }

    fn disks(&self) -> &dyn Disks {
        self.here.disks()
    }

    fn pki(&self) -> &dyn Pki {
        self.here.pki()
    }

    fn routes(&self) -> Vec<Ipv4Net> {
        self.here.routes()
    }

    fn wall(&self) -> UnixMillis {
        self.here.wall()
    }

    fn random(&self) -> [u8; 32] {
        self.here.random()
    }

    async fn redeem(
        &self,
        ticket: &JoinTicket,
        request: RedeemRequest,
    ) -> Result<RedeemResponse, ApiError> {
        self.here.redeem(ticket, request).await
    }
}

/// Lets others reach the daemon.
pub struct SimServer {
    world: World,
    machine: usize,
    life: Arc<Life>,
}

impl Server for SimServer {
    fn serve<D: Daemon>(self, _: &Scope, daemon: Arc<D>, _: mpsc::Sender<String>) {
        self.life.serve(&self.world, self.machine, daemon);
    }
}

impl Env for SimEnv {
    type Server = SimServer;
    type Wire = SimWire;
    type Host = HeardHost;
    type Mesh = SimMesh;
    type Kube = SimKube;
    type Etcd = SimEtcd;

    async fn listen(&self, _: &Config, _: &Paths, _: &Papers) -> Result<SimServer, DaemonError> {
        let (world, machine) = (self.here.world.clone(), self.number());
        Ok(SimServer { world, machine, life: self.life.clone() })
    }

    async fn told_to_end(&self) {
        self.life.told_to_end().await;
    }

    fn make_cluster_ca(&self, cluster: &str, _: i64) -> Result<k3s::CaBundle, k3s::CaError> {
        Ok(cluster_ca(cluster, self.random()))
    }

    fn has_etcd_data(&self, _: &Path) -> bool {
        self.here.world.kubernetes().has_etcd_data(self.number())
    }

    fn wire(&self) -> SimWire {
        let fleet = self.life.who().map(|(_, member)| member.fleet).unwrap_or_default();
        SimWire::new(self.here.world.clone(), self.number(), self.me, fleet)
    }

    fn host(&self) -> HeardHost {
        let inner = self.here.world.kubernetes().machine(self.number()).host();
        HeardHost::new(inner, self.here.world.clone())
    }

    fn mesh(&self) -> SimMesh {
        SimMesh::new(self.here.world.clone(), self.here.machine.clone(), &self.life)
    }

    fn kube(
        &self,
        kubeconfig: &k3s::Secret,
        endpoint: Option<&str>,
    ) -> Result<SimKube, k3s::KubeError> {
        self.here.world.kubernetes().kube(self.number(), kubeconfig, endpoint)
    }

    fn etcd(&self, _: &Path) -> Result<SimEtcd, k3s::EtcdError> {
        self.here.world.kubernetes().etcd(self.number())
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.here.world.net().addresses(self.number())
    }
}
