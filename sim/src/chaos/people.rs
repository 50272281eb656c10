//! People and programs that use the API of the simulated fleet, and remember what they were told. Shell.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use api::proto::clusters_client::ClustersClient;
use api::proto::fleet_client::FleetClient;
use api::proto::networks_client::NetworksClient;
use api::proto::nodes_client::NodesClient;
use api::proto::vips_client::VipsClient;
use api::proto::{self, CreateTicketRequest};
use api::status::read_detail;
use api::ticket::JoinTicket;
use tokio::time::sleep;
use tonic::{Code, Status};
use uuid::Uuid;

use super::draw::Draw;
use super::flaw::Flaw;
use super::invariant::acknowledged::{Ask, Told};
use super::judge::Judge;
use super::register;
use super::world::World;
use super::world::client::SimChannel;

/// A person tries a call so often.
const TRIES: usize = 3;
/// And waits between two tries.
const PAUSE: Duration = Duration::from_secs(2);

/// Somebody at a machine's command line.
#[derive(Clone)]
pub struct Person {
    world: World,
    judge: Judge,
    via: usize,
}

/// Returns the name of a machine's node.
pub fn node_name(machine: usize) -> String {
    format!("m{machine}")
}

/// Returns the name of a cluster's VIP.
pub fn vip_name(cluster: &str) -> String {
    format!("{cluster}-api")
}

/// Whether a call that failed may be tried again.
fn passing(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled
    )
}

impl Person {
    /// Sits down at a machine.
    pub fn new(world: &World, judge: &Judge, via: usize) -> Self {
        Self { world: world.clone(), judge: judge.clone(), via }
    }

    fn channel(&self) -> SimChannel {
        SimChannel::local(&self.world, self.via)
    }

    /// Tries a call until it is answered, a few times.
    async fn tries<T, F: Future<Output = Result<T, Status>>>(
        &self,
        call: impl Fn() -> F,
    ) -> Result<T, Status> {
        let mut last = Err(Status::unavailable("not tried"));
        for _ in 0..TRIES {
            last = call().await;
            match &last {
                Err(status) if passing(status) => sleep(PAUSE).await,
                _ => break,
            }
        }
        if let Err(status) = &last {
            tracing::debug!(via = self.via, why = %read_detail(status).why, "a call was refused");
        }
        last
    }

    fn request_id(&self) -> Uuid {
        let place = [self.via as u64, self.world.now_us()];
        let bytes = Draw::new(self.world.seed(), "request", &place).bytes();
        uuid::Builder::from_random_bytes(std::array::from_fn(|i| bytes[i])).into_uuid()
    }

    /// Makes a ticket.
    pub async fn ticket(&self) -> Option<JoinTicket> {
        Some(self.numbered_ticket().await?.1)
    }

    /// Makes a ticket, repeating the same request until it is answered; returns its number, too.
    pub async fn numbered_ticket(&self) -> Option<(u64, JoinTicket)> {
        let id = self.request_id();
        self.judge.clients(|c| c.request(id.as_u128()));
        let request = CreateTicketRequest { request_id: id.to_string(), ..Default::default() };
        let asked =
            || async { FleetClient::new(self.channel()).create_ticket(request.clone()).await };
        let answer = self.tries(asked).await.ok()?.into_inner();
        let noted = self.judge.clients(|c| c.ticket(id.as_u128(), answer.id));
        if let Err(why) = noted {
            self.judge.convict(&self.world, "acknowledged", why);
        }
        Some((answer.id, answer.ticket.parse().ok()?))
    }

    /// Withdraws a ticket that nobody has shown; returns whether that was acknowledged.
    pub async fn revoke(&self, id: u64) -> bool {
        let request = proto::RevokeTicketRequest { id };
        let call = || async { FleetClient::new(self.channel()).revoke_ticket(request).await };
        let idle = self.world.flaw() == Some(Flaw::IdleRevocation);
        let done = idle || self.tries(call).await.is_ok();
        if done {
            self.judge.withdrawn(id);
        }
        done
    }

    /// Makes a cluster.
    pub async fn create_cluster(&self, name: &str, servers: &[usize], workers: &[usize]) -> bool {
        let names = |of: &[usize]| of.iter().map(|m| node_name(*m)).collect();
        let request = proto::CreateClusterRequest {
            name: name.to_owned(),
            network: String::new(),
            servers: names(servers),
            workers: names(workers),
            request_id: self.request_id().to_string(),
        };
        let call = || async { ClustersClient::new(self.channel()).create(request.clone()).await };
        self.tries(call).await.is_ok()
    }

