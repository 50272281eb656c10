//! Networks and plain WireGuard devices. Shell.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use raft_store::apply::Command;
use raft_store::model::{Name, Network, NodeId, OverlayAddress, PublicKey, State};
use tonic::{Code, Request, Response, Status};

use super::{Api, list, name};
use crate::daemon::{Daemon, Packet, PeerView, Whereabouts};
use crate::proto;
use crate::proto::networks_server::Networks;
use crate::status::{detail, from_call, invalid, not_found, status};

type Answer<T> = Result<Response<T>, Status>;

fn find<'a>(state: &'a State, text: &str) -> Result<&'a Network, Status> {
    let found = text.parse().ok().and_then(|name| state.network_named(&name));
    found.ok_or_else(|| not_found("network", text, &list(state.networks.values().map(|n| &n.name))))
}

fn pair(a: &OverlayAddress) -> Vec<String> {
    vec![a.v6.to_string(), a.v4.to_string()]
}

impl<D: Daemon> Api<D> {
    fn network(&self, state: &State, applied: u64, n: &Network) -> proto::Network {
        let nodes = state.nodes.values().filter_map(|node| {
            Some(proto::NetworkMember {
                name: node.name.to_string(),
                kind: "node".into(),
                addresses: pair(node.networks.get(&n.id)?),
                public_key: node.wireguard.to_string(),
            })
        });
        let devices = n.devices.iter().map(|(name, d)| proto::NetworkMember {
            name: name.to_string(),
            kind: "device".into(),
            addresses: pair(&d.address),
            public_key: d.key.to_string(),
        });
        proto::Network {
            name: n.name.to_string(),
            ipv6: n.v6.to_string(),
            ipv4: n.v4.to_string(),
            port: n.port.into(),
            mtu: n.mtu.into(),
            interface: self.daemon.interface(n),
            members: nodes.chain(devices).collect(),
            applied,
        }
    }
}

/// Where a device may reach a node, likeliest first. An overlay's address is none: it leads through the device itself.
fn endpoints(state: &State, at: &Whereabouts, port: u16) -> Vec<String> {
    let overlay = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => state.networks.values().any(|n| n.v4.contains(v4)),
        IpAddr::V6(v6) => state.networks.values().any(|n| n.v6.contains(v6)),
    };
    let mut hosts: Vec<IpAddr> =
        at.addresses.iter().map(SocketAddr::ip).filter(|ip| !overlay(ip)).collect();
    hosts.sort_by_key(remoteness);
    hosts.dedup();
    hosts.into_iter().map(|ip| SocketAddr::new(ip, port).to_string()).collect()
}

/// From how few places an address is reached: public ones come first, IPv4 before IPv6 since not every device has
/// IPv6; then those of a site, where IPv6's own (RFC 4193) are the rarest to be routed.
fn remoteness(ip: &IpAddr) -> u8 {
    match ip {
        IpAddr::V4(v4) if v4.is_loopback() || v4.is_link_local() => 5,
        // Carriers' addresses (RFC 6598) lead to the carrier's own customers at most.
        IpAddr::V4(v4) if v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64 => 3,
        IpAddr::V4(v4) if v4.is_private() => 2,
        IpAddr::V4(_) => 0,
        IpAddr::V6(v6) if v6.is_loopback() || v6.is_unicast_link_local() => 5,
        IpAddr::V6(v6) if v6.is_unique_local() => 4,
        IpAddr::V6(_) => 1,
    }
}

/// Says what a device must be configured with: a peer for each node, and its own addresses.
fn device_config(
    state: &State,
    n: &Network,
    own: &OverlayAddress,
    at: &[Whereabouts],
) -> proto::PeerConfig {
    let peers = state.nodes.values().filter_map(|node| {
        let address = node.networks.get(&n.id)?;
        let known = at.iter().find(|w| w.uuid == node.uuid);
        let mut endpoints =
            known.map(|w| endpoints(state, w, n.port)).unwrap_or_default().into_iter();
        Some(proto::PeerEntry {
            name: node.name.to_string(),
            public_key: node.wireguard.to_string(),
            endpoint: endpoints.next().unwrap_or_default(),
            other_endpoints: endpoints.collect(),
            allowed_ips: vec![format!("{}/128", address.v6), format!("{}/32", address.v4)],
        })
    });
    proto::PeerConfig {
        addresses: vec![format!("{}/128", own.v6), format!("{}/32", own.v4)],
        mtu: n.mtu.into(),
        peers: peers.collect(),
    }
}

