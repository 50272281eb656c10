//! From the device to the wire. Pure.

use std::time::Instant;

use super::shard::What;
use super::{Kind, Owner, Stray, TELL, Tunnel};
use crate::handover::Whose;
use crate::icmp::{may_be_fragmented, too_big};
use crate::offload::{Offload, longest, split};
use crate::packet::{addresses, class};
use crate::session::Session;

/// What the device hands over: a packet, or several of one flow in one piece.
#[derive(Debug)]
pub struct Superpacket<'b> {
    /// How it is to be cut.
    pub offload: Offload,
    /// Its bytes, which are used up when it is cut.
    pub bytes: &'b mut [u8],
}

impl<'b> From<&'b mut [u8]> for Superpacket<'b> {
    fn from(bytes: &'b mut [u8]) -> Self {
        Self { offload: Offload::default(), bytes }
    }
}

impl<S: Session> Tunnel<S> {
    /// Takes what this host's network stack sends.
    pub fn handle_tun<'p>(&mut self, packet: impl Into<Superpacket<'p>>, now: Instant) {
        let Superpacket { offload, bytes } = packet.into();
        self.outward(offload, bytes, None, now);
    }

    /// `strayed` of what another tunnel handed on: whether a handover has had its say.
    pub(super) fn outward(
        &mut self,
        offload: Offload,
        bytes: &mut [u8],
        strayed: Option<bool>,
        now: Instant,
    ) {
        let Some(at) = addresses(bytes) else {
            self.drops.malformed += 1;
            return;
        };
        let whose = match strayed {
            Some(true) => Whose::News,
            _ => self.handovers.outbound(at, bytes),
        };
        let owner = match whose {
            Whose::Formers(former) => Some(former),
            Whose::Holders | Whose::News => self.routes.get(at.destination),
        };
        let index = match (owner, strayed, whose) {
            (Some(Owner::Here(index)), ..) => Some(index),
            // While a spec has reached one tunnel and not yet another, each may take the packet for the other's: it is handed on
            // once, and once more by who decided on a handover.
            (Some(Owner::There(to)), None, _)
            | (Some(Owner::There(to)), Some(false), Whose::Holders | Whose::News) => {
                let settled = strayed.is_some() || whose == Whose::News;
                let what = What::Packet { offload, bytes: bytes.to_vec(), settled };
                self.strays.push(Stray { to, what });
                return;
            }
            _ => None,
        };
        let Some(peer) = index.and_then(|i| self.peers.get_mut(&i)) else {
            self.drops.unroutable += 1;
            return;
        };
        if peer.endpoint.is_none() && peer.spec.endpoints.is_empty() {
            self.drops.no_endpoint += 1;
            return;
        }
        let limit = peer.probes.limit();
        let narrow = limit < self.mtu && longest(&offload, bytes) > usize::from(limit);
        if narrow {
            let lost = !may_be_fragmented(bytes);
            // One that may be fragmented goes on, and its sender is told now and then, so that it does that inside.
            let told = peer.told.is_some_and(|at| now.saturating_duration_since(at) < TELL);
            if (lost || !told)
                && let Some(length) = too_big(self.outbox.room(), bytes, limit)
            {
                peer.told = Some(now);
                self.outbox.keep_packet(length);
            }
            if lost {
                self.drops.too_big += 1;
                return;
            }
        }
        let (outbox, kind) = (&mut self.outbox, Kind { class: class(bytes), whole: false });
        let cut = split(&offload, bytes, |packet| {
            peer.tx_bytes += packet.len() as u64;
            peer.seal(packet, kind, outbox, now);
        });
        if cut.is_err() {
            self.drops.malformed += 1;
        }
    }
}
