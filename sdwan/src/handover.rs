//! Whom packets belong to while an address moves from one peer to another as planned. Pure.
//!
//! Without this, the answer to a SYN that went to the former holder would be dropped as forged, and the rest of a
//! connection would reach a host that knows nothing of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::packet::{Addresses, Segment, segment};
use crate::tunnel::Owner;

/// More connections than these are not told apart; the rest goes to the new holder.
const FLOWS_MAX: usize = 16_384;

/// One TCP connection, seen from this host: its own port, and address and port of the other side.
type Flow = (IpAddr, u16, IpAddr, u16);

/// Whose a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// Its address is not on the move, as far as is known here.
    Holders,
    /// The former holder's; one whose session another tunnel has is asked there.
    Formers(Owner),
    /// The new holder's, which was decided here.
    News,
}

/// Addresses on the move, and the connections that were begun since.
#[derive(Clone, Debug, Default)]
pub(crate) struct Handovers {
    former: BTreeMap<IpAddr, Owner>,
    begun: BTreeSet<Flow>,
}

impl Handovers {
    /// Takes over which addresses are on the move, each with its former holder; what was seen of others is forgotten.
    pub(crate) fn set(&mut self, former: BTreeMap<IpAddr, Owner>) {
        let unchanged = |address: &IpAddr| self.former.get(address) == former.get(address);
        self.begun.retain(|(_, _, to, _)| former.contains_key(to) && unchanged(to));
        self.former = former;
    }

    /// Says whose a packet of this host is.
    pub(crate) fn outbound(&mut self, at: Addresses, packet: &[u8]) -> Whose {
        let former = match self.former.get(&at.destination) {
            None => return Whose::Holders,
            Some(Owner::There(other)) => return Whose::Formers(Owner::There(*other)),
            Some(here) => *here,
        };
        let Some(Segment { from, to, opens }) = segment(packet) else { return Whose::News };
        let flow = (at.source, from, at.destination, to);
        if opens && self.begun.len() < FLOWS_MAX {
            self.begun.insert(flow);
        }
        if opens || self.begun.contains(&flow) { Whose::News } else { Whose::Formers(former) }
    }

    /// Tells whether a packet may come from this peer although another one has its source address now.
    pub(crate) fn inbound(&self, at: Addresses, peer: u32) -> bool {
        self.former.get(&at.source) == Some(&Owner::Here(peer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{addresses, tests::tcp};

    const ME: &str = "10.90.0.4";
    const VIP: &str = "10.90.15.254";

    fn to(h: &mut Handovers, packet: &[u8]) -> Option<u32> {
        match h.outbound(addresses(packet).unwrap(), packet) {
            Whose::Formers(Owner::Here(peer)) => Some(peer),
            Whose::Formers(Owner::There(_)) => panic!("it is decided here"),
            Whose::Holders | Whose::News => None,
        }
    }

    fn moving() -> Handovers {
        let mut h = Handovers::default();
        h.set([(VIP.parse().unwrap(), Owner::Here(7))].into());
        h
    }

    #[test]
    fn what_was_begun_before_stays_and_what_begins_now_goes_to_the_new_holder() {
        let mut h = moving();
        let ack = |port| tcp(ME, port, VIP, 6443, 0x10);
        assert_eq!(to(&mut h, &ack(1000)), Some(7), "a connection from before");
        assert_eq!(to(&mut h, &tcp(ME, 2000, VIP, 6443, 0x02)), None, "a SYN");
        assert_eq!(to(&mut h, &ack(2000)), None, "and what follows it");
        assert_eq!(to(&mut h, &ack(1000)), Some(7));
        assert_eq!(to(&mut h, &tcp(ME, 1000, "10.90.0.1", 6443, 0x10)), None, "nobody else's");
    }

    #[test]
    fn the_former_holder_is_heard_until_the_move_is_over() {
        let mut h = moving();
        let reply = tcp(VIP, 6443, ME, 1000, 0x12);
        let at = addresses(&reply).unwrap();
        assert!(h.inbound(at, 7) && !h.inbound(at, 8));
        h.set(BTreeMap::new());
        assert!(!h.inbound(at, 7));
        assert_eq!(to(&mut h, &tcp(ME, 1000, VIP, 6443, 0x10)), None);
    }

    #[test]
    fn another_move_of_the_address_starts_anew() {
        let mut h = moving();
        to(&mut h, &tcp(ME, 2000, VIP, 6443, 0x02));
        h.set([(VIP.parse().unwrap(), Owner::Here(7))].into());
        assert_eq!(to(&mut h, &tcp(ME, 2000, VIP, 6443, 0x10)), None, "the same move");
        h.set([(VIP.parse().unwrap(), Owner::Here(8))].into());
        assert_eq!(to(&mut h, &tcp(ME, 2000, VIP, 6443, 0x10)), Some(8));
    }

    #[test]
    fn what_is_not_tcp_goes_to_the_new_holder() {
        let mut h = moving();
        let mut ping = tcp(ME, 1000, VIP, 6443, 0x10);
        ping[9] = 1;
        assert_eq!(to(&mut h, &ping), None);
    }
}