    /// Undoes a cluster.
    pub async fn decommission(&self, name: &str) {
        let request = proto::DecommissionRequest { name: name.to_owned() };
        let call =
            || async { ClustersClient::new(self.channel()).decommission(request.clone()).await };
        drop(self.tries(call).await);
    }

    /// Tells this machine's daemon where another one is.
    pub async fn tell_endpoint(&self, address: SocketAddr) {
        let request = proto::AddEndpointRequest { address: address.to_string() };
        drop(FleetClient::new(self.channel()).add_endpoint(request).await);
    }

    /// Gives a machine a role.
    pub async fn assign(&self, machine: usize, server: bool, cluster: &str) {
        let role = if server { "k3s-server" } else { "k3s-agent" };
        let request = proto::AssignRoleRequest {
            node: node_name(machine),
            role: role.into(),
            cluster: cluster.to_owned(),
            request_id: self.request_id().to_string(),
        };
        let call = || async { NodesClient::new(self.channel()).assign_role(request.clone()).await };
        drop(self.tries(call).await);
    }

    /// Takes a machine's role away.
    pub async fn unassign(&self, machine: usize, force: bool) {
        let request = proto::UnassignRoleRequest { node: node_name(machine), force };
        let call =
            || async { NodesClient::new(self.channel()).unassign_role(request.clone()).await };
        drop(self.tries(call).await);
    }

    /// Empties a node.
    pub async fn drain(&self, machine: usize, stop: bool) {
        let request =
            proto::DrainRequest { node: node_name(machine), stop, timeout_s: 30, force: false };
        let call = || async { NodesClient::new(self.channel()).drain(request.clone()).await };
        drop(self.tries(call).await);
    }

    /// Takes a node back into service.
    pub async fn undrain(&self, machine: usize) {
        let request = proto::UndrainRequest { node: node_name(machine) };
        let call = || async { NodesClient::new(self.channel()).undrain(request.clone()).await };
        drop(self.tries(call).await);
    }

    /// Moves a cluster's VIP by hand.
    pub async fn move_vip(&self, cluster: &str, to: Option<usize>) {
        let request = proto::MoveVipRequest {
            name: vip_name(cluster),
            to: to.map(node_name).unwrap_or_default(),
            dry_run: false,
        };
        let call = || async { VipsClient::new(self.channel()).r#move(request.clone()).await };
        drop(self.tries(call).await);
    }

    /// Takes a node out of the fleet.
    pub async fn terminate(&self, machine: usize) {
        let request = proto::TerminateNodeRequest { name: node_name(machine) };
        let call = || async { NodesClient::new(self.channel()).terminate(request.clone()).await };
        drop(self.tries(call).await);
    }

    /// Removes a node without asking it.
    pub async fn remove(&self, machine: usize, force: bool) {
        let request = proto::RemoveNodeRequest { name: node_name(machine), force };
        let call = || async { NodesClient::new(self.channel()).remove(request.clone()).await };
        drop(self.tries(call).await);
    }

    /// Makes a network.
    pub async fn create_network(&self, name: &str) {
        let request = proto::CreateNetworkRequest { name: name.to_owned(), ..Default::default() };
        let call = || async { NetworksClient::new(self.channel()).create(request.clone()).await };
        drop(self.tries(call).await);
    }

    /// Lets a node into a network.
    pub async fn attach(&self, machine: usize, network: &str) {
        let request =
            proto::AttachRequest { network: network.to_owned(), node: node_name(machine) };
        let call = || async { NetworksClient::new(self.channel()).attach(request.clone()).await };
        drop(self.tries(call).await);
    }

    /// Writes and reads registers, one call after the other; what a call was answered is noted, also if it failed.
    pub async fn client(self, number: u64, calls: usize, every: Duration) {
        let mut draw = Draw::new(self.world.seed(), "client", &[number]);
        for _ in 0..calls {
            let (register, ask) = register::next(&mut draw);
            let register = format!("device{register}");
            let from_us = self.world.now_us();
            let begun = self.judge.clients(|c| c.begins(&register, ask.clone(), from_us));
            if let Some(told) = self.register(&register, &ask).await {
                self.judge.clients(|c| c.ends(&begun, self.world.now_us(), told));
            }
            sleep(every).await;
        }
    }

    /// Makes one call to a register; nothing is returned where nobody knows what became of it.
    pub async fn register(&self, name: &str, ask: &Ask) -> Option<Told> {
        register::call(self.channel(), name, ask).await
    }
}