#[tonic::async_trait]
impl<D: Daemon> Networks for Api<D> {
    async fn create(
        &self,
        request: Request<proto::CreateNetworkRequest>,
    ) -> Answer<proto::Network> {
        let r = request.get_ref();
        let wanted = name(&r.name)?;
        let v4 = match r.ipv4.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                invalid(
                    "the network was not made",
                    format!("--ipv4 {text:?} is no prefix like 10.90.16.0/20"),
                )
            })?),
        };
        let mtu = match r.mtu {
            0 => None,
            n => Some(u16::try_from(n).map_err(|_| {
                invalid("the network was not made", format!("an MTU of {n} is too large"))
            })?),
        };
        self.propose(&request, "", Command::CreateNetwork { name: wanted, v4, mtu }).await?;
        let read = self.daemon.read(true).await.map_err(from_call)?;
        let network = find(&read.state, &r.name)?;
        Ok(Response::new(self.network(&read.state, read.applied, network)))
    }

    async fn list(
        &self,
        request: Request<proto::ListNetworksRequest>,
    ) -> Answer<proto::ListNetworksResponse> {
        let read = self.scene(request.get_ref().read.as_ref()).await?;
        let state = read.state();
        let applied = read.applied();
        let networks = state.networks.values().map(|n| self.network(state, applied, n)).collect();
        Ok(Response::new(proto::ListNetworksResponse { networks, applied }))
    }

    async fn get(&self, request: Request<proto::GetNetworkRequest>) -> Answer<proto::Network> {
        let r = request.get_ref();
        let read = self.scene(r.read.as_ref()).await?;
        let network = find(read.state(), &r.name)?;
        Ok(Response::new(self.network(read.state(), read.applied(), network)))
    }

    async fn attach(
        &self,
        request: Request<proto::AttachRequest>,
    ) -> Answer<proto::AttachResponse> {
        let r = request.get_ref();
        let command = Command::AttachNode { node: name(&r.node)?, network: name(&r.network)? };
        self.propose(&request, "", command).await?;
        Ok(Response::new(proto::AttachResponse {}))
    }

    async fn add_peer(&self, request: Request<proto::AddPeerRequest>) -> Answer<proto::PeerConfig> {
        let r = request.get_ref();
        let what = format!("device {} was not admitted", r.name);
        let key: PublicKey = r.public_key.parse().map_err(|e: raft_store::model::InvalidKey| {
            invalid(what, format!("--public-key: {e}"))
        })?;
        let (network, device) = (name(&r.network)?, name(&r.name)?);
        let command = Command::AddDevice { network, name: device.clone(), key };
        self.propose(&request, "", command).await?;
        let state = self.daemon.state();
        let network = find(&state, &r.network)?;
        let own = network.devices.get(&device);
        let own = own.ok_or_else(|| gone_again(&device))?;
        let config = device_config(&state, network, &own.address, &self.daemon.whereabouts());
        Ok(Response::new(config))
    }

    async fn remove_peer(
        &self,
        request: Request<proto::RemovePeerRequest>,
    ) -> Answer<proto::RemovePeerResponse> {
        let r = request.get_ref();
        let command = Command::RemoveDevice { network: name(&r.network)?, name: name(&r.name)? };
        self.propose(&request, "", command).await?;
        Ok(Response::new(proto::RemovePeerResponse {}))
    }

    async fn list_peers(
        &self,
        request: Request<proto::ListPeersRequest>,
    ) -> Answer<proto::ListPeersResponse> {
        let r = request.get_ref();
        let state = self.daemon.state();
        if !r.network.is_empty() {
            find(&state, &r.network)?;
        }
        let wanted = |p: &PeerView| r.network.is_empty() || p.network == r.network;
        let peers = self.daemon.peers().into_iter().filter(wanted).map(peer_state).collect();
        let node = state.name_of(self.daemon.me());
        Ok(Response::new(proto::ListPeersResponse { peers, node }))
    }

    async fn ping(&self, request: Request<proto::PingRequest>) -> Answer<proto::PingResponse> {
        let r = request.get_ref();
        let state = self.daemon.state();
        let network = network_of(&state, self.daemon.me(), r)?;
        let taken = self.daemon.ping(&network, &r.peer).await.map_err(from_call)?;
        Ok(Response::new(proto::PingResponse {
            node: state.name_of(self.daemon.me()),
            network,
            round_trip_us: taken.map(micros),
        }))
    }

    type CaptureStream = BoxStream<'static, Result<proto::CapturedPacket, Status>>;

    async fn capture(
        &self,
        request: Request<proto::CaptureRequest>,
    ) -> Answer<Self::CaptureStream> {
        let r = request.get_ref();
        find(&self.daemon.state(), &r.network)?;
        let packets = self.daemon.capture(&r.network).await.map_err(from_call)?;
        let packets = packets.map(|Packet { at_us, bytes, missed }| {
            Ok(proto::CapturedPacket { at_us, packet: bytes, missed })
        });
        Ok(Response::new(packets.boxed()))
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn peer_state(p: PeerView) -> proto::PeerState {
    let (lost, asked) = p.lost.unwrap_or_default();
    proto::PeerState {
        network: p.network,
        name: p.name,
        public_key: p.public_key,
        endpoint: p.endpoint.map(|at| at.to_string()).unwrap_or_default(),
        handshake_age_s: p.handshake_age.map(|age| age.as_secs()),
        received_bytes: p.received,
        sent_bytes: p.sent,
        round_trip_us: p.round_trip.map(micros),
        lost,
        asked,
        path_mtu: p.path_mtu.map(u32::from),
    }
}

/// Finds the network in which a peer is asked.
fn network_of(state: &State, me: NodeId, r: &proto::PingRequest) -> Result<String, Status> {
    let mine = state.nodes.get(&me).into_iter().flat_map(|n| n.networks.keys());
    let mine = mine.filter_map(|id| state.networks.get(id));
    let there = |n: &&Network| {
        let device = n.devices.keys().any(|name| name.as_str() == r.peer);
        let is_peer = |node: &raft_store::model::Node| {
            node.name.as_str() == r.peer && node.networks.contains_key(&n.id)
        };
        device || state.nodes.values().any(|n| is_peer(n))
    };
    let mine: Vec<&Network> =
        if r.network.is_empty() { mine.collect() } else { vec![find(state, &r.network)?] };
    let shared: Vec<&Network> = mine.iter().copied().filter(there).collect();
    match shared.as_slice() {
        [] => {
            let nodes = state
                .nodes
                .values()
                .filter(|n| mine.iter().any(|network| n.networks.contains_key(&network.id)));
            let nodes = nodes.map(|n| &n.name);
            let devices = mine.iter().flat_map(|network| network.devices.keys());
            Err(not_found("peer", &r.peer, &list(nodes.chain(devices))))
        }
        [one] => Ok(one.name.to_string()),
        several => {
            let names = list(several.iter().map(|n| &n.name)).join(", ");
            Err(invalid(
                format!("{} was not asked", r.peer),
                format!("it is in several networks: name one with --network: {names}"),
            ))
        }
    }
}

/// The answer where somebody else removed the device in the same moment.
fn gone_again(device: &Name) -> Status {
    let what = format!("device {device} was admitted, and is gone again");
    let why = "it was removed in the same moment";
    status(Code::Aborted, detail("conflict", what, why, "run the command again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_led_to_the_likeliest_address() {
        let mut all: Vec<IpAddr> =
            ["fd77::1", "100.64.0.1", "10.0.0.1", "2001:db8::1", "203.0.113.1"]
                .map(|ip| ip.parse().unwrap())
                .to_vec();
        all.sort_by_key(remoteness);
        let order: Vec<String> = all.iter().map(IpAddr::to_string).collect();
        assert_eq!(order, ["203.0.113.1", "2001:db8::1", "10.0.0.1", "100.64.0.1", "fd77::1"]);
    }
}
